"""Candidates of captions among the windows of synthetic films, and of an index."""

import sys

import numpy as np
import pytest
import torch

from waver.benchmarks.films import World
from waver.evaluation.token_wise import token_wise
from waver.model.embeddings import Embeddings
from waver.model.interaction import INTERACTIONS, dp, wti
from waver.search import SearchError
from waver.search.candidates import open_candidates, pool_texts, pool_windows
from waver.search.candidates_writer import TARGET, Queries, build_candidates, recall

NUM_WINDOWS, TOP = 3000, 10
WORLD = World(width=64, num_frames=4)


@pytest.fixture(scope="module")
def windows() -> Embeddings:
    return WORLD.weigh(torch.from_numpy(np.concatenate(list(WORLD.films(NUM_WINDOWS)))))


@pytest.fixture(scope="module")
def captions() -> Embeddings:
    return WORLD.captions(32, NUM_WINDOWS)


def build(folder, windows, captions, kind="wti", digest="d"):
    chunks = (windows[first : first + 700] for first in range(0, len(windows), 700))
    similarity = {"wti": token_wise, "dp": dp}[kind]
    queries = Queries(captions, "32 captions")
    return build_candidates(folder, digest, len(windows), chunks, INTERACTIONS[kind], queries, similarity)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, windows, captions):
    place = tmp_path_factory.mktemp("index")
    build(place, windows, captions)
    return place


def best_of(scores: torch.Tensor) -> np.ndarray:
    return scores.topk(TOP, dim=1).indices.numpy()


def test_the_best_windows_are_among_the_candidates_and_the_recall_is_what_was_measured(folder, windows, captions):
    found = open_candidates(folder, "d")
    assert found is not None
    numbers = found.find(pool_texts(INTERACTIONS["wti"], captions).numpy())
    measured = recall(numbers, best_of(token_wise(captions, windows)))
    assert measured == pytest.approx(found.candidacy.recall)
    assert TARGET <= measured <= 1
    assert all(len(of_query) <= found.candidacy.num_candidates < NUM_WINDOWS for of_query in numbers)
    assert all((np.diff(of_query) > 0).all() for of_query in numbers)
    assert str(found.candidacy) == (
        f"approximate: the model ranks 1,000 candidates of 3,000 windows; {measured:.1%} of the ten best windows are among "
        "them, measured on 32 captions"
    )


def test_few_candidates_find_much_more_than_chance(folder, windows, captions):
    found = open_candidates(folder, "d")
    numbers = found.find(pool_texts(INTERACTIONS["wti"], captions).numpy(), 50)
    share = recall(numbers, best_of(token_wise(captions, windows)))
    assert 0.7 < share < 1, "if all were found, the test would not tell a good order from a bad one"


def test_for_dp_the_order_of_candidates_is_that_of_the_model(tmp_path, windows, captions):
    assert build(tmp_path, windows, captions, "dp").recall > TARGET
    found = open_candidates(tmp_path, "d")
    pooled = pool_texts(INTERACTIONS["dp"], captions).numpy()
    exact = dp(captions, windows)
    assert recall(found.find(pooled, TOP, num_searched=10**6), best_of(exact)) > 0.9, "8 bits change few of them"
    torch.testing.assert_close(torch.from_numpy(pooled) @ pool_windows(INTERACTIONS["dp"], windows).T, exact)


def test_the_product_of_pooled_vectors_is_at_most_the_similarity(windows, captions):
    products = pool_texts(INTERACTIONS["wti"], captions) @ pool_windows(INTERACTIONS["wti"], windows[:200]).T
    assert (products <= wti(captions, windows[:200]) + 1e-6).all()


def test_padding_has_no_influence(windows, captions):
    interaction = INTERACTIONS["wti"]
    padded = windows[:5].pad(9)
    padded.values[:, 4:] = torch.nan
    torch.testing.assert_close(pool_windows(interaction, padded), pool_windows(interaction, windows[:5]))


def test_candidates_are_taken_among_some_windows(folder, captions):
    found, among = open_candidates(folder, "d"), np.arange(1000, 1300)
    pooled = pool_texts(INTERACTIONS["wti"], captions).numpy()
    for numbers in found.find(pooled, 100, among=among):
        assert len(numbers) == 100
        assert np.isin(numbers, among).all()


def test_candidates_of_other_windows_are_not_used_and_are_replaced(tmp_path, windows, captions):
    assert open_candidates(tmp_path, "d") is None
    build(tmp_path, windows, captions)
    assert open_candidates(tmp_path, "e") is None
    build(tmp_path, windows[:2000], captions, digest="e")
    assert open_candidates(tmp_path, "d") is None
    assert open_candidates(tmp_path, "e").candidacy.num_windows == 2000
    assert len(list((tmp_path / "candidates").iterdir())) == 2, "manifest and one file"


def test_a_build_that_is_stopped_leaves_the_candidates_before(tmp_path, windows, captions):
    build(tmp_path, windows, captions)

    def stopped():
        yield windows[:700]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_candidates(
            tmp_path, "e", NUM_WINDOWS, stopped(), INTERACTIONS["wti"], Queries(None, "stopped"), token_wise
        )
    assert open_candidates(tmp_path, "d").candidacy.num_windows == NUM_WINDOWS
    assert len(list((tmp_path / "candidates").iterdir())) == 2


def test_without_queries_the_recall_is_unknown(tmp_path, windows):
    candidacy = build_candidates(
        tmp_path, "d", 700, [windows[:700]], INTERACTIONS["wti"], Queries(None, "it takes hours"), token_wise
    )
    assert str(candidacy).endswith("; their recall was not measured: it takes hours")


@pytest.mark.parametrize("damage", ["cut", "gone", "content", "manifest"])
def test_damage_is_told(tmp_path, windows, captions, damage):
    build(tmp_path, windows, captions)
    place = tmp_path / "candidates"
    (path,) = place.glob("*.faiss")
    content = path.read_bytes()
    match damage:
        case "cut":
            path.write_bytes(content[:-100])
        case "gone":
            path.unlink()
        case "content":
            path.write_bytes(b"none" + content[4:])
        case "manifest":
            (place / "manifest.json").write_text('{"candidacy": {}}')
    with pytest.raises(SearchError, match=r"candidates is damaged \(.*delete the folder, and run `waver index` again"):
        open_candidates(tmp_path, "d")


def test_without_faiss_the_command_that_installs_it_is_told(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(SearchError, match=r"FAISS, which is not installed: pip install -e '.\[search\]'"):
        open_candidates(folder, "d")
