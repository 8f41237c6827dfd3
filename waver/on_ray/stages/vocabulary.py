"""Builds the dictionary of phrases from captions with Ray Data: each actor has a parser and counts phrases in blocks."""

import logging
import os
from collections.abc import Mapping
from contextlib import closing
from types import MappingProxyType

import numpy as np
import pyarrow as pa

from waver.config import ExperimentConfig
from waver.knowledge.errors import KnowledgeError
from waver.knowledge.phrase_file import read_phrases
from waver.knowledge.phrases import count_phrases, installed_parser, is_same_parser, load_parser, merge_counts
from waver.knowledge.store import Dictionary, build_dictionary, read_dictionary, write_dictionary
from waver.on_ray.cluster.blocks import ActorPool, map_blocks
from waver.on_ray.cluster.capacity import WorkerResources, count_cpus
from waver.on_ray.cluster.connection import connect
from waver.on_ray.stages.start import open_inputs
from waver.runs.inputs import captions_digest, captions_of_splits
from waver.tools.lock import hold_lock
from waver.tools.object_store import display_path, exists
from waver.tools.progress import track_progress

logger = logging.getLogger(__name__)


_CAPTIONS_PER_BLOCK = 1000
_CAPTIONS_PER_PARSER = 4000
"""Minimum per parser: loading another parser takes longer than parsing fewer captions."""


def make_vocabulary(
    captions: list[str],
    *,
    parser: str,
    min_count: int,
    node_labels: Mapping[str, str] = MappingProxyType({}),
    wait_s: float = 0.0,
    progress: bool = True,
) -> pa.Table:
    """Counts the phrases of captions; the result is the same for any number of workers.

    Args:
        captions: the captions. Of phrases with equal counts, the one that occurs first precedes.
        parser: name of a spaCy model.
        min_count: minimum count of a phrase.
        node_labels: labels of the nodes that parse; empty for all nodes.
        wait_s: seconds to wait for a node with these labels.
        progress: whether to show progress on standard error.

    Returns:
        Phrases (VOCABULARY_SCHEMA), the most frequent first.

    Raises:
        VocabularyError: if the parser is not installed on this machine.
        BlockError: if the parser cannot be loaded on another node.
        ClusterTooSmallError: if no node with these labels has a CPU.
    """
    load_parser(parser)  # report a missing parser before Ray starts
    table = pa.table({"caption": captions, "row": np.arange(len(captions))})
    with connect() as description:
        logger.info(description)
        parsers = min(count_cpus(node_labels, wait_s=wait_s), -(-len(table) // _CAPTIONS_PER_PARSER))
        # Small enough to keep all parsers busy at the end, and large enough to hold equal captions, which are parsed once.
        size = max(1, min(_CAPTIONS_PER_BLOCK, len(table) // (2 * parsers)))
        blocks = [table.slice(first, size) for first in range(0, len(table), size)]
        pool = ActorPool(parsers, actor=WorkerResources(1.0, labels=node_labels), wait_s=wait_s)
        with closing(map_blocks(_Counter, (parser,), blocks, pool)) as results:
            counted = track_progress(
                results, doing="parsing", unit="captions", total=len(table), size=lambda part: part[0], enabled=progress
            )
            return merge_counts((counts for _, counts in counted), min_count)


class _Counter:
    """Returns the number of captions in a block, and the counts of their phrases (COUNTS_SCHEMA)."""

    def __init__(self, parser: str):
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        self._parser = load_parser(parser)

    def __call__(self, block: pa.Table) -> tuple[int, pa.Table]:
        return len(block), count_phrases(block["caption"].to_pylist(), block["row"].to_pylist(), self._parser)


def run_vocabulary(config: ExperimentConfig, *, progress: bool = True) -> Dictionary:
    """Builds the dictionary of an experiment, or opens it if it was already built from the same captions.

    With `vocabulary.file` the phrases are the lines of that file.

    Args:
        config: configuration of the experiment.
        progress: whether to show progress on standard error.

    Raises:
        StartError: with everything that prevents the stage, such as a missing parser, before Ray starts.
        LockedError: if another process builds the dictionary.
        KnowledgeError: if the captions have no phrases, or `vocabulary.file` cannot be read.
    """
    if config.vocabulary.file:
        return _read_file(config)
    settings, table = config.vocabulary, open_inputs(config, "vocabulary").captions
    assert table is not None, "a dictionary cannot be built without captions"
    captions = captions_of_splits(table, settings.splits)
    source = {
        "splits": list(settings.splits),
        "num_captions": len(captions),
        "captions": captions_digest(captions),
        "min_count": settings.min_count,
    }
    if exists(config.dictionary / "manifest.json"):
        dictionary = read_dictionary(config.dictionary)
        same_parser = is_same_parser(dictionary.manifest.get("parser", ""), settings.parser)
        if same_parser and dictionary.manifest.items() >= source.items():
            logger.info(f"{display_path(config.dictionary)} has the phrases of these {len(captions)} captions")
            return dictionary
    logger.info(f"extracting phrases from {len(captions)} captions of {', '.join(settings.splits)}")
    # Phrases and manifest are two files, which could be of two commands if the captions change between these.
    with hold_lock(config.dictionary, "extracting phrases"):
        phrases = make_vocabulary(
            captions,
            parser=settings.parser,
            min_count=settings.min_count,
            node_labels=config.ingest.node_labels,
            wait_s=config.resources.wait_s,
            progress=progress,
        )
        if len(phrases) == 0:
            raise KnowledgeError(
                f"no phrase was found in {len(captions)} captions: captions must be sentences with subject, verb and "
                f"object, in the language of the parser ({settings.parser})"
            )
        source["parser"] = installed_parser(settings.parser)
        dictionary = build_dictionary(phrases, leaky=any(split != "train" for split in settings.splits), **source)
        write_dictionary(config.dictionary, dictionary)
    return dictionary


def _read_file(config: ExperimentConfig) -> Dictionary:
    """Builds the dictionary from the lines of `vocabulary.file`; an equal line counts once more."""
    settings = config.vocabulary
    assert settings.file is not None, "the dictionary comes from a file"
    phrases = read_phrases(settings.file)
    dictionary = build_dictionary(phrases, leaky=settings.leaky, file=settings.file.name)
    if (
        not exists(config.dictionary / "manifest.json")
        or read_dictionary(config.dictionary).manifest != dictionary.manifest
    ):
        with hold_lock(config.dictionary, "writing the dictionary"):
            write_dictionary(config.dictionary, dictionary)
    logger.info(f"{display_path(config.dictionary)} has the {len(phrases)} phrases of {display_path(settings.file)}")
    return dictionary
