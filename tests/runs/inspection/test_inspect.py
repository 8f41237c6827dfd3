from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from waver.data.batch import frames_to_tensor
from waver.evaluation.embedding import embed_clips
from waver.evaluation.evaluate import Evaluation, EvaluationOptions, evaluate
from waver.evaluation.gallery import build_gallery
from waver.knowledge.store import build_dictionary, create_knowledge, mark_complete, write_embeddings, write_matches
from waver.model.student import Student
from waver.model.tokenizer import find_tokenizer
from waver.runs.inspection import Inspection, InspectionSettings, inspect_run, write_projection
from waver.runs.inspection import inspect as module
from waver.runs.inspection.subset import choose_subset
from waver.training.build import build_student

CLIP = find_tokenizer("ViT-B-32")
SETTINGS = InspectionSettings(
    CLIP, max_words=12, prompt=None, num_clips=6, captions_per_clip=2, num_queries=3, num_worst=2, num_maps=2
)
TEST_CLIPS = 9


@pytest.fixture
def look(captions, store, knowledge, load_knowing):
    """Evaluates a model of the small experiment and looks at it; or looks at what was `made` (evaluation, student)."""

    def run(
        overrides: dict, made: tuple | None = None, *, video=None, known=knowledge, **changes
    ) -> tuple[Inspection, Evaluation, Student]:
        config = load_knowing(**overrides)
        student, top_k = made[1] if made else build_student(config), config.knowledge.top_k
        settings = replace(SETTINGS, top_k=top_k, informed=config.informed_at_inference, **changes)
        known = known if top_k else None
        how = {"split": "test", "options": EvaluationOptions(top_k=5), "knowledge": known}
        evaluation = made[0] if made else evaluate(student, captions, store, config, **how)
        found = inspect_run(student, evaluation, captions, store, settings, video=video, knowledge=known)
        return found, evaluation, student

    return run


def same(a: Inspection, b: Inspection) -> bool:
    parts = [(a.images, b.images), (a.histograms, b.histograms)]
    arrays = all(x.keys() == y.keys() and all(np.array_equal(x[tag], y[tag]) for tag in x) for x, y in parts)
    return arrays and all(
        np.array_equal(x.vectors, y.vectors) and x.points == y.points
        for x, y in zip(a.point_sets.values(), b.point_sets.values(), strict=True)
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dp", "ti", "wti", "xclip", "xti"])
@pytest.mark.parametrize("top_k", [0, 3])
def test_tags_match_the_parts_of_the_model(look, kind, top_k):
    found, evaluation, _ = look({"similarity.kind": kind, "knowledge.top_k": top_k})
    strips = {f"{d}/query_{n}" for d in ("t2v", "v2t") for n in (1, 2, 3)}
    worst = {tag for tag in found.images if "worst" in tag}
    num_maps = 2
    assert found.images.keys() - worst == (
        strips
        | {"similarity/matrix"}
        | ({f"interaction/pair_{n}" for n in range(1, num_maps + 1)} if kind != "xti" else set())
        | ({f"knowledge/attention_{n}" for n in range(1, num_maps + 1)} if top_k else set())
    )
    assert all(picture.dtype == np.uint8 and picture.shape[2] == 3 for picture in found.images.values())
    assert len(found.histograms["t2v/log2_rank"]) == evaluation.num_queries
    assert len(found.histograms["v2t/log2_rank"]) == TEST_CLIPS
    num_clips = len(found.point_sets["clips"].points)
    assert len(found.histograms["similarity/positive"]) == num_clips
    assert len(found.histograms["similarity/negative"]) == num_clips * (num_clips - 1)
    labels, predictions = found.pr_curves["similarity/pairs"]
    assert labels.sum() == num_clips
    assert predictions.min() == 0
    assert predictions.max() == 1
    assert found.embedding_s > 0
    assert found.drawing_s > 0


def test_inspection_is_deterministic_and_does_not_change_the_model(look):
    first, *made = look({})
    weights = {name: tensor.clone() for name, tensor in made[1].state_dict().items()}
    state = torch.get_rng_state()
    second, *_ = look({}, made)
    assert torch.equal(torch.get_rng_state(), state)
    assert same(first, second)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in made[1].state_dict().items())
    assert all(parameter.grad is None for parameter in made[1].parameters())


@pytest.mark.slow
def test_embeddings_of_the_evaluation_give_the_same_inspection(captions, store, knowledge, load_knowing, look):
    for overrides in ({}, {"knowledge.top_k": 0}):
        again, evaluation, student = look(overrides)
        config = load_knowing(**overrides)
        clips = [clip for clip in evaluation.clip_ids if clip not in evaluation.missing_clips]
        known = knowledge if config.informed_at_inference else None
        video = embed_clips(student, clips, store, config, known, lambda done, total: None)
        given, _, _ = look(overrides, (evaluation, student), video=video)
        assert given.images.keys() == again.images.keys()
        for name, points in again.point_sets.items():
            np.testing.assert_allclose(given.point_sets[name].vectors, points.vectors, atol=1e-5)
        np.testing.assert_allclose(
            given.histograms["similarity/negative"], again.histograms["similarity/negative"], atol=1e-5
        )


def test_strips_show_the_subset_and_the_worst_queries(look, monkeypatch, captions):
    shown = {"t2v": [], "v2t": []}
    blank = np.zeros((1, 1, 3), np.uint8)
    monkeypatch.setattr(module, "text_to_video", lambda e, t, text, thumbs: shown["t2v"].append(text) or blank)
    monkeypatch.setattr(module, "video_to_text", lambda e, t, clip, thumbs: shown["v2t"].append(clip) or blank)
    _, evaluation, _ = look({})
    subset = choose_subset(
        evaluation.clip_ids, evaluation.text_ids, evaluation.clip_of_text, num_clips=3, captions_per_clip=2
    )
    assert shown["t2v"][:3] == [texts[0] for texts in subset.texts]
    assert shown["v2t"][:3] == list(subset.clips)
    for direction in ("t2v", "v2t"):
        ranks = getattr(evaluation.ranks, direction)
        finite = sorted(ranks[ranks.isfinite()].tolist(), reverse=True)
        assert ranks[shown[direction][3:]].tolist() == [rank for rank in finite[:2] if rank > 1]


def test_undecoded_clip_has_strips_only(look, captions):
    """All nine clips are looked at; one of them has no frames."""
    found, evaluation, _ = look({}, num_clips=20, num_queries=20)
    assert evaluation.missing_clips == ("v20",)
    assert sum("t2v/query" in tag for tag in found.images) == TEST_CLIPS
    clips = found.point_sets["clips"]
    assert sorted(point.clip_id for point in clips.points) == sorted(set(evaluation.clip_ids) - {"v20"})
    assert len(found.histograms["similarity/positive"]) == TEST_CLIPS - 1


def test_points_are_clips_then_captions(look, captions, tmp_path):
    found, evaluation, _ = look({})
    both, clips = found.point_sets["clips_and_captions"], found.point_sets["clips"]
    num = len(clips.points)
    assert both.points[:num] == clips.points
    assert {point.kind for point in clips.points} == {"clip"}
    texts = dict(zip(evaluation.text_ids, build_gallery(captions, "test").texts, strict=True))
    for point in both.points[num:]:
        assert point.kind == "caption"
        assert point.caption in [text for name, text in texts.items() if name.startswith(f"{point.clip_id}#")]
    order = [point.clip_id for point in both.points[num:]]
    assert list(dict.fromkeys(order)) == [point.clip_id for point in clips.points]
    assert max(map(order.count, order)) == 2
    np.testing.assert_allclose(np.linalg.norm(both.vectors, axis=1), 1, atol=1e-5)
    write_projection(tmp_path, found.point_sets)
    written = np.loadtxt(tmp_path / "clips_and_captions.tsv", delimiter="\t")
    np.testing.assert_allclose(written, both.vectors, atol=1e-5)


def test_similarity_matrix_equals_single_pairs(look, captions, store, knowledge, load_knowing):
    found, _, student = look({})
    clips = [point.clip_id for point in found.point_sets["clips"].points]
    first = [point.caption for point in found.point_sets["clips"].points]
    table, expected = knowledge.phrase_embeddings(), []
    with torch.no_grad():
        for caption, clip in zip(first, clips, strict=True):
            frames, mask = frames_to_tensor(*store.read([clip]))
            video = student.encode_video(frames, mask, table[knowledge.phrase_ids([clip], 3)])
            expected.append(student.similarity(student.encode_text(*CLIP([caption], max_words=12)), video).item())
    np.testing.assert_allclose(found.histograms["similarity/positive"], expected, atol=1e-5)


def test_attention_is_drawn_without_informed_clips(look, captions, store, knowledge, tmp_path):
    """As in distillation: the fusion is there, clips are embedded plain, and phrases may be known of other clips only."""
    distilled = {"knowledge.at_inference": False, "loss.distill": 1.0}
    found, evaluation, student = look(distilled)
    assert "knowledge/attention_1" in found.images
    create_knowledge(
        tmp_path,
        build_dictionary(pq.read_table(knowledge.path / "phrases.parquet"), leaky=False),
        source="matched",
        teacher="t",
        num_matches=6,
    )
    write_embeddings(tmp_path, 0, knowledge.phrase_embeddings())
    write_matches(tmp_path, knowledge.matches.slice(0, 10))
    other = mark_complete(tmp_path)
    assert other.unmatched_clips(evaluation.clip_ids) == list(evaluation.clip_ids)
    without, _, _ = look(distilled, (evaluation, student), known=other)
    assert found.images.keys() - without.images.keys() == {"knowledge/attention_1", "knowledge/attention_2"}
    np.testing.assert_array_equal(without.point_sets["clips"].vectors, found.point_sets["clips"].vectors)


def test_attention_is_drawn_with_the_phrases_of_the_clip(look, store, knowledge, monkeypatch):
    drawn = []

    def draw(attention, phrases, frames, *, clip_id):
        drawn.append((attention, phrases, frames, clip_id))
        return np.zeros((1, 1, 3), np.uint8)

    monkeypatch.setattr(module, "attention_map", draw)
    found, _, student = look({})
    assert [clip for *_, clip in drawn] == [point.clip_id for point in found.point_sets["clips"].points[:2]]
    for attention, phrases, frames, clip in drawn:
        pixels, (length,) = store.read([clip])
        ids = knowledge.phrase_ids([clip], 3)
        assert list(phrases) == [knowledge.phrases[i] for i in ids[0].tolist()]
        with torch.no_grad():
            values = student.backbone.clip.encode_image(
                student.backbone.pixels(torch.from_numpy(pixels[0, :length]).permute(0, 3, 1, 2))
            )
            expected = student.fusion.attention(values[None], knowledge.phrase_embeddings()[ids]).mean(1)[0]
        np.testing.assert_allclose(attention, expected, atol=1e-5)
        assert attention.shape == (length, 3)
        assert len(frames) == length
