"""The quickstart's experiment, `experiment.yaml`."""

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from waver.config import ExperimentConfig, load_config


def quickstart_config(output: Path, workers: int, overrides: Mapping[str, Any]) -> ExperimentConfig:
    """The experiment, with everything in one folder."""
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
