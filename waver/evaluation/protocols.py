"""Evaluation protocols: identifies the protocol of a result, and its differences from the published protocol.

experiments/PROTOCOLS.md has the source of each protocol, and which results are comparable.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import mean
from typing import Any

from waver.data.annotations import published_split
from waver.data.annotations.published import PublishedPart, split_digest
from waver.knowledge.control import control_text

OWN = "own data"
"""Name of the protocol of data that is not published."""
ZERO_SHOT = "zero-shot"
"""How the origin of a backbone begins that was not trained for retrieval of videos."""
TIES = "a tied answer has the average rank of those it is tied with"


@dataclass(frozen=True)
class EvaluatedSplit:
    """The facts of an evaluation that decide whether its protocol is a published one."""

    data_format: str
    """`data.format` of the experiment."""
    data_split: str | None
    """`data.split` of the experiment; None if the format has none."""
    split: str
    """The evaluated split: train, validation or test."""
    clip_ids: Mapping[str, Collection[str]]
    """Split -> its clips, of the whole data set."""
    captions_per_clip: Sequence[int]
    """Number of captions of each evaluated clip."""
    num_missing_clips: int
    """Number of evaluated clips without embedding."""
    chosen_on: str | None
    """Split on which the checkpoint was chosen as the best of its run; None if the user named the checkpoint."""
    validation: str
    """Origin of the validation split, see `waver.data.annotations.validation_source`."""
    knowledge_at_inference: bool
    """Whether videos were informed by phrases."""
    leaky: bool
    """Whether the model or its phrases used captions of validation or test."""
    control: str = "none"
    """Whose phrases clips had, see `waver.knowledge.control`."""
    variants: Sequence[str] = ()
    """Names of the metrics beside the plain ones, see `VARIANTS`."""
    origin: str | None = None
    """Where a model comes from that waver did not train, beginning with `zero-shot` or `imported`; None if it did."""


@dataclass(frozen=True)
class Protocol:
    """The queries, gallery and model of an evaluation; part of every result."""

    name: str
    published: bool
    """Whether gallery, queries and training videos are exactly those of the published protocol, all videos were decoded, and
    nothing is leaky."""
    differences: Sequence[str]
    """Differences from the published protocol; empty for data without one."""
    split: str
    gallery_size: int
    num_queries: int
    captions_per_clip: Sequence[int | float]
    """Minimum, mean and maximum."""
    num_missing_clips: int
    """Clips of the gallery without embedding, which count as misses."""
    chosen_on: str | None
    """Split on which the checkpoint was chosen as the best of its run; None if the user named the checkpoint."""
    validation: str
    """Origin of the validation split."""
    knowledge_at_inference: bool
    leaky: bool
    """Whether the dictionary or the model used captions of validation or test."""
    ties: str
    variants: Sequence[str]
    """Names of the metrics beside the plain ones."""
    origin: str | None = None
    """Where a model comes from that waver did not train; None if it did, and in results of earlier versions."""
    control: str = "none"
    """Whose phrases clips had, see `waver.knowledge.control`; `none` in results of earlier versions."""

    def as_json(self) -> dict[str, Any]:
        """Returns the protocol as part of a result."""
        lists = {
            "differences": self.differences,
            "captions_per_clip": self.captions_per_clip,
            "variants": self.variants,
        }
        return asdict(self) | {name: list(values) for name, values in lists.items()}

    def lines(self) -> list[str]:
        """Describes the protocol, line by line."""
        least, average, most = self.captions_per_clip
        each = f"{least}" if least == most else f"{least} to {most} (mean {average:.1f})"
        control = control_text(self.control)
        status = "exactly as published" if self.published else "not as published" if self.name != OWN else "no protocol"
        return [
            f"protocol: {self.name}, {self.split} split ({status})",
            *(f"  differs: {difference}" for difference in self.differences),
            f"  {self.num_queries} captions against {self.gallery_size} clips, {each} per clip; {self.ties}",
            f"  model {self._chosen()}; validation: {self.validation}; "
            f"phrases at inference: {'yes' if self.knowledge_at_inference else 'no'}{f'; {control}' if control else ''}"
            f"{'; leaky dictionary' if self.leaky else ''}",
            *(f"  {VARIANTS[name]}" for name in self.variants),
        ]

    def _chosen(self) -> str:
        if self.origin:
            return self.origin
        return f"chosen {f'on {self.chosen_on}' if self.chosen_on else 'by the user'}"


VARIANTS = {
    "excused": "excused: answers that show the same video or have the same caption do not count as wrong",
    "dsl": "DSL: every score depends on all queries of the split, one per clip; not comparable with plain metrics",
    "qb_norm": "QB-Norm: scores are normalised by a bank of training captions; text to video only",
}
"""Name of a variant -> its description."""


def identify_protocol(evaluated: EvaluatedSplit) -> Protocol:
    """Names the protocol of an evaluation and lists its differences from the published one."""
    published, counts = published_split(evaluated.data_format, evaluated.data_split), evaluated.captions_per_clip
    differences = _differences(published.parts, evaluated) if published else []
    return Protocol(
        name=published.protocol if published else OWN,
        published=published is not None and not differences,
        differences=tuple(differences),
        split=evaluated.split,
        gallery_size=len(counts),
        num_queries=sum(counts),
        captions_per_clip=(min(counts), float(mean(counts)), max(counts)),
        num_missing_clips=evaluated.num_missing_clips,
        chosen_on=evaluated.chosen_on,
        validation=evaluated.validation,
        knowledge_at_inference=evaluated.knowledge_at_inference,
        leaky=evaluated.leaky,
        ties=TIES,
        variants=tuple(evaluated.variants),
        origin=evaluated.origin,
        control=evaluated.control,
    )


def _differences(published: Mapping[str, PublishedPart], evaluated: EvaluatedSplit) -> list[str]:
    differences = _gallery_differences(published, evaluated)
    if evaluated.origin is None:
        differences += _training_differences(published, evaluated)
    elif not evaluated.origin.startswith(ZERO_SHOT):  # a backbone as it is was trained on none of the videos
        differences.append("the model was trained elsewhere, and its file does not tell on which videos")
    if evaluated.num_missing_clips:
        differences.append(
            f"{evaluated.num_missing_clips} clips of the gallery could not be decoded and count as misses"
        )
    if evaluated.leaky:
        differences.append("captions of validation or test went into the dictionary (leaky)")
    if control := control_text(evaluated.control):
        differences.append(f"clips had phrases that do not describe them ({control})")
    return differences


def _gallery_differences(published: Mapping[str, PublishedPart], evaluated: EvaluatedSplit) -> list[str]:
    split, num_captions = evaluated.split, sum(evaluated.captions_per_clip)
    part = published.get(split)
    if part is None or (split == "train" and evaluated.validation != "own"):
        return [f"no {split} split is published; this one was held out of train"]
    if split_digest(evaluated.clip_ids[split]) != part.digest:
        return [f"another gallery: {_clips(len(evaluated.clip_ids[split]), part)}"]
    if part.num_captions not in (None, num_captions):
        return [f"{num_captions} queries, not the {part.num_captions} published ones"]
    return []


def _training_differences(published: Mapping[str, PublishedPart], evaluated: EvaluatedSplit) -> list[str]:
    """Compares the training videos; a validation split held out of train counts as train."""
    train = set(evaluated.clip_ids.get("train", ()))
    if evaluated.validation != "own":
        train |= set(evaluated.clip_ids.get("validation", ()))
    if split_digest(train) != published["train"].digest:
        return [f"other training videos: {_clips(len(train), published['train'])}"]
    return []


def _clips(number: int, published: PublishedPart) -> str:
    expected = "published ones" if number == published.num_clips else f"{published.num_clips} published ones"
    return f"{number} clips, not the {expected}"
