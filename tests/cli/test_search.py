"""What `waver search` prints."""

from pathlib import Path

from waver.cli.search import _print_answers, _print_matches
from waver.search.answers import Answer, Match

NAME, QUERY = "film [1080p] [red].mp4", "a [bold]cat[/dog] :cat:"


def answer() -> Answer:
    where = {"video_id": NAME, "path": Path("/films") / NAME, "start_s": 0.0, "end_s": 5.0}
    return Answer(rank=1, score=0.5, **where, thumbnail=Path("a.jpg"), window_id=f"{NAME}@0-5", window=0)


def test_brackets_and_colons_of_names_and_queries_are_shown_as_they_are(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    _print_answers(QUERY, [answer()], None, as_json=False)
    _print_matches(NAME, [Match(QUERY, 0.5, 1.0)], as_json=False)
    printed = capsys.readouterr().out
    assert printed.count(NAME) == printed.count(QUERY) == 2
