"""Commands that search the videos of a user: `waver index` and `search`."""

import json
import logging
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from waver.cli.options import EVALUATION_SECTIONS, Set, Workers, load_experiment, local_folder, stdout
from waver.config import ConfigError, ExperimentConfig, parse_overrides
from waver.runs.places import names_experiment
from waver.tools.names import counted
from waver.tools.object_store import display_path, is_url

if TYPE_CHECKING:
    from waver.search import Answer, Match
    from waver.search.calibration import Calibration

logger = logging.getLogger(__name__)


def index(
    run_or_config: Annotated[
        str,
        typer.Argument(
            help="Folder or URL of a run or a checkpoint; or the YAML file of an experiment, whose pre-trained backbone "
            "serves as the model."
        ),
    ],
    videos: Annotated[
        list[Path],
        typer.Argument(
            help="Folders of videos, video files, and tables (CSV, JSONL, ...) with the columns video and, for segments, "
            "start_s and end_s. Paths in a table are relative to its folder.",
            show_default=False,
        ),
    ],
    to: Annotated[
        Path | None, typer.Option(help="Folder of the index.", show_default="storage.path/indexes/NAME")
    ] = None,
    window: Annotated[float, typer.Option(min=0.1, help="Length of a window, in seconds.")] = 10.0,
    stride: Annotated[
        float, typer.Option(min=0.1, help="Seconds from the start of a window to that of the next.")
    ] = 5.0,
    whole: Annotated[bool, typer.Option("--whole", help="Make one window of each video, of any length.")] = False,
    exact_up_to: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Number of windows up to which search is exact; with more, FAISS finds candidates, which alone are ranked.",
            show_default="100,000; 2,000 for xti",
        ),
    ] = None,
    workers: Workers = None,
    overrides: Set = [],  # noqa: B006
) -> None:
    """Index videos for search; run again, it indexes what is new or has changed, and removes videos that are gone."""
    from waver.data.ledger import describe_failures
    from waver.on_ray.stages.index import run_index
    from waver.search.windows import Windows

    checkpoint, experiment = model_of(run_or_config, overrides, workers)
    if to is None and is_url(str(experiment.storage.path)):
        raise ConfigError(
            f"storage.path is {experiment.storage.path}, but an index must be in a folder of this machine: name one "
            "(--to FOLDER)"
        )
    folder = to or experiment.storage.folder / "indexes" / experiment.name
    windows = Windows(None if whole else window, stride)
    report = run_index(checkpoint, experiment, videos, folder, windows, exact_up_to=exact_up_to)
    if report.num_forgotten:
        logger.info(f"{report.num_forgotten} videos are gone, and were removed from the index")
    if report.failures:
        logger.warning("\n  ".join(["windows that could not be decoded:", *describe_failures(report.failures)]))
    logger.info(
        f"the index has {counted(report.num_windows, 'window')} of {counted(report.num_videos, 'video')}; this command "
        f"embedded {report.num_embedded} of them"
    )
    logger.info(str(report.calibration))
    logger.info(f'next: waver search {shlex.quote(display_path(folder))} "a sentence"')


def model_of(run_or_config: str, overrides: list[str], workers: int | None) -> tuple[Path, ExperimentConfig]:
    """Returns checkpoint and configuration of a run; for an experiment, makes its zero-shot run and returns those."""
    from waver.runs.checkpoint import checkpoint_config
    from waver.runs.folder import find_checkpoint
    from waver.runs.untrained import make_zero_shot_run, zero_shot_experiment

    if names_experiment(run_or_config):
        experiment = zero_shot_experiment(load_experiment(Path(run_or_config), overrides, workers or 1))
        return make_zero_shot_run(experiment), experiment
    changed = parse_overrides(overrides)
    if fixed := sorted(key for key in changed if key.partition(".")[0] not in EVALUATION_SECTIONS):
        raise ConfigError(
            f"--set {', '.join(fixed)}: the model stays as it was trained; only settings of these sections can be changed: "
            f"{', '.join(EVALUATION_SECTIONS)}"
        )
    checkpoint = find_checkpoint(local_folder(run_or_config, changed))
    return checkpoint, checkpoint_config(checkpoint, {"resources.workers": workers or 1} | changed)


def search(
    index_folder: Annotated[Path, typer.Argument(metavar="INDEX", help="Folder of an index.", show_default=False)],
    queries: Annotated[
        list[str] | None, typer.Argument(metavar="[QUERY]...", help="Sentences to search for.", show_default=False)
    ] = None,
    from_file: Annotated[
        Path | None, typer.Option(help="Text file with one query per line.", show_default=False)
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Number of windows to list for each query.")] = 10,
    like: Annotated[
        str | None,
        typer.Option(
            metavar="VIDEO@TIME",
            help="Find the moments most like this one. VIDEO is the id of an indexed video, or a file; TIME is in seconds, "
            "minutes:seconds or hours:minutes:seconds.",
            show_default=False,
        ),
    ] = None,
    against: Annotated[
        bool, typer.Option("--against", help="Do not search; compare the moment of --like with the queries.")
    ] = False,
    overlapping: Annotated[
        bool, typer.Option("--overlapping", help="Also list windows that overlap a better one of the same video.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per query.")] = False,
) -> None:
    """Find the moments of indexed videos that best fit a sentence, or that are most like another moment."""
    from waver.search import open_index
    from waver.search.calibration import Calibration

    asked = [*(queries or ()), *_read_queries(from_file)]
    _check_questions(asked, like, against=against)
    opened = open_index(index_folder)
    if opened.candidates:
        logger.info(f"search is {opened.candidates.candidacy}")
    for number, query in enumerate(asked, start=1):
        if cut := opened.model.describe_cut(query):
            logger.warning(f"query {number}: {cut}")
    moment = opened.moment(like) if like else None
    if moment is not None and against:
        _print_matches(str(like), opened.against(moment, asked), as_json=as_json)
    elif moment is not None:
        _print_answers(str(like), opened.like(moment, top, distinct=not overlapping), None, as_json=as_json)
    else:
        calibration = opened.calibration if isinstance(opened.calibration, Calibration) else None
        for query, answers in zip(asked, opened.search_all(asked, top, distinct=not overlapping), strict=True):
            _print_answers(query, answers, calibration, as_json=as_json)


def _check_questions(queries: list[str], like: str | None, *, against: bool) -> None:
    if against and not (like and queries):
        raise ConfigError(
            "--against compares a moment with sentences, so it needs both: waver search INDEX --like VIDEO@TIME --against "
            '"a sentence" "another sentence"'
        )
    if like and queries and not against:
        raise ConfigError(
            "--like searches with a moment in place of a query: leave out the sentences, or add --against to compare them "
            "with the moment"
        )
    if not (like or queries):
        raise ConfigError('there is no query: write one, as in waver search INDEX "a man folds a paper plane"')


def _print_answers(
    query: str, answers: Sequence["Answer"], calibration: "Calibration | None", *, as_json: bool
) -> None:
    """Prints the answers to a query; `calibration` says whether anything fits the query, None if it cannot be said."""
    nothing_fits = calibration.nothing_fits(answers[0].score) if calibration else None
    if as_json:
        content = {"query": query, "nothing_fits": nothing_fits, "answers": [answer.as_json() for answer in answers]}
        typer.echo(json.dumps(content, ensure_ascii=False))
        return
    stdout.print(_answer_table(query, answers))
    if calibration and nothing_fits:
        stdout.print(calibration.verdict, highlight=False)


def _print_matches(moment: str, matches: Sequence["Match"], *, as_json: bool) -> None:
    if as_json:
        typer.echo(
            json.dumps({"moment": moment, "matches": [match.as_json() for match in matches]}, ensure_ascii=False)
        )
        return
    table = Table(title=moment, title_justify="left")
    for name in ("score", "share"):
        table.add_column(name, justify="right")
    table.add_column("sentence", overflow="fold")
    for match in sorted(matches, key=lambda match: -match.score):
        table.add_row(f"{match.score:.3f}", f"{match.share:.1%}", match.sentence)
    stdout.print(table)


def _read_queries(path: Path | None) -> list[str]:
    if path is None:
        return []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--from-file {path} cannot be read ({error}): name a UTF-8 text file") from error
    return [line.strip() for line in lines if line.strip()]


def _answer_table(query: str, answers: Sequence["Answer"]) -> Table:
    table = Table(title=query, title_justify="left")
    for name in ("", "score"):
        table.add_column(name, justify="right")
    for name in ("video", "from", "to"):
        table.add_column(name, overflow="fold", justify="left" if name == "video" else "right")
    table.add_column("thumbnail", overflow="fold")
    for answer in answers:
        times = (_clock(answer.start_s), _clock(answer.end_s))
        table.add_row(str(answer.rank), f"{answer.score:.3f}", answer.video_id, *times, display_path(answer.thumbnail))
    return table


def _clock(seconds: float | None) -> str:
    """Returns a time as `1:02:03.5`; empty for the start or end of the video."""
    if seconds is None:
        return ""
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    clock = f"{rest:04.1f}".removesuffix(".0") if rest < 10 else f"{rest:.1f}".removesuffix(".0")
    return f"{hours}:{minutes:02}:{clock}" if hours else f"{minutes}:{clock}"
