"""What a figure is a figure of: the name of the protocol, whether it is exactly the published one, and in what it differs.

experiments/PROTOCOLS.md tells where each protocol comes from and what is compared with what.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import mean
from typing import Any

from waver.data.annotations.official import OFFICIAL, OfficialSplit, split_digest

NAMES: Mapping[tuple[str, str], str] = {
    ("msrvtt", "9k"): "MSR-VTT 1k-A, 9k train",
    ("msrvtt", "7k"): "MSR-VTT 1k-A, 7k train",
    ("msrvtt", "full"): "MSR-VTT full",
    ("msvd", "official"): "MSVD official, all captions",
    ("vatex", "hgr"): "VATEX HGR",
    ("vatex", "1k5"): "VATEX 1k5 (CLIP2Video)",
    ("didemo", "official"): "DiDeMo paragraph-to-video",
}
"""(`data.format`, `data.split`) -> how papers call it."""
OWN = "own data"
TIES = "a tied answer has the average rank of those it is tied with"


@dataclass(frozen=True)
class Protocol:
    """What was ranked, against what, with which model; stands in every result."""

    name: str
    published: bool
    """Whether gallery, queries and training videos are those of the published protocol, all of them decoded and honest."""
    differences: Sequence[str]
    """In what it is not the published one; empty for data that no protocol is published of."""
    split: str
    gallery_size: int
    num_queries: int
    captions_per_clip: Sequence[int | float]
    """Smallest, mean and largest number."""
    num_missing_clips: int
    """In the gallery without embedding: misses."""
    chosen_on: str | None
    """The split on which the model was found to be the best of its run; None where somebody named it."""
    validation: str
    """Where that split comes from."""
    knowledge_at_inference: bool
    leaky: bool
    """Whether captions of validation or test went into the dictionary."""
    ties: str
    variants: Sequence[str]
    """Figures beside the plain ones, by name."""

    def as_json(self) -> dict[str, Any]:
        """As it stands in a result."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    def lines(self) -> list[str]:
        """The protocol in words."""
        least, average, most = self.captions_per_clip
        each = f"{least}" if least == most else f"{least} to {most} (mean {average:.1f})"
        status = "exactly as published" if self.published else "not as published" if self.name != OWN else "no protocol"
        return [
            f"protocol: {self.name}, {self.split} split ({status})",
            *(f"  differs: {difference}" for difference in self.differences),
            f"  {self.num_queries} captions against {self.gallery_size} clips, {each} a clip; {self.ties}",
            f"  model chosen on {self.chosen_on or 'nothing: named by hand'}; validation: {self.validation}; "
            f"phrases at inference: {'yes' if self.knowledge_at_inference else 'no'}"
            f"{'; leaky dictionary' if self.leaky else ''}",
            *(f"  {VARIANTS[name]}" for name in self.variants),
        ]


VARIANTS = {
    "excused": "excused: answers that show the same video or bear the same caption are left out of the count",
    "dsl": "DSL: every score looks at all queries of the split at once, one for each clip; never compare it with plain ones",
    "qb_norm": "QB-Norm: scores are normalised by a bank of training captions; text to video only",
}
"""Name of a variant -> what its figures are."""


def protocol_of(
    *,
    data_format: str,
    data_split: str | None,
    split: str,
    clip_ids: Mapping[str, Collection[str]],
    captions_per_clip: Sequence[int],
    num_missing_clips: int,
    chosen_on: str | None,
    validation: str,
    knowledge_at_inference: bool,
    leaky: bool,
    variants: Sequence[str] = (),
) -> Protocol:
    """Names the protocol of an evaluation.

    Args:
        data_format: `data.format` of the experiment.
        data_split: `data.split`, None where the format has none.
        split: that is evaluated: train, validation or test.
        clip_ids: split -> its clips, of the whole data set.
        captions_per_clip: number of captions of each clip that is evaluated.
        num_missing_clips: of them that have no embedding.
        chosen_on: split on which the model was chosen; None where somebody named it.
        validation: `waver.data.annotations.validation_source`.
        knowledge_at_inference: whether videos were informed by phrases.
        leaky: whether the model or its phrases saw captions of validation or test.
        variants: names of figures beside the plain ones.
    """
    official = OFFICIAL.get((data_format, data_split or ""), {})
    name = NAMES.get((data_format, data_split or ""), OWN)
    differences = []
    if official:
        differences += _gallery_differences(official, split, clip_ids, sum(captions_per_clip), validation)
        differences += _training_differences(official, clip_ids, validation)
    if official and num_missing_clips:
        differences.append(f"{num_missing_clips} clips of the gallery could not be decoded and count as misses")
    if official and leaky:
        differences.append("captions of validation or test went into the dictionary (leaky)")
    return Protocol(
        name=name,
        published=bool(official) and not differences,
        differences=tuple(differences),
        split=split,
        gallery_size=len(captions_per_clip),
        num_queries=sum(captions_per_clip),
        captions_per_clip=(min(captions_per_clip), float(mean(captions_per_clip)), max(captions_per_clip)),
        num_missing_clips=num_missing_clips,
        chosen_on=chosen_on,
        validation=validation,
        knowledge_at_inference=knowledge_at_inference,
        leaky=leaky,
        ties=TIES,
        variants=tuple(variants),
    )


def _gallery_differences(
    official: Mapping[str, OfficialSplit],
    split: str,
    clip_ids: Mapping[str, Collection[str]],
    num_captions: int,
    validation: str,
) -> list[str]:
    part = official.get(split)
    if part is None or (split == "train" and validation != "own"):
        return [f"no {split} split is published; this one was held out of train"]
    if split_digest(clip_ids[split]) != part.digest:
        return [f"another gallery: {_clips(len(clip_ids[split]), part)}"]
    if part.num_captions not in (None, num_captions):
        return [f"{num_captions} queries, not the {part.num_captions} published ones"]
    return []


def _training_differences(
    official: Mapping[str, OfficialSplit], clip_ids: Mapping[str, Collection[str]], validation: str
) -> list[str]:
    """What is held out of train counts as train: it is ours to choose the model on."""
    train = set(clip_ids.get("train", ()))
    if validation != "own":
        train |= set(clip_ids.get("validation", ()))
    if split_digest(train) != official["train"].digest:
        return [f"other training videos: {_clips(len(train), official['train'])}"]
    return []


def _clips(number: int, official: OfficialSplit) -> str:
    there = "others of the same number" if number == official.num_clips else f"{official.num_clips}"
    return f"{number} clips, published are {there}"
