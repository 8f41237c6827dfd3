from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from waver.config import ExperimentConfig
from waver.data.clip_store import ClipStore
from waver.evaluation.evaluate import EvaluationOptions, evaluate, select_bank
from waver.evaluation.metrics import direction_metrics, retrieval_metrics
from waver.evaluation.ranking import EvaluationError, Ranks, rank_similarity
from waver.knowledge.phrases import VOCABULARY_SCHEMA
from waver.knowledge.store import (
    Knowledge,
    build_dictionary,
    create_knowledge,
    mark_complete,
    write_embeddings,
    write_matches,
)
from waver.model.student import Student
from waver.training.build import build_student
from waver.training.step import make_batch

TEST_CLIPS = [f"v{number:02}" for number in range(19, 28)]


def direct_similarity(
    student: Student,
    captions: pa.Table,
    store: ClipStore,
    config: ExperimentConfig,
    knowledge: Knowledge | None = None,
    split: str = "test",
) -> torch.Tensor:
    """Of the captions of a split with the clips of test: everything is embedded and compared by itself."""
    rows = [row for row, there in enumerate(captions["split"].to_pylist()) if there == split]
    videos, known = {}, knowledge.matches.to_pylist() if knowledge else []
    phrase_ids = {row["clip_id"]: row["phrase_ids"][: config.knowledge.top_k] for row in known}
    similarity = torch.full((len(rows), 9), -torch.inf)
    with torch.no_grad():
        for clip in set(TEST_CLIPS) - {"v20"}:
            batch = make_batch(captions, np.array(rows[:1]), store.read([clip]), config, 1)
            phrases = knowledge.phrase_embeddings()[phrase_ids[clip]][None] if knowledge else None
            videos[clip] = student.encode_video(batch.frames, batch.frame_mask, phrases)
        for i, row in enumerate(rows):
            batch = make_batch(captions, np.array([row]), store.read(["v19"]), config, 1)
            text = student.encode_text(batch.token_ids, batch.token_mask)
            for j, clip in enumerate(TEST_CLIPS):
                if clip != "v20":
                    similarity[i, j] = student.similarity(text, videos[clip]).item()
    return similarity


AVAILABLE = torch.tensor([clip != "v20" for clip in TEST_CLIPS])


def clips_of_texts(captions: pa.Table) -> torch.Tensor:
    chosen = captions.filter([split == "test" for split in captions["split"].to_pylist()])
    return torch.tensor([TEST_CLIPS.index(clip) for clip in chosen["clip_id"].to_pylist()])


def direct_ranks(
    student: Student, captions: pa.Table, store: ClipStore, config: ExperimentConfig, knowledge: Knowledge | None = None
) -> Ranks:
    """Of the test split, from the whole matrix."""
    similarity = direct_similarity(student, captions, store, config, knowledge)
    return rank_similarity(similarity, clips_of_texts(captions), AVAILABLE)


def test_top_clips_are_returned_on_request(captions, store, load_tiny):
    config = load_tiny()
    student = build_student(config).eval()
    result = evaluate(student, captions, store, config, split="test", options=EvaluationOptions(top_k=12))
    rows = [row for row in captions.to_pylist() if row["split"] == "test"]
    assert result.text_ids == tuple(f"{row['clip_id']}#{row['caption_index']}" for row in rows)
    assert [result.clip_ids[clip] for clip in result.clip_of_text] == [row["clip_id"] for row in rows]
    assert result.top.clips.shape == result.top.scores.shape == (len(rows), 12)
    # Eight clips of nine are there, each once, in falling order; the place of the right one is its rank.
    assert (result.top.clips[:, 8:] == -1).all()
    assert (result.top.scores[:, :8].diff() <= 0).all()
    for clips, right, rank in zip(
        result.top.clips.tolist(), result.clip_of_text.tolist(), result.ranks.t2v, strict=True
    ):
        assert {result.clip_ids[clip] for clip in clips[:8]} == set(TEST_CLIPS) - {"v20"}
        if rank != float("inf"):
            assert clips.index(right) + 1 == rank
    assert evaluate(student, captions, store, config, split="test").top is None


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dp", "wti", "xclip", "xti"])
def test_equals_a_direct_computation_of_the_whole_matrix(captions, store, load_tiny, kind):
    config = load_tiny(**{"similarity.kind": kind})
    student = build_student(config).eval()
    result = evaluate(student, captions, store, config, split="test")
    expected = direct_ranks(student, captions, store, config)
    assert result.metrics == pytest.approx(retrieval_metrics(expected))
    num_texts = captions["split"].to_pylist().count("test")
    assert (result.gallery_size, result.num_queries, result.missing_clips) == (9, num_texts, ("v20",))


def test_metrics_do_not_depend_on_batch_and_tile_size(captions, store, load_tiny):
    student = build_student(load_tiny()).eval()
    results = [
        evaluate(
            student, captions, store, load_tiny(**{"evaluate.batch_size": b, "evaluate.chunk_size": c}), split="test"
        )
        for b, c in ((1, 1), (3, 4), (100, 100))
    ]
    assert results[0].metrics == pytest.approx(results[1].metrics)
    assert results[0].metrics == pytest.approx(results[2].metrics)


def test_excused_metrics_are_a_variant(captions, store, load_tiny):
    config = load_tiny()
    student = build_student(config).eval()
    excused = torch.cartesian_prod(torch.arange(5), torch.arange(4))
    result = evaluate(student, captions, store, config, split="test", options=EvaluationOptions(excused=excused))
    similarity = direct_similarity(student, captions, store, config)
    expected = rank_similarity(similarity, clips_of_texts(captions), AVAILABLE, excused=excused)
    assert result.variants == {"excused": pytest.approx(retrieval_metrics(expected))}
    assert result.metrics == evaluate(student, captions, store, config, split="test").metrics
    assert result.metrics != result.variants["excused"]


def test_dsl_and_qb_norm_are_variants(captions, store, load_tiny):
    one_each = captions.filter([index == 0 for index in captions["caption_index"].to_pylist()])
    asked = {"evaluate.dsl": True, "evaluate.dsl_temperature": 0.5, "evaluate.qb_norm": True, "similarity.kind": "dp"}
    config = load_tiny(**asked)
    student = build_student(config).eval()
    result = evaluate(student, one_each, store, config, split="test", options=EvaluationOptions(rescore=True))
    plain = evaluate(student, one_each, store, config, split="test")
    assert plain.variants == {}
    assert result.metrics == plain.metrics
    similarity = direct_similarity(student, one_each, store, config)[:, AVAILABLE].double()
    logits = 2 * student.logit_scale.exp().item() * similarity

    def ranks_of(scores: torch.Tensor) -> Ranks:
        everywhere = torch.full((9, 9), -torch.inf, dtype=torch.float64)
        everywhere[:, AVAILABLE] = scores
        return rank_similarity(everywhere, torch.arange(9), AVAILABLE)

    over_texts, over_clips = ranks_of(similarity * logits.softmax(0)), ranks_of(similarity * logits.softmax(1))
    dsl = Ranks(over_texts.t2v, over_clips.v2t, over_texts.t2v_ties, over_clips.v2t_ties)
    assert result.variants["dsl"] == pytest.approx(retrieval_metrics(dsl))
    bank = direct_similarity(student, one_each, store, config, split="train")[:, AVAILABLE].double()
    active = torch.isin(similarity.argmax(1), bank.argmax(1))[:, None]
    inverted = (20 * similarity).exp() / (20 * bank).exp().sum(0)
    qb_norm = ranks_of(inverted.where(active, similarity))
    assert result.variants["qb_norm"] == pytest.approx(direction_metrics("t2v", qb_norm.t2v, qb_norm.t2v_ties, 9))
    assert len({str(metrics) for metrics in (result.metrics, *result.variants.values())}) == 3


def test_unsupported_variants_are_refused_before_embedding(captions, store, load_tiny):
    student = build_student(load_tiny())
    config = load_tiny(**{"evaluate.dsl": True})
    with pytest.raises(EvaluationError, match="captions for 9 clips"):
        evaluate(student, captions, store, config, split="test", options=EvaluationOptions(rescore=True))
    assert evaluate(student, captions, store, config, split="test").variants == {}  # as training does, for validation
    test = captions.filter([split == "test" for split in captions["split"].to_pylist()])
    config = load_tiny(**{"evaluate.qb_norm": True})
    with pytest.raises(EvaluationError, match="needs captions of train"):
        evaluate(student, test, store, config, split="test", options=EvaluationOptions(rescore=True))


def test_query_bank_is_evenly_spaced_in_train(captions, store, load_tiny):
    config = load_tiny(**{"evaluate.qb_norm": True, "evaluate.qb_norm_queries": 3})
    train = captions.filter([split == "train" for split in captions["split"].to_pylist()])["caption"].to_pylist()
    assert select_bank(captions, config.evaluate.qb_norm_queries) == [
        train[0],
        train[round((len(train) - 1) / 2)],
        train[-1],
    ]


def test_progress_is_reported(captions, store, load_tiny):
    seen = []
    evaluate(
        build_student(load_tiny()), captions, store, load_tiny(), split="test", on_progress=lambda *p: seen.append(p)
    )
    assert seen == [(1, 2), (2, 2)]


def test_empty_split_error_names_the_other_splits(captions, store, load_tiny):
    train = captions.filter([split == "train" for split in captions["split"].to_pylist()])
    with pytest.raises(
        EvaluationError, match=r"the test split has no captions; choose another one .*: the data set has \{'train': "
    ):
        evaluate(build_student(load_tiny()), train, store, load_tiny(), split="test")


def test_nan_is_an_error(captions, store, load_tiny):
    student = build_student(load_tiny())
    with torch.no_grad():
        student.backbone.clip.text_projection.fill_(torch.nan)
    with pytest.raises(EvaluationError, match="is NaN"):
        evaluate(student, captions, store, load_tiny(), split="test")


@pytest.fixture(scope="module")
def other_knowledge(tmp_path_factory: pytest.TempPathFactory, store: ClipStore) -> Knowledge:
    """Of the same clips, in other phrases with other embeddings."""
    folder, rng = tmp_path_factory.mktemp("other"), np.random.default_rng(5)
    phrases = pa.table([range(20), [f"stands {i}" for i in range(20)], [1] * 20], names=VOCABULARY_SCHEMA.names)
    create_knowledge(folder, build_dictionary(phrases.cast(VOCABULARY_SCHEMA), leaky=False), source="matched")
    write_embeddings(folder, 0, torch.from_numpy(rng.standard_normal((20, 32)).astype(np.float32)))
    rows = [{"clip_id": clip, "phrase_ids": rng.permutation(20)[:6].tolist()} for clip in store.ok_clip_ids()]
    write_matches(folder, pa.Table.from_pylist([row | {"scores": None} for row in rows]))
    return mark_complete(folder)


def knowing_student(config: ExperimentConfig) -> Student:
    """One whose fusion changes frames clearly."""
    student = build_student(config).eval()
    with torch.no_grad():
        for name in ("value", "attended", "hidden", "output"):
            student.fusion.get_submodule(name).weight.mul_(20)
    return student


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dp", "wti", "xclip", "xti"])
def test_informed_evaluation_equals_a_direct_computation(captions, store, knowledge, load_knowing, kind):
    config = load_knowing(**{"similarity.kind": kind})
    student = knowing_student(config)
    result = evaluate(student, captions, store, config, split="test", knowledge=knowledge)
    expected = direct_ranks(student, captions, store, config, knowledge)
    assert torch.equal(result.ranks.t2v, expected.t2v)
    assert torch.equal(result.ranks.v2t, expected.v2t)
    plain = direct_ranks(student, captions, store, config)
    assert not torch.equal(plain.t2v, expected.t2v)


def test_informed_evaluation_depends_on_the_phrases(captions, store, knowledge, other_knowledge, load_knowing):
    config = load_knowing()
    student = knowing_student(config)
    results = [
        evaluate(student, captions, store, config, split="test", knowledge=k) for k in (knowledge, other_knowledge)
    ]
    assert not torch.equal(results[0].ranks.t2v, results[1].ranks.t2v)
    fewer = load_knowing(**{"knowledge.top_k": 1})
    one = evaluate(student, captions, store, fewer, split="test", knowledge=knowledge)
    assert not torch.equal(one.ranks.t2v, results[0].ranks.t2v)


def test_uninformed_evaluation_ignores_phrases(captions, store, knowledge, other_knowledge, load_knowing):
    """A student that learned from informed videos and has a fusion: at inference nobody looks at a phrase."""
    config = load_knowing(**{"knowledge.at_inference": False, "loss.distill": 1})
    student = knowing_student(config)
    broken = Knowledge(knowledge.path)
    broken.path = Path("/nowhere")
    results = [
        evaluate(student, captions, store, config, split="test", knowledge=known)
        for known in (None, knowledge, other_knowledge, broken)
    ]
    expected = direct_ranks(student, captions, store, config)
    for result in results:
        assert torch.equal(result.ranks.t2v, expected.t2v)
        assert torch.equal(result.ranks.v2t, expected.v2t)
        assert result.metrics == results[0].metrics


def test_informed_evaluation_without_phrases_is_an_error(captions, store, load_knowing):
    config = load_knowing()
    with pytest.raises(AssertionError, match="informed"):
        evaluate(build_student(config), captions, store, config, split="test")


def with_styles(captions: pa.Table, style_of_row) -> pa.Table:
    styles = [style_of_row(row) for row in range(len(captions))]
    return captions.set_column(captions.schema.get_field_index("style"), "style", pa.array(styles, pa.string()))


def test_style_metrics_are_those_of_their_captions(captions, store, load_tiny):
    config = load_tiny()
    student = build_student(config).eval()
    names = ("plain", "long", None)
    styled = with_styles(captions, lambda row: names[row % 3])
    result = evaluate(student, styled, store, config, split="test")
    rows = [row for row, split in enumerate(captions["split"].to_pylist()) if split == "test"]
    # Captions of the fixture stand by clip and number already, which is how texts are ranked.
    ranks = direct_ranks(student, captions, store, config)
    assert list(result.styles) == ["long", "plain"]
    for style, metrics in result.styles.items():
        chosen = torch.tensor([names[row % 3] == style for row in rows])
        assert 0 < chosen.sum() < len(rows)
        assert metrics == pytest.approx(direction_metrics("t2v", ranks.t2v[chosen], ranks.t2v_ties[chosen], 9))
    without = evaluate(student, captions, store, config, split="test")
    assert without.styles == {}
    assert without.metrics == result.metrics


def test_single_style_has_the_metrics_of_the_split(captions, store, load_tiny):
    student = build_student(load_tiny()).eval()
    result = evaluate(student, with_styles(captions, lambda row: "only"), store, load_tiny(), split="test")
    assert list(result.styles) == ["only"]
    for name, value in result.styles["only"].items():
        assert result.metrics[name] == value
