"""Checks of captions as the model reads them: how many are cut, and how many stand on several clips."""

from collections.abc import Iterator
from dataclasses import asdict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from waver.config import ExperimentConfig
from waver.doctor.findings import Finding
from waver.model.errors import BackboneError
from waver.training.plan import count_shared_captions, describe_shared_captions, measure_truncations


def check_caption_lengths(config: ExperimentConfig, captions: pa.Table) -> Iterator[Finding]:
    """Counts the captions that are longer than the model reads."""
    try:
        truncations = measure_truncations(config, captions)
    except BackboneError:  # the check of the model reports it
        return
    for split, truncation in truncations.items():
        name = f"captions of {split}"
        if not truncation.num_cut:
            yield Finding("ok", name, f"all have at most text.max_words = {config.text.max_words} tokens")
            continue
        remedy = "raise text.max_words" if truncation.longest <= truncation.max_positions else "shorten the captions"
        yield Finding("warning", name, truncation.describe(config.text.max_words), remedy, details=asdict(truncation))


def check_shared_captions(config: ExperimentConfig, captions: pa.Table) -> Iterator[Finding]:
    """Counts the training captions that stand on more than one clip."""
    rows = np.flatnonzero(pc.equal(captions["split"], "train").to_numpy())
    try:
        num_shared = count_shared_captions(config, captions, rows)
    except BackboneError:  # the check of the model reports it
        return
    if num_shared:
        yield Finding("info", "shared captions", describe_shared_captions(config, num_shared, len(rows)))
    else:
        yield Finding("ok", "shared captions", "each training caption stands on one clip")
