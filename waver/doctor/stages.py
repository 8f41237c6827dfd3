"""What the stages of an experiment find: the clip store, the dictionary, the knowledge, and the folder of the run.

They are opened as the stages open them, so that what is said here is what `waver train` would say.
"""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from waver.config import ConfigError, ExperimentConfig
from waver.data.clip_store import ClipStore
from waver.data.ledger import StoreError
from waver.doctor.findings import Finding, Level, some
from waver.knowledge.store import KnowledgeError
from waver.runs.checkpoint import CheckpointError, checkpoint_knowledge
from waver.runs.folder import RunError, check_run, describe_checkpoint, newest_checkpoint, read_result
from waver.runs.inputs import LEAKY, open_dictionary, open_store, store_settings, training_knowledge
from waver.tools.errors import WaverError
from waver.tools.object_store import display_path, exists
from waver.training.plan import check_split, describe_data, plan_epoch, training_rows

Before = Literal["ingest", "match", "train"]
"""A stage of an experiment."""


def find_store(config: ExperimentConfig, captions: pa.Table, *, needed: bool) -> tuple[ClipStore | None, list[Finding]]:
    """The clip store, if it can be used as it is, and what to say of it."""
    name = "clip store"
    try:
        store = open_store(config, captions)
    except StoreError as error:
        return None, [_unusable_store(config, error, needed=needed)]
    except (OSError, ValueError) as error:
        return None, [
            Finding(
                "error",
                name,
                f"{display_path(config.clip_store)} cannot be read ({error})",
                "delete it and ingest again",
            )
        ]
    asked = set(captions["clip_id"].to_pylist())
    ok = set(store.ok_clip_ids()) & asked
    found = f"{len(ok)} of {len(asked)} clips have frames in {display_path(store.path)}"
    if not store.manifest["complete"]:
        found += "; the last ingest was not finished"
    failed = [row for row in store.ledger.to_pylist() if row["clip_id"] in asked - ok]
    if not failed:
        return store, [Finding("ok", name, found)]
    listed = [f"{row['clip_id']} ({row['status']}: {row['error']})" for row in failed]
    return store, [
        Finding(
            "warning", name, f"{found}; without: {some(listed)}", "they count as misses in evaluation", details=listed
        )
    ]


def _unusable_store(config: ExperimentConfig, error: StoreError, *, needed: bool) -> Finding:
    level: Level = "error" if needed else "info"
    remedy = "next: waver ingest CONFIG"
    if not needed and exists(config.clip_store / "manifest.json"):
        try:  # ingest goes on with a store that lacks clips, but not with one that was decoded otherwise
            if ClipStore(config.clip_store).settings.key != store_settings(config).key:
                level, remedy = "error", "delete the folder, or set storage.path to another one"
        except (StoreError, OSError):
            level, remedy = "error", "delete the folder and ingest again"
    return Finding(level, "clip store", str(error), remedy)


def check_phrases(
    config: ExperimentConfig, captions: pa.Table | None, store: ClipStore | None, *, before: Before
) -> Iterator[Finding]:
    """Dictionary and knowledge: whether they are there where they are needed, and whether they are leaky."""
    if not config.uses_knowledge and before != "match":
        yield Finding("ok", "knowledge", "the experiment uses none")
        return
    if config.knowledge.released:
        absent = [str(path) for path in config.knowledge.released if not path.is_file()]
        if absent:
            yield Finding("error", "released phrases", f"no such file: {', '.join(absent)}", "knowledge.released")
        yield Finding("warning", "released phrases", LEAKY, "good for comparing with published figures only")
    elif other := [split for split in config.vocabulary.splits if split != "train"]:
        remedy = "vocabulary.splits = [train] makes an honest dictionary"
        yield Finding("warning", "vocabulary.splits", f"captions of {', '.join(other)} are read: {LEAKY}", remedy)
    if before == "match" and config.model.weights is None:
        found = "model.weights = null makes a teacher with random weights, who knows nothing"
        yield Finding("error", "teacher", found, "name a file or a pretrained tag")
    if captions is None:
        return
    if not config.knowledge.released:
        yield from _check_dictionary(config, captions, needed=before == "match")
    if store is None:
        level = "error" if before == "train" else "info"
        yield Finding(level, "knowledge", "cannot be there without a clip store", "ingest, then match")
        return
    if before == "train":
        yield from _check_knowledge(config, captions, store)


def _check_dictionary(config: ExperimentConfig, captions: pa.Table, *, needed: bool) -> Iterator[Finding]:
    name = "dictionary"
    try:
        dictionary = open_dictionary(config, captions)
    except KnowledgeError as error:
        # What was matched already keeps its own phrases: training looks there.
        yield Finding("error" if needed else "info", name, str(error), "next: waver vocabulary CONFIG")
        parser = config.vocabulary.parser
        if find_spec("spacy") is None:
            yield Finding("warning", "parser", "spaCy is not installed", "pip install 'waver[vocabulary]'")
        elif not Path(parser).exists() and find_spec(parser) is None:
            remedy = f"python -m spacy download {parser}"
            yield Finding("warning", "parser", f"spaCy's model {parser} is not installed", remedy)
        return
    yield Finding("ok", name, f"{len(dictionary.phrases)} phrases in {display_path(config.dictionary)}")
    if dictionary.leaky:
        yield Finding("warning", name, LEAKY)


def _check_knowledge(config: ExperimentConfig, captions: pa.Table, store: ClipStore) -> Iterator[Finding]:
    name = "knowledge"
    try:
        knowledge = training_knowledge(config, captions, store)
        if knowledge is None:
            return
        width = knowledge.phrase_embeddings().shape[1]
        if newest := newest_checkpoint(config.run_folder):
            knowledge.check_same_dictionary(newest, checkpoint_knowledge(newest))
    except (KnowledgeError, CheckpointError) as error:
        yield Finding("error", name, str(error), "next: waver match CONFIG")
        return
    found = (
        f"{len(knowledge.matches)} clips, "
        f"{knowledge.num_phrases} phrases of width {width} in {display_path(knowledge.path)}"
    )
    yield Finding("ok", name, found)
    if knowledge.leaky and not config.knowledge.released:
        yield Finding("warning", name, LEAKY)


def check_training(
    config: ExperimentConfig, captions: pa.Table, store: ClipStore | None, *, needed: bool
) -> Iterator[Finding]:
    """Whether the run of these clips can begin, or go on."""
    folder, level = config.run_folder, "error" if needed else "info"
    if store is None:
        clips = len(pc.unique(captions["clip_id"].filter(pc.equal(captions["split"], "train"))))
        if 0 < clips < config.train.global_batch_size:
            found = (
                f"train.global_batch_size = {config.train.global_batch_size} is more than the {clips} training clips"
            )
            yield Finding(level, "batch", f"{found}: no clip may stand in a batch twice", f"set it to {clips} at most")
        yield Finding("info", "run", f"{display_path(folder)} was not compared: there are no clips to compare with")
        return
    for split in ("train", "validation"):
        try:
            check_split(captions, store, split)
        except WaverError as error:
            yield Finding(level, f"split {split}", str(error), "look into the ledger of the clip store")
    rows = training_rows(captions, store)
    if len(rows) == 0:
        return
    try:
        steps = len(plan_epoch(config, captions, rows, epoch=0))
        yield Finding("ok", "steps", f"{config.train.epochs} epochs of {steps} steps")
    except WaverError as error:
        yield Finding(level, "batch", str(error))
    try:
        check_run(folder, config, describe_data(captions.take(rows)))
    except (RunError, ConfigError, OSError) as error:
        yield Finding(level, "run", str(error), "--set name=..., or another storage.path")
        return
    if result := read_result(folder):
        found = f"{display_path(folder)} is finished ({result['epochs']} epochs): train would say so and do nothing"
        yield Finding("warning", "run", found, "evaluate it, or --set name=...")
    elif newest := newest_checkpoint(folder):
        yield Finding("info", "run", f"{display_path(folder)} will go on after {describe_checkpoint(newest)}")
    else:
        yield Finding("ok", "run", f"{display_path(folder)} is free")
