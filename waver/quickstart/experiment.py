"""The configuration of the quickstart, from `experiment.yaml`."""

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from waver.config import ExperimentConfig, load_config


def quickstart_config(output: Path, workers: int, overrides: Mapping[str, Any]) -> ExperimentConfig:
    """Returns the configuration of the quickstart, with all files below `output`.

    Args:
        output: folder of the world, the backbone and the storage.
        workers: number of DDP workers.
        overrides: dotted key -> value, for further settings.
    """
    return load_config(
        Path(str(files("waver.quickstart") / "experiment.yaml")),
        {
            "data.annotations": str(output / "world" / "captions.jsonl"),
            "data.videos": str(output / "world"),
            "model.weights": str(output / "backbone.safetensors"),
            "storage.path": str(output),
            "resources.workers": workers,
            **overrides,
        },
    )
