"""The last step of the quickstart: indexes its test videos, and searches them with captions by three writers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from rich.table import Table

from waver.config import ExperimentConfig
from waver.on_ray.stages.index import run_index
from waver.runs.folder import find_checkpoint
from waver.runs.inputs import load_captions
from waver.search import Answer, open_index
from waver.search.windows import Windows

WRITERS = ("plain", "terse", "synonyms")
"""Styles of the queries; training has seen the first two."""
DESCRIBED_BY = "plain"
"""Style of the captions that describe the videos found."""
_WINDOW_S, _STRIDE_S = 10.0, 5.0
"""The defaults of `waver index`: with other windows, a later `waver index` would refuse this index."""
_NUM_ANSWERS = 3


@dataclass(frozen=True)
class Found:
    """A query and its best answers."""

    query: str
    writer: str
    path: Path
    """The video that the query was written for."""
    answers: Sequence[Answer]


def index_folder(config: ExperimentConfig) -> Path:
    """Returns the folder of the index of a run; `waver index` has the same default."""
    return config.storage.folder / "indexes" / config.name


def search_test_videos(config: ExperimentConfig) -> list[Found]:
    """Indexes the test videos with the best model of a run, and searches them for one caption by each of three writers.

    The captions are those of the first three videos, by name, that could be decoded.

    Args:
        config: configuration of the run.

    Returns:
        The queries with their best answers.
    """
    captions = load_captions(config)
    test = captions.filter(pc.equal(captions["split"], "test"))
    folder, videos = index_folder(config), sorted({Path(path) for path in test["path"].to_pylist()})
    run_index(find_checkpoint(config.run_folder), config, videos, folder, Windows(_WINDOW_S, _STRIDE_S))
    index = open_index(folder)
    indexed = sorted({Path(path) for path in index.windows["path"].to_pylist()})
    asked = [(writer, path, _caption(test, path, writer)) for writer, path in zip(WRITERS, indexed, strict=False)]
    answers = index.search_all([query for _, _, query in asked], _NUM_ANSWERS)
    return [Found(query, writer, path, found) for (writer, path, query), found in zip(asked, answers, strict=True)]


def describe_videos(config: ExperimentConfig) -> dict[Path, str]:
    """Returns the caption of each video by one of its writers, `DESCRIBED_BY`."""
    captions = load_captions(config)
    rows = captions.filter(pc.equal(captions["style"], DESCRIBED_BY)).to_pylist()
    return {Path(row["path"]): row["caption"] for row in rows}


def found_table(found: Found, descriptions: Mapping[Path, str]) -> Table:
    """Returns a table of the answers to a query.

    Args:
        found: the query and its answers.
        descriptions: path of a video -> a caption that describes it.
    """
    table = Table(title=f"[{found.writer}] {found.query}", title_justify="left")
    for name, justify in (("score", "right"), ("in the video", "left"), ("seconds", "right"), ("video", "left")):
        table.add_column(name, justify=justify, overflow="fold")
    for answer in found.answers:
        said = descriptions.get(answer.path, "")
        said += "  (written for this video)" if answer.path == found.path else ""
        times = f"{answer.start_s or 0:g} to {answer.end_s:g}" if answer.end_s is not None else ""
        table.add_row(f"{answer.score:.3f}", said, times, str(_from_here(answer.path)))
    return table


def _caption(captions: pa.Table, path: Path, style: str) -> str:
    of_video = pc.and_(pc.equal(captions["path"], str(path)), pc.equal(captions["style"], style))
    return captions.filter(of_video)["caption"][0].as_py()


def _from_here(path: Path) -> Path:
    """Returns a path relative to the working directory if it is below it, which is shorter to read."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
