import numpy as np
import pytest

from waver.search import open_index
from waver.search.calibration import Calibration
from waver.search.serving.judgements import Judged
from waver.search.serving.searcher import Filters, QueryError, Searcher

QUERY = "a red ball moves"


@pytest.fixture(scope="module")
def searcher(index) -> Searcher:
    return Searcher(index)


def test_answers_are_those_of_the_index(searcher, index):
    assert searcher.answers(QUERY, 5, Filters(), distinct=True) == open_index(index).search(QUERY, top=5)
    every = searcher.answers(QUERY, 100, Filters(), distinct=False)
    assert len(every) == len(searcher.index) == 1 + 5 + 2
    assert (searcher.run, searcher.folders) == ("first", ["garden", "kitchen"])


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (Filters("kitchen"), {"kitchen/long film.mp4", "kitchen/old.avi"}),
        (Filters("/kitchen/"), {"kitchen/long film.mp4", "kitchen/old.avi"}),
        (Filters("kitchen/old.avi"), {"kitchen/old.avi"}),
        (Filters("kit"), set()),
        (Filters("../kitchen"), set()),
        (Filters(min_s=6.0), {"kitchen/long film.mp4", "kitchen/old.avi"}),
        (Filters(min_s=6.1), {"kitchen/long film.mp4"}),
        (Filters(max_s=6.0), {"garden/short.mp4", "kitchen/old.avi"}),
        (Filters("kitchen", min_s=5.0, max_s=7.0), {"kitchen/old.avi"}),
    ],
)
def test_filters(searcher, filters, expected):
    found = searcher.answers(QUERY, 100, filters, distinct=False)
    assert {answer.video_id for answer in found} == expected
    assert [answer.rank for answer in found] == list(range(1, len(found) + 1))


def test_moments_of_a_film_are_all_its_windows_and_the_best_of_them(searcher):
    long = next(number for number, row in enumerate(searcher.index.rows) if row["video_id"] == "kitchen/long film.mp4")
    moments = searcher.moments(QUERY, long + 2)
    windows = moments["windows"]
    assert [window["start_s"] for window in windows] == [0, 2, 4, 6, 8]
    scores = searcher.index.scores(searcher.index.model.embed_texts([QUERY]))[0]
    assert [window["score"] for window in windows] == pytest.approx(scores[long : long + 5].tolist(), abs=1e-6)
    best = moments["best"]
    assert best[0] == long + int(np.argmax([window["score"] for window in windows]))
    assert all(abs(one - other) >= 2 for one in best for other in best if one != other), "best moments do not overlap"


def test_a_long_query_is_said_to_be_cut(searcher):
    assert searcher.describe_cut(QUERY) is None
    assert searcher.describe_cut("dog " * 10) is None
    assert searcher.describe_cut("dog " * 13) == (
        "The query is too long: the model reads its first 10 words and parts of words, and not the other 3."
    )


def test_doubts(searcher):
    assert searcher.doubts(0.5) == {"nothing_fits": None, "sentence": str(searcher.index.calibration)}
    calibrated = Searcher(searcher.index.path)
    calibrated.index.calibration = Calibration(0.4, 0.05, 0.7, 200, 100)
    assert [calibrated.doubts(best)["nothing_fits"] for best in (0.39, 0.41, None)] == [True, False, False]
    assert "5%" in calibrated.doubts(0.3)["sentence"]


def test_what_cannot_be_searched(searcher):
    for query in ("", " \t"):
        with pytest.raises(QueryError, match="The query is empty"):
            searcher.answers(query, 3, Filters(), distinct=True)
    with pytest.raises(QueryError, match="longer than 2,000 characters"):
        searcher.answers("a" * 2001, 3, Filters(), distinct=True)
    for window in (-1, len(searcher.index), 10**30):
        with pytest.raises(QueryError, match="no such window"):
            searcher.span(window)


def test_verdicts_find_their_windows(searcher):
    row = searcher.index.rows[3]
    assert searcher.number_of(Judged("any", row["path"], row["start_s"], row["end_s"])) == 3
    assert searcher.number_of(Judged("any", row["path"], row["start_s"], 99.0)) is None
