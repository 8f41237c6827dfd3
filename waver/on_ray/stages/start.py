"""Opens the inputs of a stage after all checks that need no Ray, so that what is wrong is told at once and in seconds."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from waver.config import ExperimentConfig
from waver.doctor.findings import Checks, Finding, Stage, require_start
from waver.doctor.preflight import Inputs, check_evaluation, check_inputs
from waver.on_ray.cluster.connection import cluster_address
from waver.on_ray.doctor.capacity import check_before_ray


def open_inputs(config: ExperimentConfig, stage: Stage, *, run_folder: Path | None = None) -> Inputs:
    """Returns the inputs of a stage; those that the stage needs are there.

    Args:
        config: configuration of the experiment.
        stage: the stage that is to start.
        run_folder: folder of the run; by default that of the configuration.

    Raises:
        StartError: with everything that prevents the stage.
    """
    checks = Checks()
    inputs = check_inputs(checks, config, stage, run_folder=run_folder, on_cluster=cluster_address() is not None)
    checks.run("cluster", check_before_ray, config, before=stage)
    require_start(checks.findings, stage)
    return inputs


def check_trials(configs: Iterable[ExperimentConfig]) -> None:
    """Checks the experiments of a sweep, except for results of earlier stages, which the sweep makes itself.

    Raises:
        StartError: with everything that prevents one of them.
    """
    findings: dict[tuple[str, str], Finding] = {}
    different = {_checked_settings(config): config for config in configs}
    for config in different.values():
        checks = Checks()
        check_inputs(checks, config, "tune", on_cluster=cluster_address() is not None)
        checks.run("cluster", check_before_ray, config, before="tune")
        findings |= {(finding.check, finding.found): finding for finding in checks.findings}
    require_start(findings.values(), "tune")


def _checked_settings(config: ExperimentConfig) -> str:
    """Returns the settings that the checks depend on, so that points with other learning rates are checked once."""
    sections = {
        "data",
        "video",
        "ingest",
        "text",
        "model",
        "similarity",
        "vocabulary",
        "knowledge",
        "resources",
        "storage",
    }
    memory = {"global_batch_size", "freeze", "grad_checkpointing", "micro_batch_size"}
    train = (config.train.model_dump(include=memory), config.train.backbone_lr_scale == 0)
    return repr((config.model_dump(include=sections), train, config.uses_knowledge, config.uses_fusion))


def open_evaluations(
    checkpoints: Mapping[Path, ExperimentConfig], split: str, *, writes: Sequence[Path], stage: str
) -> dict[Path, Inputs]:
    """Checks what the evaluation of some checkpoints reads and where it writes; returns the inputs of each.

    Args:
        checkpoints: folder of a checkpoint -> its configuration.
        split: train, validation or test.
        writes: folders for the results; they need not exist.
        stage: name of the command, for the error.

    Returns:
        Folder of a checkpoint -> caption table.

    Raises:
        StartError: with everything that prevents one of them.
    """
    findings: dict[tuple[str, str], Finding] = {}
    inputs = {}
    for checkpoint, config in checkpoints.items():
        checks = Checks()
        inputs[checkpoint] = _check_evaluation(checks, checkpoint, config, split, writes)
        findings |= {(finding.check, finding.found): finding for finding in checks.findings}
    require_start(findings.values(), stage)
    return inputs


def open_zero_shot(config: ExperimentConfig, split: str, *, writes: Sequence[Path]) -> Inputs:
    """Checks what the evaluation of a backbone as it is reads and where it writes; returns its inputs.

    Args:
        config: see `waver.runs.untrained.zero_shot_experiment`.
        split: train, validation or test.
        writes: folders for the results; they need not exist.

    Raises:
        StartError: with everything that prevents it.
    """
    checks = Checks()
    inputs = _check_evaluation(checks, None, config, split, writes)
    require_start(checks.findings, "evaluate")
    return inputs


def _check_evaluation(
    checks: Checks, checkpoint: Path | None, config: ExperimentConfig, split: str, writes: Sequence[Path]
) -> Inputs:
    inputs = check_evaluation(checks, checkpoint, config, split, writes=writes)
    if config.resources.max_workers > 1 or cluster_address():
        checks.run("cluster", check_before_ray, config, before="match")
    return inputs
