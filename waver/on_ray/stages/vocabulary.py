"""Captions -> dictionary of phrases, through Ray Data: each actor holds a parser and counts the phrases of its blocks."""

import logging
import os
from collections.abc import Mapping
from contextlib import closing
from types import MappingProxyType

import numpy as np
import pyarrow as pa

from waver.config import ExperimentConfig
from waver.knowledge.phrases import count_phrases, load_parser, merge_counts
from waver.knowledge.store import Dictionary, KnowledgeError, build_dictionary, read_dictionary, write_dictionary
from waver.on_ray.cluster.blocks import ActorPool, map_blocks
from waver.on_ray.cluster.capacity import WorkerResources, count_cpus
from waver.on_ray.cluster.connection import connect
from waver.runs.inputs import captions_digest, captions_of_splits, load_captions
from waver.tools.object_store import display_path, exists
from waver.tools.progress import track_progress

logger = logging.getLogger(__name__)


_CAPTIONS_PER_BLOCK = 1000
_CAPTIONS_PER_PARSER = 4000
"""Fewer are parsed sooner than another parser is loaded."""


def make_vocabulary(
    captions: list[str],
    *,
    parser: str,
    min_count: int,
    node_labels: Mapping[str, str] = MappingProxyType({}),
    wait_s: float = 0.0,
    progress: bool = True,
) -> pa.Table:
    """Phrases of captions, the same for any number of workers.

    Args:
        captions: in their order, by which ties are broken.
        parser: name of a spaCy model.
        min_count: phrases that occur less often are left out.
        node_labels: of the nodes that parse; none for all nodes.
        wait_s: how long a cluster may take to have such a node.
        progress: whether to show it, on standard error.

    Returns:
        VOCABULARY_SCHEMA, commonest first.

    Raises:
        VocabularyError: where the parser is not installed.
        ClusterTooSmallError: where no such node has a CPU.
        BlockError: where it cannot be loaded on another node.
    """
    load_parser(parser)  # rather a sentence now than from the actors
    table = pa.table({"caption": captions, "row": np.arange(len(captions))})
    with connect() as where:
        logger.info(where)
        parsers = min(count_cpus(node_labels, wait_s=wait_s), -(-len(table) // _CAPTIONS_PER_PARSER))
        # The last blocks should keep all parsers busy; identical captions stand near each other and are parsed once.
        size = max(1, min(_CAPTIONS_PER_BLOCK, len(table) // (2 * parsers)))
        blocks = [table.slice(first, size) for first in range(0, len(table), size)]
        pool = ActorPool(parsers, actor=WorkerResources(1.0, labels=node_labels), wait_s=wait_s)
        with closing(map_blocks(_Counter, (parser,), blocks, pool)) as results:
            counted = track_progress(
                results, doing="parsing", unit="captions", total=len(table), size=lambda part: part[0], enabled=progress
            )
            return merge_counts((counts for _, counts in counted), min_count)


class _Counter:
    """Counts the phrases of a block of captions."""

    def __init__(self, parser: str):
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        self._parser = load_parser(parser)

    def __call__(self, block: pa.Table) -> tuple[int, pa.Table]:
        return len(block), count_phrases(block["caption"].to_pylist(), block["row"].to_pylist(), self._parser)


def run_vocabulary(config: ExperimentConfig, *, progress: bool = True) -> Dictionary:
    """Makes the dictionary of phrases of an experiment's captions, or opens it where these captions were read before.

    Raises:
        KnowledgeError: where the experiment imports released phrases, or its captions have none.
    """
    if config.knowledge.released:
        raise KnowledgeError(
            "knowledge.released names files that bring their own phrases: go on with `waver match CONFIG`, or take it out"
        )
    settings = config.vocabulary
    chosen = captions_of_splits(load_captions(config), settings.splits)
    source = {
        "splits": list(settings.splits),
        "num_captions": len(chosen),
        "captions": captions_digest(chosen),
        "parser": settings.parser,
        "min_count": settings.min_count,
    }
    if exists(config.dictionary / "manifest.json"):
        dictionary = read_dictionary(config.dictionary)
        if dictionary.manifest.items() >= source.items():
            logger.info(f"{display_path(config.dictionary)} has the phrases of these {len(chosen)} captions")
            return dictionary
    logger.info(f"looking for phrases in {len(chosen)} captions of {', '.join(settings.splits)}")
    phrases = make_vocabulary(
        chosen,
        parser=settings.parser,
        min_count=settings.min_count,
        node_labels=config.ingest.node_labels,
        wait_s=config.resources.wait_s,
        progress=progress,
    )
    if len(phrases) == 0:
        raise KnowledgeError(
            f"no phrase was found in {len(chosen)} captions: they need sentences with a subject, a verb and an object, in "
            f"the language of {settings.parser}"
        )
    dictionary = build_dictionary(phrases, leaky=any(split != "train" for split in settings.splits), **source)
    write_dictionary(config.dictionary, dictionary)
    return dictionary
