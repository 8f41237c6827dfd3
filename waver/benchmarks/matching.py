"""Matching clips with the phrases of a large dictionary, beside a matrix product alone and a full sort of each clip."""

from collections.abc import Callable

import numpy as np

from waver.benchmarks.context import Context
from waver.benchmarks.synthetic import random_vectors
from waver.benchmarks.table import Row, not_measured, rows_of
from waver.benchmarks.timing import take_turns
from waver.knowledge.teacher import match_clips

NUM_MATCHES = 30
WAVER, PRODUCT, CONVENTIONAL = "waver", "matrix product alone", "conventional"


def measure_matching(context: Context) -> list[Row]:
    """Measures clips per second, from embeddings of clips and phrases."""
    sizes = context.sizes
    clips = random_vectors(sizes.matched_clips, sizes.width, seed=8)
    phrases = random_vectors(sizes.phrases, sizes.width, seed=9)
    ways: dict[str, Callable[[], object]] = {
        WAVER: lambda: match_clips(clips, phrases, NUM_MATCHES),
        PRODUCT: lambda: phrases @ clips.T,
    }
    notes = {}
    if conventional := context.conventional:
        ways[CONVENTIONAL] = lambda: conventional.match(clips.numpy(), phrases.numpy(), NUM_MATCHES)
        differing = match_clips(clips, phrases, NUM_MATCHES)[0].numpy() != conventional.match(
            clips.numpy(), phrases.numpy(), NUM_MATCHES
        )
        notes[WAVER] = f"{np.count_nonzero(differing)} of {differing.size} phrase ids differ from the conventional ones"
    found = take_turns(ways, context.repeats)
    work = f"match, {sizes.phrases:,} phrases, {sizes.matched_clips} clips"
    rows = rows_of(
        work,
        found,
        reference=CONVENTIONAL if conventional else PRODUCT,
        num_items=sizes.matched_clips,
        unit="clips/s",
        targets={WAVER: "750 clips/s"},
        notes=notes,
    )
    return rows if conventional else [*rows, not_measured(work, CONVENTIONAL, context.why_not)]
