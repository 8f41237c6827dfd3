"""The stages of an experiment, from its configuration: ingest, vocabulary, match, train, evaluate."""

import dataclasses
import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from jaxtyping import Int
from torch import Tensor

from waver.checkpoint import learned_from
from waver.clip_store import ClipStore, StoreError
from waver.config import ExperimentConfig
from waver.duplicates import Duplicates, equivalent_clips, excused_pairs, find_duplicates
from waver.engine import load_captions, store_settings
from waver.evaluation import Evaluation, Gallery, gallery
from waver.files import write_json
from waver.knowledge import (
    Dictionary,
    Knowledge,
    KnowledgeError,
    make_dictionary,
    read_dictionary,
    write_dictionary,
)
from waver.objects import exists, shown
from waver.on_ray.cluster import cluster_address, connect
from waver.on_ray.evaluate import evaluate_here, evaluate_on_workers, result_of
from waver.on_ray.ingest import IngestReport, ingest
from waver.on_ray.match import match
from waver.on_ray.stream import CPUS_PER_LOADER
from waver.on_ray.train import train
from waver.on_ray.vocabulary import make_vocabulary
from waver.released import read_released
from waver.run import find_checkpoint
from waver.trec import DEPTH, write_trec

Say = Callable[[str], None]
_SHARES_OF_A_CPU = 4
"""So many may share a CPU of this machine; more would be slower than fewer."""
LEAKY = "leaky: the dictionary was made with captions of validation or test; no result of it is an honest one"


def run_ingest(config: ExperimentConfig, *, say: Say, progress: bool = True) -> IngestReport:
    """Decodes the videos of an experiment into its clip store."""
    captions = load_captions(config)
    say(f"decoding the clips of {len(captions)} captions into {shown(config.clip_store)}")
    return ingest(
        captions,
        config.clip_store,
        store_settings(config),
        timeout_s=config.ingest.timeout_s,
        decoders=config.ingest.decoders,
        clips_per_block=config.ingest.clips_per_block,
        max_failed_fraction=config.ingest.max_failed_fraction,
        node_labels=config.ingest.node_labels,
        wait_s=config.resources.wait_s,
        say=say,
        progress=progress,
    )


def run_vocabulary(config: ExperimentConfig, *, say: Say, progress: bool = True) -> Dictionary:
    """Makes the dictionary of phrases of an experiment's captions, or opens it where these captions were read before.

    Raises:
        KnowledgeError: where the experiment imports released phrases, or its captions have none.
    """
    if config.knowledge.released:
        raise KnowledgeError(
            "knowledge.released names files that bring their own phrases: go on with `waver match CONFIG`, or take it out"
        )
    settings = config.vocabulary
    chosen = _captions_of(load_captions(config), settings.splits)
    source = {
        "splits": list(settings.splits),
        "num_captions": len(chosen),
        "captions": _digest(chosen),
        "parser": settings.parser,
        "min_count": settings.min_count,
    }
    if exists(config.dictionary / "manifest.json"):
        dictionary = read_dictionary(config.dictionary)
        if dictionary.manifest.items() >= source.items():
            say(f"{shown(config.dictionary)} has the phrases of these {len(chosen)} captions")
            return dictionary
    say(f"looking for phrases in {len(chosen)} captions of {', '.join(settings.splits)}")
    phrases = make_vocabulary(
        chosen,
        parser=settings.parser,
        min_count=settings.min_count,
        node_labels=config.ingest.node_labels,
        wait_s=config.resources.wait_s,
        say=say,
        progress=progress,
    )
    if len(phrases) == 0:
        raise KnowledgeError(
            f"no phrase was found in {len(chosen)} captions: they need sentences with a subject, a verb and an object, in "
            f"the language of {settings.parser}"
        )
    dictionary = make_dictionary(phrases, leaky=any(split != "train" for split in settings.splits), **source)
    write_dictionary(config.dictionary, dictionary)
    return dictionary


def run_match(config: ExperimentConfig, *, say: Say, progress: bool = True) -> Knowledge:
    """Matches the clips of an experiment with the phrases of its dictionary, or imports released matches.

    Raises:
        KnowledgeError: where something is missing that must be made first, or was made from something else.
        AnnotationError: for released files that do not fit.
    """
    captions = load_captions(config)
    store = open_store(config, captions)
    asked = set(captions["clip_id"].to_pylist())
    clip_ids = [clip_id for clip_id in store.ok_clip_ids() if clip_id in asked]
    if config.model.weights is None:
        raise KnowledgeError(
            "model.weights = null makes a teacher with random weights, who knows nothing: name a file or a pretrained tag"
        )
    with connect(num_cpus=local_cpus(config)) as where:
        say(where)
        if config.knowledge.released:
            dictionary, matches = read_released(config.knowledge.released, sorted(asked), config.knowledge.num_matches)
        else:
            dictionary, matches = open_dictionary(config, captions), None
        return match(config, clip_ids, store, dictionary, released=matches, say=say, progress=progress)


def run_training(config: ExperimentConfig, *, say: Say, **how: Any) -> dict:
    """Trains an experiment whose videos are ingested, or continues it. Returns what stands in its result.json.

    Args:
        config: of the experiment.
        say: is told what is going on.
        how: other arguments of `train`.
    """
    captions = load_captions(config)
    store = open_store(config, captions)
    knowledge = training_knowledge(config, captions, store)
    if knowledge and knowledge.leaky:
        say(LEAKY)
    with connect(num_cpus=local_cpus(config)) as where:
        say(where)
        return train(config, captions, store, knowledge, say=say, **how)


def training_knowledge(config: ExperimentConfig, captions: pa.Table, store: ClipStore) -> Knowledge | None:
    """The knowledge that training an experiment needs, see `open_knowledge`; None where it needs none."""
    if not config.uses_knowledge:
        return None
    return open_knowledge(
        config, captions, store, ("train", "validation") if config.informed_at_inference else ("train",)
    )


def run_evaluation(
    path: Path,
    config: ExperimentConfig,
    *,
    split: str,
    say: Say,
    output: Path | None = None,
    trec: Path | None = None,
    trec_depth: int = DEPTH,
) -> dict:
    """Evaluates a checkpoint, or the best one of a run; writes the result as JSON and returns it.

    Args:
        path: of the checkpoint or the run.
        config: that of the checkpoint, perhaps with other places and resources.
        split: train, validation or test.
        say: is told what is going on.
        output: JSON file; by default `evaluation_<split>.json` in the folder of the run, with the checkpoint's name in it
            where one was named. What stands twice in the split is listed beside it, in `duplicates_<split>.json`.
        trec: folder that receives the rankings in TREC's format, see `waver.trec`; None for none.
        trec_depth: answers of each query in them.
    """
    checkpoint, captions = find_checkpoint(path), load_captions(config)
    queries = gallery(captions, split)
    duplicates, excused = _audit(config, captions, queries, split)
    top_k = min(trec_depth, len(queries.clip_ids)) if trec else 0
    evaluation, knowledge = evaluate_checkpoint(
        checkpoint, config, captions, split=split, say=say, top_k=top_k, excused=excused, rescore=True
    )
    is_best = path != checkpoint
    chosen_on = "validation" if is_best else None
    result = result_of(evaluation, checkpoint, config, knowledge, captions, chosen_on=chosen_on)
    if trec:
        write_trec(
            trec,
            clip_ids=evaluation.clip_ids,
            text_ids=evaluation.text_ids,
            clip_of_text=evaluation.clip_of_text.tolist(),
            t2v=evaluation.top,
            v2t=evaluation.ranks.top_groups,
            tag=config.name,
        )
        say(f"rankings, {top_k} deep, are in {trec}")
    if result["leaky"]:
        say(LEAKY)
    result["duplicates"] = duplicates.counts
    name = split if is_best else f"{split}_{checkpoint.name}"
    write_json(output or checkpoint.parent / f"evaluation_{name}.json", result)
    write_json((output or checkpoint).parent / f"duplicates_{split}.json", duplicates.as_json())
    return result


def _audit(
    config: ExperimentConfig, captions: pa.Table, queries: Gallery, split: str
) -> tuple[Duplicates, Int[Tensor, "pairs 2"] | None]:
    """What stands twice in a split, and which answers to its queries are therefore not wrong; None where all others are."""
    own = captions.filter(pc.equal(captions["split"], split))
    equivalent = equivalent_clips(own, open_store(config, captions))
    texts, clips = excused_pairs(queries.texts, queries.clip_of_text.numpy(), queries.clip_ids, equivalent)
    excused = torch.from_numpy(np.stack([texts, clips], axis=1)) if len(texts) else None
    return find_duplicates(captions, split, equivalent), excused


def evaluate_checkpoint(
    checkpoint: Path,
    config: ExperimentConfig,
    captions: pa.Table,
    *,
    split: str,
    say: Say,
    queries: pa.Table | None = None,
    **how: Any,
) -> tuple[Evaluation, Knowledge | None]:
    """Evaluates a checkpoint, in this process or on workers.

    Args:
        checkpoint: folder.
        config: that of the checkpoint, perhaps with other places and resources.
        captions: the data set's.
        split: train, validation or test.
        say: is told what is going on.
        queries: asked in place of the split's captions, of the same clips; a caption table too.
        how: other arguments of `waver.evaluation.evaluate`: top_k, excused, rescore.

    Returns:
        The figures, and the knowledge that informed the videos; None for none.
    """
    store = open_store(config, captions)
    knowledge = None
    if config.informed_at_inference:
        knowledge = open_knowledge(config, captions, store, (split,))
        knowledge.check_taught(checkpoint, learned_from(checkpoint))
    say(f"evaluating {shown(checkpoint)} on the {split} split")
    asked = captions if queries is None else queries
    if config.resources.max_workers == 1 and not cluster_address():
        return evaluate_here(checkpoint, config, asked, store, knowledge, split=split, **how), knowledge
    with connect(num_cpus=local_cpus(config)) as where:
        say(where)
        return evaluate_on_workers(checkpoint, config, asked, store, knowledge, say=say, split=split, **how), knowledge


def open_store(config: ExperimentConfig, captions: pa.Table) -> ClipStore:
    """The clip store of an experiment.

    Raises:
        StoreError: where it is not there, decoded in another way, or was never asked for some of the clips.
    """
    store = ClipStore(config.clip_store)
    if store.settings.key != store_settings(config).key:
        asked = dataclasses.asdict(store_settings(config))
        raise StoreError(
            f"{shown(config.clip_store)} was decoded with {store.settings.key}, the configuration asks for {asked}"
        )
    asked, known = set(captions["clip_id"].to_pylist()), set(store.ledger["clip_id"].to_pylist())
    if unknown := sorted(asked - known):
        raise StoreError(
            f"{len(unknown)} of {len(asked)} clips were never ingested into {shown(config.clip_store)} "
            f"({', '.join(unknown[:3])}{', ...' if len(unknown) > 3 else ''}): run `waver ingest CONFIG`, which decodes "
            "what is missing"
        )
    here = dict(zip(captions["clip_id"].to_pylist(), captions["path"].to_pylist(), strict=True))
    there = dict(zip(store.ledger["clip_id"].to_pylist(), store.ledger["path"].to_pylist(), strict=True))
    if other := sorted(clip_id for clip_id in asked if here[clip_id] != there[clip_id]):
        raise StoreError(
            f"{len(other)} of {len(asked)} clips were decoded from other files into {shown(config.clip_store)} "
            f"({other[0]} from {there[other[0]]}, not {here[other[0]]}): run `waver ingest CONFIG`, which decodes them again"
        )
    return store


def open_dictionary(config: ExperimentConfig, captions: pa.Table) -> Dictionary:
    """The dictionary of an experiment.

    Raises:
        KnowledgeError: where it is not there, or was made of other captions.
    """
    dictionary = read_dictionary(config.dictionary)
    _check_captions(dictionary.manifest, captions, config)
    return dictionary


def open_knowledge(config: ExperimentConfig, captions: pa.Table, store: ClipStore, splits: Sequence[str]) -> Knowledge:
    """The knowledge of an experiment.

    Args:
        config: of the experiment.
        captions: its caption table.
        store: its clips.
        splits: of the clips that will be looked up.

    Raises:
        KnowledgeError: where it is not there, belongs to other captions, or lacks clips or phrases that are needed.
    """
    knowledge = Knowledge(config.knowledge_store)
    if not knowledge.manifest["complete"]:
        raise KnowledgeError(
            f"{shown(knowledge.path)} is not finished: run `waver match CONFIG` again, which goes on where it was"
        )
    _check_captions(knowledge.manifest["dictionary"], captions, config)
    if config.knowledge.top_k > knowledge.manifest["num_matches"]:
        raise KnowledgeError(
            f"knowledge.top_k = {config.knowledge.top_k}, and each clip has {knowledge.manifest['num_matches']} phrases in "
            f"{shown(knowledge.path)}: lower it"
        )
    decoded = set(store.ok_clip_ids())
    for split in splits:
        clips = set(captions["clip_id"].filter(pc.equal(captions["split"], split)).to_pylist()) & decoded
        if unknown := sorted(knowledge.unknown(list(clips))):
            released = config.knowledge.released
            remedy = (
                "name a released file that has them, set knowledge.at_inference to false if only training is covered, or "
                "take out knowledge.released and match by yourself"
                if released
                else "run `waver match CONFIG`, which matches what is missing"
            )
            raise KnowledgeError(
                f"nothing is known of {len(unknown)} of {len(clips)} clips of {split} ({', '.join(unknown[:3])}"
                f"{', ...' if len(unknown) > 3 else ''}) in {shown(knowledge.path)}: {remedy}"
            )
    return knowledge


def _captions_of(captions: pa.Table, splits: Sequence[str]) -> list[str]:
    return captions["caption"].filter(pc.is_in(captions["split"], value_set=pa.array(splits, pa.string()))).to_pylist()


def _digest(captions: list[str]) -> str:
    return hashlib.sha256("\n".join(captions).encode()).hexdigest()[:16]


def _check_captions(dictionary: dict, captions: pa.Table, config: ExperimentConfig) -> None:
    """Imported dictionaries tell no captions."""
    if "captions" in dictionary and dictionary["captions"] != _digest(_captions_of(captions, dictionary["splits"])):
        raise KnowledgeError(
            f"the captions of {', '.join(dictionary['splits'])} are not those that the dictionary was made of: run "
            f"`waver vocabulary CONFIG` again (it replaces {shown(config.dictionary)}), then `waver match CONFIG`"
        )


def local_cpus(config: ExperimentConfig) -> int:
    """CPUs that a cluster of this machine alone is given. They are a count, not a reservation: workers may share one."""
    resources = config.resources
    wanted = resources.max_workers * (resources.cpus_per_worker + resources.loaders_per_worker * CPUS_PER_LOADER)
    cpus = os.cpu_count() or 1
    return min(max(cpus, int(-(-wanted // 1))), _SHARES_OF_A_CPU * cpus)
