"""Opens the inputs of an experiment: captions, clip store, dictionary, knowledge; checks that they fit its configuration."""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from waver.config import ExperimentConfig
from waver.data.annotations.captions import SPLITS
from waver.data.clip_store import ClipStore, StoreSettings
from waver.data.ledger import StoreError, replaced_videos
from waver.knowledge.control import build_control
from waver.knowledge.errors import KnowledgeError, TooFewPhrasesError
from waver.knowledge.phrase_file import read_phrases
from waver.knowledge.store import Dictionary, Knowledge, build_dictionary, read_dictionary
from waver.tools.object_store import display_path, exists

LEAKY = "leaky: the dictionary is contaminated by captions of validation or test; do not report its results"


def training_knowledge(config: ExperimentConfig, captions: pa.Table, store: ClipStore) -> Knowledge | None:
    """Opens the knowledge for training, see `open_knowledge`; returns None if the experiment uses no knowledge."""
    if not config.uses_knowledge:
        return None
    return open_knowledge(
        config, captions, store, ("train", "validation") if config.informed_at_inference else ("train",)
    )


def open_store(config: ExperimentConfig, captions: pa.Table) -> ClipStore:
    """Opens the clip store of an experiment.

    Raises:
        StoreError: if it does not exist, was decoded with other settings or from other files, or lacks some of the clips in
            its ledger; also if videos were replaced since.
    """
    store = ClipStore(config.clip_store)
    if store.settings.key != store_settings(config).key:
        asked = dataclasses.asdict(store_settings(config))
        raise StoreError(
            f"{display_path(config.clip_store)} was decoded with {store.settings.key}, but the configuration needs {asked}"
        )
    asked, known = set(captions["clip_id"].to_pylist()), set(store.ledger["clip_id"].to_pylist())
    if unknown := sorted(asked - known):
        raise StoreError(
            f"{len(unknown)} of {len(asked)} clips were never ingested into {display_path(config.clip_store)} "
            f"({', '.join(unknown[:3])}{', ...' if len(unknown) > 3 else ''}): run `waver ingest CONFIG` to "
            "decode them"
        )
    here = dict(zip(captions["clip_id"].to_pylist(), captions["path"].to_pylist(), strict=True))
    there = dict(zip(store.ledger["clip_id"].to_pylist(), store.ledger["path"].to_pylist(), strict=True))
    if other := sorted(clip_id for clip_id in asked if here[clip_id] != there[clip_id]):
        raise StoreError(
            f"{len(other)} of {len(asked)} clips were decoded from other files into {display_path(config.clip_store)} "
            f"({other[0]} from {there[other[0]]}, not {here[other[0]]}): run `waver ingest CONFIG` to decode them again"
        )
    if replaced := sorted(replaced_videos(store.ledger, captions["path"])):
        raise StoreError(
            f"{len(replaced)} videos were replaced since they were decoded into {display_path(config.clip_store)} "
            f"({', '.join(replaced[:3])}{', ...' if len(replaced) > 3 else ''}): run `waver ingest CONFIG` to decode them "
            "again"
        )
    return store


def open_dictionary(config: ExperimentConfig, captions: pa.Table) -> Dictionary:
    """Opens the dictionary of an experiment.

    Raises:
        KnowledgeError: if it does not exist, has no phrase, or was built from captions that have changed since.
    """
    dictionary = read_dictionary(config.dictionary)
    if not len(dictionary.phrases):
        raise KnowledgeError(
            f"the dictionary in {display_path(config.dictionary)} has no phrase: delete the folder, and run "
            "`waver vocabulary CONFIG` again"
        )
    _check_captions(dictionary.manifest, captions, config)
    return dictionary


def open_knowledge(config: ExperimentConfig, captions: pa.Table, store: ClipStore, splits: Sequence[str]) -> Knowledge:
    """Opens the knowledge of an experiment.

    Args:
        config: configuration of the experiment.
        captions: its caption table.
        store: its clip store.
        splits: splits whose clips need phrases.

    Returns:
        The knowledge, under the control of `knowledge.control`.

    Raises:
        ControlError: if a split has too few clips for it.
        KnowledgeError: if it does not exist, is incomplete, was built from captions that have changed since, or lacks clips
            of `splits`.
        TooFewPhrasesError: if it has fewer than `knowledge.top_k` phrases per clip.
    """
    knowledge = Knowledge(config.knowledge_store)
    if not knowledge.manifest["complete"]:
        raise KnowledgeError(
            f"{display_path(knowledge.path)} is not finished: run `waver match CONFIG` again to continue"
        )
    _check_captions(knowledge.manifest["dictionary"], captions, config)
    decoded = set(store.ok_clip_ids())
    for split in splits:
        clips = set(captions["clip_id"].filter(pc.equal(captions["split"], split)).to_pylist()) & decoded
        if unknown := sorted(knowledge.unmatched_clips(list(clips))):
            released = config.knowledge.released
            remedy = (
                "add a file that has them to knowledge.released, set knowledge.at_inference to false if the files cover "
                "training clips only, or remove knowledge.released and run `waver match CONFIG`"
                if released
                else "run `waver match CONFIG` to match them"
            )
            raise KnowledgeError(
                f"{len(unknown)} of {len(clips)} clips of {split} ({', '.join(unknown[:3])}"
                f"{', ...' if len(unknown) > 3 else ''}) have no phrases in {display_path(knowledge.path)}: {remedy}"
            )
    check_top_k(config, knowledge)
    return _under_control(knowledge, config, captions)


def _under_control(knowledge: Knowledge, config: ExperimentConfig, captions: pa.Table) -> Knowledge:
    """Applies `knowledge.control` to all matched clips: what each gets does not depend on the stage that opens them."""
    if config.knowledge.control == "none":
        return knowledge
    clips_of_split = {}
    for split in SPLITS:
        clips = pc.unique(captions["clip_id"].filter(pc.equal(captions["split"], split))).to_pylist()
        clips_of_split[split] = sorted(set(clips) - set(knowledge.unmatched_clips(clips)))
    return knowledge.controlled(build_control(config.knowledge.control, clips_of_split, seed=config.seed))


def check_top_k(config: ExperimentConfig, knowledge: Knowledge) -> None:
    """Checks that each clip has the phrases that a student is fused with.

    Raises:
        TooFewPhrasesError: if they are fewer than `knowledge.top_k`, as with a small dictionary.
    """
    num_matches = knowledge.manifest["num_matches"]
    if config.knowledge.top_k > num_matches:
        raise TooFewPhrasesError(
            f"knowledge.top_k = {config.knowledge.top_k}, but each clip has only {num_matches} phrases in "
            f"{display_path(knowledge.path)}: set knowledge.top_k to {num_matches} at most"
        )


def captions_of_splits(captions: pa.Table, splits: Sequence[str]) -> list[str]:
    """Returns the captions of some splits, in the order of the table."""
    return captions["caption"].filter(pc.is_in(captions["split"], value_set=pa.array(splits, pa.string()))).to_pylist()


def captions_digest(captions: list[str]) -> str:
    """Hashes captions; the manifest of a dictionary records the hash of those it was built from."""
    return hashlib.sha256("\n".join(captions).encode()).hexdigest()[:16]


def _check_captions(dictionary: dict[str, Any], captions: pa.Table, config: ExperimentConfig) -> None:
    """Checks that a dictionary was built from these captions, or from `vocabulary.file` as it is now.

    The manifest of an imported dictionary has no hash of captions.
    """
    file = config.vocabulary.file
    if file and exists(file) and build_dictionary(read_phrases(file), leaky=False).digest != dictionary["digest"]:
        raise KnowledgeError(
            f"vocabulary.file = {display_path(file)} has changed since the dictionary was made from it: run `waver "
            f"vocabulary CONFIG` again (it replaces {display_path(config.dictionary)}), then `waver match CONFIG`"
        )
    if "captions" not in dictionary:
        return
    if dictionary["captions"] != captions_digest(captions_of_splits(captions, dictionary["splits"])):
        raise KnowledgeError(
            f"the {', '.join(dictionary['splits'])} captions have changed since the dictionary was built from them: run "
            f"`waver vocabulary CONFIG` again (it replaces {display_path(config.dictionary)}), then `waver match CONFIG`"
        )


def load_captions(config: ExperimentConfig) -> pa.Table:
    """Reads the caption table of the experiment's data set."""
    return config.data.load()


def store_settings(config: ExperimentConfig) -> StoreSettings:
    """Returns the decoding settings of the experiment's clip store."""
    frames = config.preprocessing
    return StoreSettings(
        frames_per_second=config.video.frames_per_second,
        max_frames=config.video.max_frames,
        size=frames.size,
        resize=frames.resize,
        interpolation=frames.interpolation,
        frame_format=config.ingest.frame_format,
        jpeg_quality=config.ingest.jpeg_quality,
    )
