"""Makes the writing-style report of runs: evaluates each of them on the same queries and writes the metrics."""

import importlib.util
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from waver.config import ExperimentConfig, RobustnessConfig
from waver.data.clip_store import ClipStore
from waver.evaluation.evaluate import Evaluation, EvaluationOptions
from waver.evaluation.robustness.measures import ANSWER_DEPTH, Answers
from waver.evaluation.robustness.page import write_page
from waver.evaluation.robustness.queries import (
    TRACKS,
    Queries,
    Query,
    RobustnessError,
    build_queries,
    queries_digest,
    queries_to_captions,
    reference_rows,
)
from waver.evaluation.robustness.report import RunMetrics, compute_run_metrics, make_report
from waver.evaluation.robustness.rewriting import (
    CONTROLS,
    RULES,
    ImportedRewrite,
    Rule,
    available_rules,
    parse_captions,
    read_rewrites,
    rewrite,
)
from waver.knowledge.control import control_text
from waver.knowledge.phrases import VocabularyError, load_parser
from waver.on_ray.stages.evaluate import evaluate_checkpoint
from waver.on_ray.stages.start import open_evaluations
from waver.runs.checkpoint import checkpoint_config
from waver.runs.folder import find_checkpoint
from waver.runs.origin import read_origin
from waver.runs.results import result_of
from waver.tools.commands import completed_commands, config_arguments, to_assignments
from waver.tools.files import atomic_write, write_json

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Source:
    """One run of the report."""

    name: str
    path: Path
    checkpoint: Path
    config: ExperimentConfig
    captions: pa.Table
    store: ClipStore


def run_robustness(
    runs: Sequence[Path],
    settings: RobustnessConfig,
    overrides: Mapping[str, Any],
    *,
    output: Path | None = None,
) -> tuple[dict[str, Any], Path]:
    """Makes the report on one or several runs; the others are compared with the first.

    Args:
        runs: folders of runs, whose best checkpoint is evaluated, or of checkpoints.
        settings: configuration of the report.
        overrides: dotted key -> value for the paths and resources of the experiments.
        output: folder of the report; by default `robustness_<split>` in the folder of the run, or for several runs
            `robustness_<split>_<names>` beside them.

    Returns:
        The report (see `make_report`), and its folder with report.json, report.html, plots, and queries.parquet, which has
        the rank and top clips of every query.

    Raises:
        RobustnessError: if scipy is not installed, the runs have different clips or captions, or there is only one version
            of every caption.
    """
    if importlib.util.find_spec("scipy") is None:
        raise RobustnessError(
            "the report needs scipy for its tests, and matplotlib for its plots: pip install 'waver[robustness]'"
        )
    sources = _open_sources(runs, overrides, settings.split, output)
    imported = _read_imported(sources[0].captions, settings)
    queries, references, notes = _collect_queries(sources[0].captions, settings, imported)
    logger.info(_count_text(queries))
    table = queries_to_captions(queries, references)
    evaluated = [_evaluate_source(source, queries, table, settings.split, overrides) for source in sources]
    metrics = [metrics for metrics, _ in evaluated]
    notes += [note for source, run in zip(sources, metrics, strict=True) for note in _notes_on(source, run)]
    about = {
        "split": settings.split,
        "reference": settings.reference or "the first caption of each clip",
        "queries": queries_digest(queries),
        "imported": _count_authors(imported),
        "notes": notes,
        "sources": [described for _, described in evaluated],
    }
    logger.info("computing bootstrap intervals over videos")
    report = make_report(
        metrics,
        queries,
        about=about,
        resamples=settings.resamples,
        permutations=settings.permutations,
        seed=settings.seed,
    )
    folder = (output or _default_folder(sources, settings.split)).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "report.json", report)
    _write_queries(folder / "queries.parquet", queries, metrics)
    for sentence in write_page(folder / "report.html", report):
        logger.info(sentence)
    return report, folder


def _open_sources(runs: Sequence[Path], overrides: Mapping[str, Any], split: str, output: Path | None) -> list[_Source]:
    """Finds checkpoints, configurations and captions of the runs; checks that their clips and captions are the same."""
    checkpoints = [find_checkpoint(path) for path in runs]
    configs = {
        checkpoint: checkpoint_config(checkpoint, {"resources.workers": 1, **overrides}) for checkpoint in checkpoints
    }
    writes = [output.absolute() if output else checkpoints[0].absolute().parent]
    inputs = open_evaluations(configs, split, writes=writes, stage="robustness")
    sources: list[_Source] = []
    for path, checkpoint in zip(runs, checkpoints, strict=True):
        config = configs[checkpoint]
        name = config.name if path != checkpoint else f"{config.name}/{checkpoint.name}"
        if (origin := read_origin(checkpoint)) is not None:
            name += f" ({origin.kind})"
        captions, store = inputs[checkpoint].captions, inputs[checkpoint].store
        assert captions is not None, "a report cannot start without captions"
        assert store is not None, "a report cannot start without clip store"
        sources.append(_Source(name, path, checkpoint, config, captions, store))
    names = [source.name for source in sources]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise RobustnessError(f"{', '.join(twice)}: given twice; a run cannot be compared with itself")
    columns = ["clip_id", "video_id", "caption_index", "caption", "style"]

    def split_captions(source: _Source) -> pa.Table:
        rows = source.captions.filter(pc.equal(source.captions["split"], split)).select(columns)
        return rows.sort_by([("clip_id", "ascending"), ("caption_index", "ascending")])

    first = split_captions(sources[0])
    for source in sources[1:]:
        if not split_captions(source).equals(first):
            raise RobustnessError(
                f"{source.name} and {sources[0].name} have different clips or captions in {split}, but runs are "
                "compared on the same queries and gallery: make one report for each"
            )
    return sources


def _evaluate_source(
    source: _Source, queries: Queries, table: pa.Table, split: str, overrides: Mapping[str, Any]
) -> tuple[RunMetrics, dict[str, Any]]:
    """Ranks the gallery for every query with the model of one run.

    Args:
        source: the run.
        queries: of the report.
        table: the same queries as a caption table.
        split: whose clips are the gallery.
        overrides: dotted key -> value, for the commands in error messages.

    Returns:
        The metrics of the run, and the fields of its evaluation result that describe model and hardware.
    """
    with completed_commands(config_arguments(source.checkpoint / "config.yaml", to_assignments(overrides))):
        evaluation, knowledge = evaluate_checkpoint(
            source.checkpoint,
            source.config,
            source.captions,
            source.store,
            split=split,
            queries=table,
            options=EvaluationOptions(top_k=ANSWER_DEPTH),
        )
    assert evaluation.clip_ids == queries.clip_ids
    assert np.array_equal(evaluation.clip_of_text.numpy(), queries.clip)
    chosen_on = "validation" if source.path != source.checkpoint else None
    result = result_of(evaluation, source.checkpoint, source.config, knowledge, source.captions, chosen_on=chosen_on)
    return compute_run_metrics(source.name, _to_answers(evaluation), queries), _describe_source(source, result)


def _collect_queries(
    captions: pa.Table, settings: RobustnessConfig, imported: Mapping[Path, Sequence[ImportedRewrite]]
) -> tuple[Queries, pa.Table, list[str]]:
    """Builds the queries; returns them, the reference captions, and notes on skipped rules and tracks."""
    references = reference_rows(captions, settings.split, settings.reference)
    rules = _chosen_rules(settings)
    controls = list(CONTROLS.values()) if settings.controls else []
    notes: list[str] = []
    docs = None
    texts = references["caption"].to_pylist()
    if any(rule.needs_parse for rule in (*rules, *controls)):
        try:
            parser = load_parser(settings.parser)
        except VocabularyError as error:
            rules, absent = available_rules(rules, parsed=False)
            controls, absent_controls = available_rules(controls, parsed=False)
            names = ", ".join(rule.key for rule in (*absent, *absent_controls))
            notes.append(f"skipped: {names}, which need a parser. {error}")
        else:
            logger.info(f"parsing {len(texts)} captions")
            docs = parse_captions(texts, parser)
    queries = build_queries(
        captions,
        references,
        natural="natural" in settings.tracks,
        rules={rule.key: rewrite(texts, rule, seed=settings.seed, docs=docs) for rule in rules},
        imported=[
            Query(row.clip_id, row.text, "imported", row.style, row.caption_index)
            for rows in imported.values()
            for row in rows
        ],
        controls={rule.key: rewrite(texts, rule, seed=settings.seed, docs=docs) for rule in controls},
    )
    if not len(queries.of_track(*settings.tracks)):
        raise RobustnessError(
            "there is nothing to compare: every clip has one caption, and no rule or file gives other versions of it; add "
            "rules to `tracks`, or name files in `imported`"
        )
    if "natural" in settings.tracks and not len(queries.of_track("natural")):
        notes.append("natural: skipped, because every clip has one human caption")
    return queries, references, notes


def _chosen_rules(settings: RobustnessConfig) -> list[Rule]:
    if "rules" not in settings.tracks:
        return []
    if unknown := [name for name in settings.rules or () if name not in RULES]:
        raise RobustnessError(f"rules: {', '.join(unknown)}: no such rule; choose from {', '.join(RULES)}")
    return [RULES[name] for name in settings.rules] if settings.rules is not None else list(RULES.values())


def _read_imported(captions: pa.Table, settings: RobustnessConfig) -> dict[Path, list[ImportedRewrite]]:
    """Reads the imported rewrites of the split, per file."""
    if "imported" not in settings.tracks:
        return {}
    split = captions.filter(pc.equal(captions["split"], settings.split))
    return {path: read_rewrites(path, split) for path in settings.imported}


def _count_authors(imported: Mapping[Path, Sequence[ImportedRewrite]]) -> list[dict[str, Any]]:
    """Counts the imported queries of each author in each file."""
    return [
        {"file": str(path), "by": author, "queries": count}
        for path, rows in imported.items()
        for author, count in Counter(row.provenance.by for row in rows).items()
    ]


def _to_answers(evaluation: Evaluation) -> Answers:
    missing, ranks = set(evaluation.missing_clips), evaluation.ranks.cpu()
    assert ranks.top is not None, "evaluate with top_k > 0"
    return Answers(
        ranks=ranks.t2v.numpy(),
        top=ranks.top.clips.numpy(),
        available=np.array([clip not in missing for clip in evaluation.clip_ids]),
        ties=ranks.t2v_ties.numpy(),
        cut=evaluation.cut.numpy(),
    )


def _notes_on(source: _Source, run: RunMetrics) -> list[str]:
    """Returns what must be known to read the figures of a run: the control of its phrases, and queries that are cut."""
    control = control_text(source.config.knowledge.control)
    return [*([f"{source.name}: {control}"] if control else []), *_describe_cuts(source, run)]


def _describe_cuts(source: _Source, run: RunMetrics) -> list[str]:
    """Returns a sentence on the queries that are longer than the model of a run reads, by style; none if there are none."""
    num_cut, max_words = int(run.answers.cut.sum()), source.config.text.max_words
    if not num_cut:
        return []
    named = {f"{track}/{style}": metrics for (track, style), metrics in run.styles.items()}
    named |= {f"control/{name}": metrics for name, metrics in run.controls.items()}
    named = {"reference": run.overall["reference"]} | named
    by_style = [
        f"{name} {metrics.num_cut} of {metrics.num_queries}" for name, metrics in named.items() if metrics.num_cut
    ]
    return [
        f"{source.name}: {num_cut} of {len(run.answers.cut)} queries are longer than text.max_words = {max_words} tokens "
        f"and are cut: {', '.join(by_style)}"
    ]


def _describe_source(source: _Source, result: Mapping[str, Any]) -> dict[str, Any]:
    """Selects the fields of an evaluation result that describe model, knowledge and hardware."""
    fields = (
        "checkpoint",
        "chosen_on",
        "knowledge",
        "leaky",
        "num_missing_clips",
        "ties",
        "device",
        "precision",
        "config",
    )
    origin = {"origin": result["protocol"]["origin"]} if result["origin"] else {}
    return {"name": source.name, **origin, **{key: result[key] for key in fields}}


def _default_folder(sources: Sequence[_Source], split: str) -> Path:
    first = sources[0].checkpoint.parent
    if len(sources) == 1:
        return first / f"robustness_{split}"
    names = "_".join(source.name.partition(" ")[0].replace("/", "-") for source in sources)  # without its kind
    return first.parent / f"robustness_{split}_{names}"


def _write_queries(path: Path, queries: Queries, runs: Sequence[RunMetrics]) -> None:
    """Writes one row per query, with its rank and top clips for each run."""
    columns: dict[str, Any] = {
        name: [getattr(row, name) for row in queries.rows] for name in ("clip_id", "track", "style", "text", "original")
    }
    clips = np.array([*queries.clip_ids, None], dtype=object)  # index -1 (fewer clips than answers) gives None
    for run in runs:
        columns[f"{run.name}: rank"] = run.answers.ranks
        columns[f"{run.name}: first answers"] = clips[run.answers.top].tolist()
    with atomic_write(path) as file:
        pq.write_table(pa.table(columns), file)


def _count_text(queries: Queries) -> str:
    counts = {track: len(queries.of_track(track)) for track in ("reference", *TRACKS, "control")}
    counts_text = ", ".join(f"{count} {track}" for track, count in counts.items() if count)
    return f"{len(queries)} queries of {len(queries.clip_ids)} clips: {counts_text}"
