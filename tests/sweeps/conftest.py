"""A sweep as its files tell of it, without having been run."""

import json
from pathlib import Path

import pytest

from waver.config import SweepConfig
from waver.sweeps.folder import begin_trial, run_folder
from waver.tools.files import write_json

METRICS = (
    "t2v/R@1",
    "t2v/R@5",
    "t2v/R@10",
    "t2v/MdR",
    "t2v/MnR",
    "v2t/R@1",
    "v2t/R@5",
    "v2t/R@10",
    "v2t/MdR",
    "v2t/MnR",
)


@pytest.fixture
def sweep() -> SweepConfig:
    return SweepConfig.model_validate(
        {
            "name": "s",
            "base": "base.yaml",
            "space": {
                "train.lr": {"loguniform": [1e-4, 1]},
                "similarity.kind": {"choice": ["wti", "dp"]},
                "similarity.wti_layers": {"choice": [1, 2, 3], "when": {"similarity.kind": "wti"}},
            },
            "repeats": 2,
        }
    )


@pytest.fixture
def write_trial(tmp_path: Path, tiny_config):
    """Writes the folder of a trial: for each seed the t2v/R@1 after each epoch; `gallery` has (clips, captions).

    `stage` is "then" for a fine-tuned trial.
    """
    (tmp_path / "base.yaml").write_text(tiny_config.to_yaml())

    def write(
        number: int,
        point: dict,
        seeds: list[list[float]],
        status: str | None = None,
        error: str = "",
        gallery=(),
        stage: str = "",
    ) -> Path:
        trial = begin_trial(tmp_path / stage, number, point)
        for seed, values in enumerate(seeds):
            folder = run_folder(trial, seed)
            folder.mkdir()
            rows = [
                {"step": epoch, "epoch": epoch, "split": "validation"}
                | dict(zip(("gallery_size", "num_queries"), gallery, strict=False))
                | {name: value + 0.01 * i for i, name in enumerate(METRICS)}
                for epoch, value in enumerate(values, 1)
            ]
            (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            if len(values) == tiny_config.train.epochs:
                write_json(folder / "result.json", {})
            for epoch in range(1, len(values) + 1):
                (folder / f"checkpoint_epoch_{epoch:04d}").mkdir()
        write_json(trial / "progress.json", {"seconds": 10.0 + number, "gpu_seconds": 5.0, "time_s": 1e9 + 60 * number})
        if status:
            write_json(trial / "outcome.json", {"status": status, "error": error})
        return trial

    return write


@pytest.fixture
def written(write_trial) -> None:
    """Five trials, one of each kind and two finished ones."""
    write_trial(0, {"train.lr": 0.01, "similarity.kind": "dp"}, [[1.0, 20.0], [30.0, 10.0]], "finished")
    write_trial(
        1,
        {"train.lr": 0.02, "similarity.kind": "wti", "similarity.wti_layers": 2},
        [[9.0, 30.0], [40.0, 1.0]],
        "finished",
    )
    write_trial(2, {"train.lr": 0.5, "similarity.kind": "dp"}, [[50.0]], "stopped")
    write_trial(3, {"train.lr": 1.0, "similarity.kind": "dp"}, [], "failed", "loss = nan <at> step 3")
    write_trial(4, {"train.lr": 0.1, "similarity.kind": "wti", "similarity.wti_layers": 1}, [[60.0, 60.0], [60.0]])
