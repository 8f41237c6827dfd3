import json
import threading

import pytest

from waver.data.annotations.captions import unique_clips
from waver.data.annotations.table import load_table
from waver.evaluation.evaluate import EvaluationOptions, evaluate
from waver.search import load, open_index
from waver.search.serving.judgements import Judged, JudgementError, Judgements


@pytest.fixture
def path(tmp_path):
    return tmp_path / "judgements.jsonl"


def judged(query="a red ball", video="/films/a.mp4", start_s=0.0, end_s=4.0) -> Judged:
    return Judged(query, video, start_s, end_s)


def rows(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_good_answers_are_rows_of_a_test_set(path):
    judgements = Judgements(path)
    judgements.record((judged(), "a.mp4", "good"))
    judgements.record((judged(start_s=None, end_s=None, video="/films/b.mp4"), "b.mp4", "good"))
    judgements.record((judged(video="/films/c.mp4"), "c.mp4", "bad"))
    first = {"video": "/films/a.mp4", "caption": "a red ball", "start_s": 0.0, "end_s": 4.0, "split": "test"}
    whole = {"video": "/films/b.mp4", "start_s": None, "end_s": None}
    assert rows(path) == [first | {"video_id": "a.mp4"}, first | whole | {"video_id": "b.mp4"}]
    assert [row["verdict"] for row in rows(judgements.verdicts_path)] == ["good", "good", "bad"]


def test_the_last_verdict_holds_also_for_a_later_server(path):
    judgements = Judgements(path)
    for verdict in ("good", "bad"):
        judgements.record((judged(), "a.mp4", verdict))
    assert rows(path) == []
    assert judgements.of_query("a red ball") == {judged(): "bad"}
    judgements.record((judged(), "a.mp4", "good"))
    judgements.record((judged("a blue box"), "a.mp4", "good"))
    judgements.record((judged("a blue box"), "a.mp4", None))
    again = Judgements(path)
    assert [row["caption"] for row in rows(path)] == ["a red ball"]
    assert again.of_query("a red ball") == {judged(): "good"}
    assert again.of_query("a blue box") == {}


def test_servers_and_threads_lose_no_verdict(path):
    servers = [Judgements(path) for _ in range(2)]

    def judge(number: int) -> None:
        for film in range(10):
            servers[number % 2].record((judged(video=f"/films/{number}-{film}.mp4"), f"{number}-{film}", "good"))

    threads = [threading.Thread(target=judge, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({row["video"] for row in rows(path)}) == len(rows(servers[0].verdicts_path)) == 60


def test_a_line_that_a_crash_left_unfinished_costs_nothing_else(path, caplog):
    judgements = Judgements(path)
    judgements.record((judged(), "a.mp4", "good"))
    with judgements.verdicts_path.open("ab") as file:
        file.write(b'{"query": "half')
    path.unlink()  # as if the crash had come before the test set was written
    again = Judgements(path)
    assert len(rows(path)) == 1
    again.record((judged("a blue box"), "a.mp4", "good"))
    assert [row["caption"] for row in rows(path)] == ["a red ball", "a blue box"]
    assert "line 2: damaged, and left out" in caplog.text


def test_two_films_of_one_name_stay_two(path):
    judgements = Judgements(path)
    judgements.record((judged(), "a.mp4", "good"))
    judgements.record((judged(video="/other/a.mp4"), "a.mp4", "good"))
    judgements.record((judged("a box", video="/other/a.mp4"), "a.mp4", "good"))
    assert [row["video_id"] for row in rows(path)] == ["a.mp4", "/other/a.mp4", "/other/a.mp4"]


@pytest.mark.parametrize("query", ["null", "", "['a', 'b']", "a\0b", "\u200b"])
def test_what_no_table_can_hold_is_refused(path, query):
    with pytest.raises(JudgementError, match="cannot be a caption"):
        Judgements(path).record((judged(query), "a.mp4", "good"))
    assert not path.exists()


def test_files_of_others_are_left_alone(path, tmp_path):
    path.write_text("mine\n")
    with pytest.raises(JudgementError, match=r"exists, but not judgements\.verdicts\.jsonl .*: name another file"):
        Judgements(path)
    assert path.read_text() == "mine\n"
    with pytest.raises(JudgementError, match=r"name a file that ends in \.jsonl"):
        Judgements(tmp_path / "judgements.csv")
    with pytest.raises(JudgementError, match="name a file in another folder"):
        Judgements(tmp_path / "nothing" / "judgements.jsonl")


@pytest.mark.slow
def test_waver_evaluates_the_model_on_what_was_judged(path, index, films, decode_clips, tmp_path):
    found = open_index(index)
    query = "a red ball moves"
    answers = found.search(query, top=3, distinct=False)
    judgements = Judgements(path)
    verdicts = ("good", "bad", "good")
    for answer, verdict in zip(answers, verdicts, strict=True):
        row = found.rows[answer.window]
        judgements.record((Judged(query, row["path"], row["start_s"], row["end_s"]), row["video_id"], verdict))
    captions = load_table(path, films, validation_fraction=None, validation_seed=0, allow_missing_videos=False)
    good = [answer.window_id for answer in (answers[0], answers[2])]
    assert captions["clip_id"].to_pylist() == good
    model = load(found.settings.checkpoint)
    store = decode_clips(tmp_path / "clips", unique_clips(captions).to_pylist(), model.config)
    result = evaluate(model.student, captions, store, model.config, split="test", options=EvaluationOptions(top_k=2))
    # The same words are a query for each good window, so the better one is found at once, and the other one second.
    assert result.metrics["t2v/R@1"] == 50.0
    assert result.metrics["t2v/MnR"] == 1.5
    scores = {answer.window_id: answer.score for answer in answers}
    assert result.top.scores[0].tolist() == pytest.approx([scores[clip] for clip in good], abs=1e-5)
