"""Checks of the results of earlier stages: clip store, dictionary, knowledge and checkpoint.

The stages' own functions open them, so that a check reports the error that the stage would raise.
"""

import os
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from waver.config import ExperimentConfig
from waver.data.clip_store import ClipStore
from waver.data.ledger import StoreError, describe_failures, describe_parts, group_failures
from waver.doctor.findings import Finding, Level, Stage
from waver.doctor.machine import ModelSize
from waver.evaluation.gallery import build_gallery
from waver.knowledge.errors import KnowledgeError
from waver.knowledge.phrase_file import read_phrases
from waver.knowledge.phrases import install_command, installed_parser
from waver.knowledge.store import Knowledge
from waver.runs.checkpoint import (
    CheckpointError,
    check_dictionary,
    check_weights,
    checkpoint_knowledge,
)
from waver.runs.folder import newest_checkpoint
from waver.runs.inputs import (
    LEAKY,
    open_dictionary,
    open_knowledge,
    open_store,
    store_settings,
    training_knowledge,
)
from waver.tools.object_store import display_path, exists


def find_store(config: ExperimentConfig, captions: pa.Table, *, needed: bool) -> tuple[ClipStore | None, list[Finding]]:
    """Returns the clip store, or None if it cannot be used, and a finding.

    Args:
        config: configuration of the experiment.
        captions: its caption table.
        needed: whether the next stage needs the store: then it is an error if there is no usable one, else a note.
    """
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
                "delete the folder, and run `waver ingest CONFIG`",
            )
        ]
    clip_ids = set(captions["clip_id"].to_pylist())
    ok = set(store.ok_clip_ids()) & clip_ids
    found = f"{len(ok)} of {len(clip_ids)} clips have frames in {display_path(store.path)}"
    if not store.manifest["complete"]:
        found += "; the last ingest did not finish"
    parts = [
        Finding("warning", name, sentence, "copy these videos again; `waver ingest CONFIG` then decodes them again")
        for sentence in describe_parts(store.ledger, clip_ids)
    ]
    if not (failed := clip_ids - ok):
        return store, [Finding("ok", name, found), *parts]
    rows = store.ledger.filter(pc.is_in(store.ledger["clip_id"], value_set=pa.array(sorted(failed)))).to_pylist()
    failures = group_failures((row["clip_id"], row["status"], row["error"]) for row in rows)
    return store, [
        Finding(
            "warning",
            name,
            f"{found}; clips without frames: {'; '.join(describe_failures(failures))}",
            "they count as misses in evaluation",
            details=failures,
        ),
        *parts,
    ]


def _unusable_store(config: ExperimentConfig, error: StoreError, *, needed: bool) -> Finding:
    level: Level = "error" if needed else "info"
    remedy = "next: waver ingest CONFIG"
    if not needed and exists(config.clip_store / "manifest.json"):
        try:  # ingest continues a store that lacks clips, but not one with other settings
            if ClipStore(config.clip_store).settings.key != store_settings(config).key:
                level, remedy = "error", "delete the folder, or set storage.path to another folder"
        except (StoreError, OSError):
            level, remedy = "error", "delete the folder, and run `waver ingest CONFIG`"
    return Finding(level, "clip store", str(error), remedy)


def check_phrases(config: ExperimentConfig, captions: pa.Table | None, *, before: Stage) -> Iterator[Finding]:
    """Checks the sources of the phrases: dictionary, parser and released files; and whether they are leaky."""
    if not config.uses_knowledge and before not in ("vocabulary", "match"):
        yield Finding("ok", "knowledge", "the experiment uses no knowledge")
        return
    if config.knowledge.released:
        # Training reads the phrases from the knowledge, once it is there.
        imported = before == "train" and exists(config.knowledge_store / "manifest.json")
        yield from check_released_files(config, "warning" if imported else "error")
        if before == "vocabulary":
            found = "knowledge.released names files that have their own phrases, so there is nothing to extract"
            yield Finding("error", "released phrases", found, "run `waver match CONFIG`, or remove knowledge.released")
        yield Finding("warning", "released phrases", LEAKY, "use them only for comparison with published metrics")
    elif other := [split for split in config.vocabulary.splits if split != "train"]:
        remedy = "set vocabulary.splits=[train] for a dictionary without leakage"
        yield Finding("warning", "vocabulary.splits", f"captions of {', '.join(other)} are read: {LEAKY}", remedy)
    if before == "match" and config.model.weights is None:
        found = "model.weights = null gives the teacher random weights, so that its matches are random"
        yield Finding("error", "teacher", found, "set model.weights to a file or a pretrained tag")
    if captions is None:
        return
    if not config.knowledge.released:
        yield from _check_dictionary(config, captions, before=before)


def check_released_files(config: ExperimentConfig, level: Level = "error") -> Iterator[Finding]:
    """Checks whether all files of knowledge.released exist."""
    if absent := [str(path) for path in config.knowledge.released if not os.path.isfile(path)]:  # noqa: PTH113
        found = f"knowledge.released: no such file: {', '.join(absent)}"
        yield Finding(level, "released phrases", found, "set knowledge.released")


def _check_dictionary(config: ExperimentConfig, captions: pa.Table, *, before: Stage) -> Iterator[Finding]:
    name = "dictionary"
    try:
        dictionary = open_dictionary(config, captions)
    except KnowledgeError as error:
        # No error for training, which reads the phrases from the knowledge.
        yield Finding("error" if before == "match" else "info", name, str(error), "next: waver vocabulary CONFIG")
        # If `waver vocabulary` cannot run, the stage cannot be reached.
        matched = exists(config.knowledge_store / "manifest.json")
        reached = before == "ingest" or (before in ("train", "tune") and matched)
        level: Level = "warning" if reached else "error"
        yield from (
            _check_phrase_file(config, level)
            if config.vocabulary.file
            else _check_parser(config.vocabulary.parser, level)
        )
        return
    yield Finding("ok", name, f"{len(dictionary.phrases)} phrases in {display_path(config.dictionary)}")
    if dictionary.leaky:
        yield Finding("warning", name, LEAKY)


def _check_phrase_file(config: ExperimentConfig, level: Level) -> Iterator[Finding]:
    assert config.vocabulary.file is not None, "the dictionary comes from a file"
    try:
        read_phrases(config.vocabulary.file)
    except KnowledgeError as error:
        yield Finding(level, "dictionary", str(error), "set vocabulary.file to a text file with a phrase on each line")


def _check_parser(parser: str, level: Level) -> Iterator[Finding]:
    name = "parser"
    if find_spec("spacy") is None:
        found = "spaCy is not installed: waver vocabulary needs it"
        yield Finding(level, name, found, "pip install 'waver[vocabulary]'")
    if installed_parser(parser) is None:
        found = f"spaCy's model {parser} is not installed: waver vocabulary needs it"
        yield Finding(level, name, found, install_command(parser))


def find_knowledge(
    config: ExperimentConfig,
    captions: pa.Table,
    store: ClipStore | None,
    model: ModelSize | None,
    *,
    run_folder: Path,
    needed: bool,
) -> tuple[Knowledge | None, list[Finding]]:
    """Returns the knowledge for training, or None if it cannot be used, and findings.

    Args:
        config: configuration of an experiment that uses knowledge.
        captions: its caption table.
        store: its clip store, or None if there is no usable one.
        model: sizes of its student, or None if it cannot be built.
        run_folder: folder of the run.
        needed: whether training is the next stage.
    """
    name = "knowledge"
    if store is None:
        level = "error" if needed else "info"
        return None, [
            Finding(level, name, "requires a clip store", "run `waver ingest CONFIG`, then `waver match CONFIG`")
        ]
    if not needed:
        return None, []
    try:
        knowledge = training_knowledge(config, captions, store)
        assert knowledge is not None, "the experiment uses knowledge"
        width = knowledge.phrase_embeddings().shape[1]
        if newest := newest_checkpoint(run_folder):
            knowledge.check_same_dictionary(newest, checkpoint_knowledge(newest))
    except (KnowledgeError, CheckpointError) as error:
        return None, [Finding("error", name, str(error), _next_of(str(error)))]
    where = f"{knowledge.num_phrases} phrases of width {width} in {display_path(knowledge.path)}"
    if model and width != model.embed_dim:
        found = f"{where}, but model.backbone has width {model.embed_dim}: they are of another teacher"
        return None, [Finding("error", name, found, "next: waver match CONFIG")]
    findings = [Finding("ok", name, f"{len(knowledge.matches)} clips, {where}")]
    if knowledge.leaky and not config.knowledge.released:
        findings.append(Finding("warning", name, LEAKY))
    return knowledge, findings


def _next_of(error: str) -> str:
    """Returns the command that an error names as its whole remedy; empty if something else must be done."""
    command = re.search(r": run `(waver \w+ CONFIG)`", error)
    return f"next: {command[1]}" if command else ""


def check_evaluated_split(captions: pa.Table, split: str) -> Iterator[Finding]:
    """Checks whether a split has captions to evaluate."""
    queries = build_gallery(captions, split)
    yield Finding("ok", f"split {split}", f"{len(queries.texts)} captions of {len(queries.clip_ids)} clips")


def check_checkpoint(checkpoint: Path, config: ExperimentConfig) -> Iterator[Finding]:
    """Checks whether the weights of a checkpoint are complete and fit its configuration."""
    check_weights(checkpoint, config)
    yield Finding("ok", "checkpoint", display_path(checkpoint))


def check_evaluated_knowledge(
    checkpoint: Path, config: ExperimentConfig, captions: pa.Table, store: ClipStore, split: str
) -> Iterator[Finding]:
    """Checks whether the clips of a split have phrases, of the dictionary that the model learned from."""
    knowledge = open_knowledge(config, captions, store, (split,))
    check_dictionary(knowledge, checkpoint)
    yield Finding("ok", "knowledge", display_path(knowledge.path))
