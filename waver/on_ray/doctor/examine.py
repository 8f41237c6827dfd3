"""`waver doctor`: runs all checks of an experiment, independently of each other, so that one run reports all problems."""

import logging
import shlex
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray

from waver.config import ConfigError, ExperimentConfig, config_error, load_draft
from waver.doctor import data
from waver.doctor.captions import check_caption_lengths, check_shared_captions
from waver.doctor.drafts import check_draft
from waver.doctor.findings import CheckedStage, Checks, Finding, as_json, can_start, count_levels
from waver.doctor.preflight import NOTHING_ELSE, check_inputs
from waver.on_ray.cluster.connection import cluster_address, connect
from waver.on_ray.doctor.all_reduce import check_all_reduce
from waver.on_ray.doctor.capacity import check_cluster
from waver.on_ray.doctor.nodes import check_nodes
from waver.runs.environment import environment
from waver.tools.commands import complete_commands
from waver.tools.files import write_json
from waver.tools.object_store import display_path, exists

logger = logging.getLogger(__name__)


def run_doctor(
    path: Path,
    overrides: Callable[[], Mapping[str, Any]],
    *,
    before: CheckedStage,
    show: Callable[[list[Finding]], None],
    arguments: str = "",
    output: Path | None = None,
) -> list[Finding]:
    """Checks an experiment, prints the findings, and writes a report with all details.

    Args:
        path: YAML file of the experiment.
        overrides: returns the overrides of the command line, dotted key -> value, or raises ConfigError.
        before: the stage that is to start.
        show: prints the findings.
        arguments: that name the experiment in a command, with its overrides; by default its path.
        output: JSON file of the report; by default `<storage>/doctor/<name>.json`.

    Returns:
        The findings; a configuration error is one of them.
    """
    config, findings = _check_configuration(path, overrides)
    if config:
        findings += examine(config, before=before)
    arguments = arguments or shlex.quote(str(path))
    findings = [
        replace(one, found=complete_commands(one.found, arguments), remedy=complete_commands(one.remedy, arguments))
        for one in findings
    ]
    report = output or (config and config.storage.folder / "doctor" / f"{config.name}.json")
    if report:
        content = {
            "experiment": str(path),
            "config": config and config.digest(),
            "before": before,
            "can_start": can_start(findings),
            "findings": as_json(findings),
            "environment": environment(),
        }
        try:
            write_json(report, content)
        except OSError as error:
            found = f"{display_path(report)} cannot be written ({error.strerror or error})"
            findings.append(Finding("error", "report", found, "choose another file with --output"))
            report = None
    show(findings)
    verdict = "can start" if can_start(findings) else "cannot start"
    logger.info(f"{count_levels(findings)}: `waver {before} {arguments}` {verdict}")
    if report:
        logger.info(f"report with all details: {display_path(report)}")
    if config and (stage := next_stage(config, findings)):
        logger.info(f"next: waver {stage} {arguments}")
    return findings


def _check_configuration(
    path: Path, overrides: Callable[[], Mapping[str, Any]]
) -> tuple[ExperimentConfig | None, list[Finding]]:
    """Returns the experiment, or None if it has mistakes, and findings; then also on what it names."""
    # A command with a wrong path would only fail again.
    again = "run `waver doctor CONFIG`" if path.is_file() else "name the file"
    name, remedy = "configuration", f"correct it, and {again}"
    try:
        draft = load_draft(path, overrides())
    except ConfigError as error:
        return None, [Finding("error", name, str(error), f"{remedy}: {NOTHING_ELSE}")]
    if draft.mistakes:
        error = config_error(path, draft.mistakes)
        found = Finding("error", name, str(error), f"{remedy}: only what it names without doubt was checked")
        return None, [found, *check_draft(draft)]
    config = draft.config
    return config, [Finding("ok", name, f"{path}, named {config.name}, digest {config.digest()}")]


def examine(config: ExperimentConfig, *, before: CheckedStage) -> list[Finding]:
    """Runs all checks of an experiment before a stage of it; returns their findings."""
    checks = Checks(lambda name: logger.info(f"checking {name}"), bugs_are_findings=True)
    on_cluster = bool(ray.is_initialized() or cluster_address())
    inputs = check_inputs(checks, config, before, on_cluster=on_cluster, later=True)
    if any(finding.remedy == NOTHING_ELSE for finding in checks.findings):
        return checks.findings
    if (captions := inputs.captions) is None:
        skipped = "splits, decoding, duplicates, clip store and run"
        checks.findings.append(Finding("info", "not checked", f"{skipped}: they need a caption table"))
    else:
        checks.run("splits", data.check_splits, config, captions)
        checks.run("captions", check_caption_lengths, config, captions)
        checks.run("shared captions", check_shared_captions, config, captions)
        level = "error" if before == "ingest" else "warning"
        checks.run("decoding", data.check_decoding, config, captions, level=level)
        if inputs.store:
            checks.run("segments", data.check_segments, captions, inputs.store)
        checks.run("duplicates", data.check_duplicates, captions, inputs.store)
    checks.run("cluster and memory", check_cluster, config, captions, inputs.model, before=before)
    # A Ray that waver starts itself has one node: there is nothing to check between nodes.
    if on_cluster and can_start(f for f in checks.findings if f.check == "cluster"):
        with connect():
            checks.run("nodes", check_nodes, config)
            between = [f for f in checks.findings if f.check in ("connections", "shared storage")]
            if before == "train" and inputs.model and can_start(between):
                gradient_bytes = 4 * inputs.model.num_trained
                checks.run("all-reduce", check_all_reduce, config, gradient_bytes=gradient_bytes)
    return checks.findings


def next_stage(config: ExperimentConfig, findings: list[Finding]) -> str:
    """Returns the stage to run next, if missing results of stages are the only errors; otherwise an empty string."""
    errors = [finding for finding in findings if finding.level == "error"]
    failed = {finding.check for finding in errors}
    stages = {"clip store": "ingest", "dictionary": "vocabulary", "knowledge": "match"}
    if not failed or failed - stages.keys() or any("waver" not in finding.remedy for finding in errors):
        return ""
    stage = stages[next(name for name in stages if name in failed)]
    lacks_dictionary = not config.knowledge.released and not exists(config.dictionary / "manifest.json")
    return "vocabulary" if stage == "match" and lacks_dictionary else stage
