"""Captions -> dictionary of phrases, through Ray Data: each actor holds a parser and counts the phrases of its blocks."""

import os
from collections.abc import Callable, Mapping
from contextlib import closing
from types import MappingProxyType

import numpy as np
import pyarrow as pa

from waver.on_ray.blocks import map_blocks
from waver.on_ray.cluster import connect
from waver.on_ray.progress import show
from waver.on_ray.room import num_cpus
from waver.vocabulary import count_phrases, load_parser, merge_counts

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
    say: Callable[[str], None],
    progress: bool = True,
) -> pa.Table:
    """Phrases of captions, the same for any number of workers.

    Args:
        captions: in their order, by which ties are broken.
        parser: name of a spaCy model.
        min_count: phrases that occur less often are left out.
        node_labels: of the nodes that parse; none for all nodes.
        wait_s: how long a cluster may take to have such a node.
        say: is told what is going on.
        progress: whether to show it, on standard error.

    Returns:
        VOCABULARY_SCHEMA, commonest first.

    Raises:
        VocabularyError: where the parser is not installed.
        ClusterTooSmall: where no such node has a CPU.
        BlockError: where it cannot be loaded on another node.
    """
    load_parser(parser)  # rather a sentence now than from the actors
    table = pa.table({"caption": captions, "row": np.arange(len(captions))})
    with connect() as where:
        say(where)
        parsers = min(num_cpus(node_labels, wait_s=wait_s), -(-len(table) // _CAPTIONS_PER_PARSER))
        # The last blocks should keep all parsers busy; identical captions stand near each other and are parsed once.
        size = max(1, min(_CAPTIONS_PER_BLOCK, len(table) // (2 * parsers)))
        blocks = [table.slice(first, size) for first in range(0, len(table), size)]
        pool = {"workers": parsers, "labels": node_labels, "say": say, "wait_s": wait_s}
        with closing(map_blocks(_Counter, (parser,), blocks, **pool)) as results:
            counted = show(
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
