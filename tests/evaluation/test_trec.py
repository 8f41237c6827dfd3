"""Rankings as TREC's own tools judge them."""

import pytest
import pytrec_eval
import torch

from waver.evaluation.metrics import retrieval_metrics
from waver.evaluation.ranking import rank_tiles
from waver.evaluation.trec import write_trec

SIZES = torch.tensor([1, 4, 2, 3, 1, 5, 2, 1, 3, 2, 1, 4, 2, 2, 1])
CLIP_OF_TEXT = torch.repeat_interleave(torch.arange(15), SIZES)
CLIP_IDS = [f"video {number}%" for number in range(15)]
TEXT_IDS = [f"{CLIP_IDS[clip]}#{text}" for text, clip in enumerate(CLIP_OF_TEXT.tolist())]


@pytest.fixture(scope="module")
def ranks():
    """Without ties; clip 6 has no embedding."""
    similarity = torch.randn(len(CLIP_OF_TEXT), 15, generator=torch.Generator().manual_seed(3))
    similarity[torch.arange(len(CLIP_OF_TEXT)), CLIP_OF_TEXT] += 1
    assert len(similarity.unique()) == similarity.numel()
    available = torch.arange(15) != 6
    return rank_tiles(lambda r, c: similarity[r, c], CLIP_OF_TEXT, available, chunk_size=4, top_k=15)


@pytest.fixture(scope="module")
def folder(ranks, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trec") / "new"
    write_trec(
        folder,
        clip_ids=CLIP_IDS,
        text_ids=TEXT_IDS,
        clip_of_text=CLIP_OF_TEXT.tolist(),
        t2v=ranks.top,
        v2t=ranks.top_groups,
        tag="a run",
    )
    return folder


@pytest.mark.parametrize("direction", ["t2v", "v2t"])
def test_trec_eval_finds_our_figures(ranks, folder, direction):
    with (folder / f"{direction}.qrels").open() as qrels, (folder / f"{direction}.run").open() as run:
        qrels, run = pytrec_eval.parse_qrel(qrels), pytrec_eval.parse_run(run)
    judged = pytrec_eval.RelevanceEvaluator(qrels, {"success_1,5,10", "recall_1,5,10", "recip_rank"}).evaluate(run)
    places = getattr(ranks, direction)
    assert len(qrels) == len(places)
    metrics = retrieval_metrics(ranks)
    for k in (1, 5, 10):
        for measure in ("success", "recall"):
            mean = sum(of_query[f"{measure}_{k}"] for of_query in judged.values()) / len(qrels)
            assert 100 * mean == pytest.approx(metrics[f"{direction}/R@{k}"])
    # A miss of ours (the missing clip) is found by nobody: a reciprocal rank of 0.
    mean = sum(of_query["recip_rank"] for of_query in judged.values()) / len(qrels)
    assert mean == pytest.approx((1 / places).mean().item())
    assert 0 < mean < 1


@pytest.mark.parametrize("right", range(3))
def test_equal_scores_are_judged_as_the_readme_says(tmp_path, right):
    """The run has them in the order of the ids, trec_eval reads the last id first, and waver's R@1 is the expectation."""
    ranks = rank_tiles(
        lambda r, c: torch.ones(3, 3)[r, c], torch.arange(3), torch.ones(3, dtype=torch.bool), chunk_size=4, top_k=3
    )
    assert retrieval_metrics(ranks)["t2v/R@1"] == pytest.approx(100 / 3)
    ids = ["a", "b", "c"]
    write_trec(
        tmp_path, clip_ids=ids, text_ids=ids, clip_of_text=[0, 1, 2], t2v=ranks.top, v2t=ranks.top_groups, tag="x"
    )
    assert [line.split()[2] for line in (tmp_path / "t2v.run").read_text().splitlines()] == ids * 3
    with (tmp_path / "t2v.qrels").open() as qrels, (tmp_path / "t2v.run").open() as run:
        qrels, run = pytrec_eval.parse_qrel(qrels), pytrec_eval.parse_run(run)
    judged = pytrec_eval.RelevanceEvaluator(qrels, {"recip_rank"}).evaluate(run)
    assert judged[ids[right]]["recip_rank"] == pytest.approx(1 / (3 - right))
    assert "the last id first" in " ".join((tmp_path / "README.txt").read_text().split())


def test_lines_are_six_and_four_words_whatever_the_ids(folder):
    assert (folder / "t2v.qrels").read_text().splitlines()[0] == "video%200%25#0 0 video%200%25 1"
    lines = (folder / "v2t.run").read_text().splitlines()
    assert {len(line.split(" ")) for line in lines} == {6}
    assert lines[0].split(" ")[::5] == ["video%200%25", "a%20run"]
    # 14 clips that are there rank the captions of all 15.
    assert len(lines) == 14 * 15
    assert len((folder / "t2v.run").read_text().splitlines()) == len(CLIP_OF_TEXT) * 14
