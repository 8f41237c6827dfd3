"""Search in an index that this process makes from a clip store, compared with `waver evaluate`."""

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch

import waver
from waver.data.embedding_store import EmbeddingSettings, create_embeddings
from waver.evaluation.evaluate import EvaluationOptions, evaluate
from waver.evaluation.gallery import build_gallery
from waver.runs.checkpoint import save_checkpoint
from waver.search import SearchError, load, open_index
from waver.search.embedder import WindowEmbedder
from waver.search.index import IndexSettings, checkpoint_digest, create_index, thumbnail_path, window_id, write_windows
from waver.search.refresh import refresh
from waver.search.windows import Windows
from waver.training.build import build_training


@pytest.fixture(scope="module", params=["wti", "xti"])
def checkpoint(request, tmp_path_factory, tiny_config):
    similarity = tiny_config.similarity.model_copy(update={"kind": request.param})
    config = tiny_config.model_copy(update={"similarity": similarity})
    torch.manual_seed(3)
    training = build_training(config, num_steps=1, device=torch.device("cpu"))
    folder = tmp_path_factory.mktemp(request.param) / "checkpoint_epoch_0001"
    save_checkpoint(folder, training, config)
    return folder


@pytest.fixture(scope="module")
def index(checkpoint, tmp_path_factory, store, captions):
    """An index of the test clips, two of which are windows of one film."""
    folder = tmp_path_factory.mktemp("index")
    model = load(checkpoint)
    embeddings = EmbeddingSettings("windows", 32, "fp32", checkpoint_digest(checkpoint), store.settings.key)
    create_index(folder, IndexSettings(str(checkpoint), checkpoint_digest(checkpoint), Windows(None, 5.0), embeddings))
    create_embeddings(folder / "embeddings", embeddings)
    clips = [clip for clip in build_gallery(captions, "test").clip_ids if clip in store.ok_clip_ids()]
    sources = [f"digest of {clip}" for clip in clips]
    embed = WindowEmbedder(checkpoint, model.config, store.path, folder, embeddings)
    for some in (slice(0, 5), slice(5, None)):
        assert embed(pa.table({"window_id": clips[some], "source": sources[some]})) == len(clips[some])
    rows = [row(clip, source) for clip, source in zip(clips, sources, strict=True)]
    write_windows(folder, [*rows, row("bad", "") | {"status": "corrupt", "error": "made so"}])
    return folder


def row(clip: str, source: str) -> dict:
    return {"window_id": clip, "video_id": clip, "path": f"/nowhere/{clip}.mp4", "start_s": None, "end_s": None,
            "video_s": 3.0, "status": "ok", "error": None, "source": source}  # fmt: skip


def test_search_returns_the_clips_in_the_order_of_evaluate(index, checkpoint, captions, store):
    model, found = load(checkpoint), open_index(index)
    queries = build_gallery(captions, "test")
    options = EvaluationOptions(top_k=len(queries.clip_ids))
    evaluation = evaluate(model.student, captions, store, model.config, split="test", options=options)
    answers = found.search_all(queries.texts, top=100)
    assert len(answers) == len(queries.texts) > 20
    for query, of_query in enumerate(answers):
        expected = [
            (evaluation.clip_ids[clip], score)
            for clip, score in zip(
                evaluation.top.clips[query].tolist(), evaluation.top.scores[query].tolist(), strict=True
            )
            if np.isfinite(score)
        ]
        assert [answer.video_id for answer in of_query] == [clip for clip, _ in expected]
        assert [answer.score for answer in of_query] == pytest.approx([score for _, score in expected], abs=1e-6)
        assert [answer.rank for answer in of_query] == list(range(1, len(expected) + 1))


def test_a_query_alone_is_answered_as_with_others(index, captions):
    """Few texts are embedded and compared in smaller batches, which changes the rounding only."""
    found, queries = open_index(index), build_gallery(captions, "test").texts[:40]
    together = found.search_all(queries, top=5)
    for query, expected in zip(queries, together, strict=True):
        alone = found.search(query, top=5)
        assert [answer.score for answer in alone] == pytest.approx([answer.score for answer in expected], abs=1e-5)


def test_search_among_some_windows_returns_these_in_the_order_of_all(index):
    found = open_index(index)
    among = np.arange(len(found)) % 3 == 1
    every = found.search("a red ball", top=100)
    some = found.search("a red ball", top=100, among=among)
    assert [answer.window for answer in some] == [answer.window for answer in every if among[answer.window]]
    assert [answer.rank for answer in some] == list(range(1, among.sum() + 1))
    assert found.search("a red ball", among=np.zeros(len(found), bool)) == []


def test_a_window_is_most_like_its_copy_and_is_not_its_own_answer(index):
    found = open_index(index)
    name = found.windows["window_id"][3].as_py()
    assert found.moment(name) == 3
    answers = found.like(3, top=100)
    assert sorted(answer.window for answer in answers) == [number for number in range(len(found)) if number != 3]
    copy = found.like(found.embeddings([3]), top=1)[0]  # as a file outside the index, it finds itself
    assert copy.window == 3
    assert copy.score == pytest.approx(1.0, abs=1e-5)
    assert answers[0].score < copy.score


def test_sentences_are_compared_with_one_moment(index):
    found = open_index(index)
    sentences = ["a red ball moves", "the blue boat", "a red ball moves"]
    matches = found.against(2, sentences)
    expected = found.scores(found.model.embed_texts(sentences))[:, 2]
    assert [match.score for match in matches] == pytest.approx(expected.tolist(), abs=1e-6)
    assert [match.sentence for match in matches] == sentences
    assert sum(match.share for match in matches) == pytest.approx(1)
    assert matches[0].share == pytest.approx(matches[2].share)


def test_the_text_tower_and_the_clips_can_be_compared_without_an_index(index, checkpoint, captions, store):
    model, found = load(checkpoint), open_index(index)
    text = model.embed_texts(["a red ball moves", "the blue boat"])
    video = model.embed_frames(*store.read(found.windows["window_id"].to_pylist()))
    torch.testing.assert_close(model.similarity(text, video), found.scores(text))


def test_the_package_has_the_python_interface_and_no_other_names(index, checkpoint):
    assert waver.load(checkpoint).checkpoint == checkpoint
    assert len(waver.open_index(index)) == len(open_index(index))
    with pytest.raises(AttributeError, match="module 'waver' has no attribute 'nonsense'"):
        _ = waver.nonsense


def test_each_answer_has_its_picture(index):
    for answer in open_index(index).search("a red ball", top=3):
        assert answer.thumbnail.stat().st_size > 100


def test_overlapping_windows_of_a_film_are_one_answer_unless_asked_for(index, checkpoint, tmp_path):
    found = open_index(index)
    table = found.windows.to_pylist()
    for number, window in enumerate(table):  # windows of 10 s every 5 s, of one film
        window |= {"video_id": "film", "start_s": 5.0 * number, "end_s": 5.0 * number + 10, "video_s": 42.0}
    found.windows = pa.Table.from_pylist(table, schema=found.windows.schema)
    every = found.search("a red ball", top=100, distinct=False)
    assert len(every) == len(table)
    distinct = open_index(index)
    distinct.windows = found.windows
    kept = distinct.search("a red ball", top=100)
    assert kept[0].start_s == every[0].start_s
    starts = sorted(answer.start_s for answer in kept)
    assert np.diff(starts).min() >= 10
    assert max(answer.end_s for answer in every) == 42.0, "no window ends after its video"


def test_what_cannot_be_searched_is_told(index, checkpoint, tmp_path):
    with pytest.raises(SearchError, match=r"there is no index in .*run `waver index RUN VIDEOS` first"):
        open_index(tmp_path)
    with pytest.raises(SearchError, match="query 2 is empty"):
        open_index(index).search_all(["a ball", " "])
    with pytest.raises(
        SearchError, match=r"gone.mp4@3: no video of the index and no file has this name; write VIDEO@SEC"
    ):
        open_index(index).moment("gone.mp4@3")
    empty = tmp_path / "empty"
    create_index(empty, open_index(index).settings)
    with pytest.raises(SearchError, match="has no windows yet: run `waver index"):
        open_index(empty)


def test_an_index_is_of_one_model_and_its_windows(index, checkpoint):
    settings = open_index(index).settings
    with pytest.raises(SearchError, match=r"other windows \(windows: .*'window_s': None.* there, .*'window_s': 3"):
        create_index(
            index, IndexSettings(settings.checkpoint, settings.weights, Windows(3.0, 1.0), settings.embeddings)
        )
    weights = checkpoint / "model.safetensors"
    content = weights.read_bytes()
    try:
        weights.write_bytes(content[:-4] + b"\0\0\0\1")
        with pytest.raises(SearchError, match=r"has changed or is gone .*: index again, into another folder"):
            open_index(index)
    finally:
        weights.write_bytes(content)


def test_ids_of_windows_say_when(index):
    assert window_id("film.mp4", 5.0, 15.0) == "film.mp4@5-15"
    assert window_id("film.mp4", None, None) == "film.mp4"
    assert pc.all(pc.equal(open_index(index).windows["status"], "ok")).as_py()
    assert thumbnail_path(index, "a", "b") != thumbnail_path(index, "a", "c")


def test_a_search_for_all_windows_compares_all_although_there_are_candidates(index, tmp_path):
    folder = shutil.copytree(index, tmp_path / "index")
    refresh(folder, exact_up_to=0, progress=False)
    found, everything = open_index(folder), open_index(index).search("a dog", top=10**6)
    assert found.candidates is not None
    assert len(everything) == len(found)
    assert [answer.window_id for answer in found.search("a dog", top=10**6)] == [
        answer.window_id for answer in everything
    ]


def test_a_query_that_is_cut_and_a_file_that_cannot_be_compared_are_told(index, tmp_path):
    found = open_index(index)
    assert found.model.describe_cut("a dog") is None
    room = found.model.config.text.max_words - 2
    assert found.model.describe_cut("dog " * (room + 3)).endswith(
        f"reads its first {room} words and parts of words, and not the other 3."
    )
    (tmp_path / "bad.mp4").write_bytes(b"")
    with pytest.raises(SearchError, match=r"bad.mp4 cannot be compared: the file has 0 bytes"):
        found.moment(str(tmp_path / "bad.mp4"))


def test_an_index_whose_embeddings_are_gone_says_what_to_do(index, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(index, copy)
    opened = open_index(copy)
    for block in (copy / "embeddings" / "items").iterdir():
        block.unlink()
    with pytest.raises(SearchError, match=r"copy cannot be read: search again if `waver index` was running"):
        opened.search("a red ball")
