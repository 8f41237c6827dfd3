"""The terms that learn from a frozen teacher, each against a direct computation, item by item."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from waver.knowledge.soft_targets import PhraseSpace, Spaces
from waver.model.interaction import last_token
from waver.training.build import build_training
from waver.training.step import batch_terms, make_batch, train_step

CLIPS = ["v00", "v01", "v02", "v04", "v05", "v06"]
TERMS = {"loss.phrases_video": 0.3, "loss.phrases_text": 0.5, "loss.keep": 0.7, "knowledge.at_inference": False}


def unit(seed: int, *shape: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


@pytest.fixture
def batch(captions, store, knowledge, load_knowing):
    """Six pairs, their phrases, and embeddings of a teacher of width 5."""
    rows = np.array([captions["clip_id"].to_pylist().index(clip) for clip in CLIPS])
    made = make_batch(captions, rows, store.read(CLIPS), load_knowing(), 6, knowledge)
    return replace(made, teacher_clips=unit(1, 6, 5), teacher_captions=unit(2, 6, 5))


@pytest.fixture
def start(knowledge):
    def build(config):
        training = build_training(
            config, num_steps=9, device=torch.device("cpu"), phrases=knowledge.phrase_embeddings()
        )
        theirs, ours = unit(3, knowledge.num_phrases, 5), unit(4, knowledge.num_phrases, 32)
        training.spaces = Spaces(
            teacher=PhraseSpace(theirs, 0.1 * unit(5, 5), 0.1 * unit(6, 5), 0.2, 0.3),
            student=PhraseSpace(ours, 0.1 * unit(7, 32), 0.1 * unit(8, 32), 0.4, 0.5),
        )
        return training

    return build


def distribution(item, mean, phrases, temperature) -> list[float]:
    scores = torch.stack([(item - mean) @ phrase / temperature for phrase in phrases])
    return (scores.exp() / scores.exp().sum()).tolist()


def divergence(teacher: list[float], student: list[float]) -> float:
    return sum(p * float(np.log(p / q)) for p, q in zip(teacher, student, strict=True))


@pytest.mark.parametrize("target", ["caption", "clip"])
@pytest.mark.parametrize("kind", ["dp", "wti"])
@torch.no_grad()
def test_the_terms_of_phrases_equal_their_formulas(batch, start, load_knowing, kind, target):
    config = load_knowing(**TERMS, **{"similarity.kind": kind, "loss.phrases_text_target": target})
    training = start(config)
    terms = batch_terms(training, batch, config)[0]
    assert terms.keys() == {"contrastive", "phrases_video", "phrases_text", "keep"}
    pool = sorted({phrase for ids in batch.phrase_ids.tolist() for phrase in ids})
    teacher, student = training.spaces.teacher, training.spaces.student
    text = training.student.encode_text(batch.token_ids, batch.token_mask)
    video = training.student.encode_video(batch.frames, batch.frame_mask)
    expected = {"phrases_video": 0.0, "phrases_text": 0.0}
    for i in range(6):
        frames = F.normalize(video.values[i, video.mask[i]], dim=-1).mean(0)
        of_clip = distribution(batch.teacher_clips[i], teacher.clip_mean, teacher.phrases[pool], 0.2)
        of_caption = distribution(batch.teacher_captions[i], teacher.caption_mean, teacher.phrases[pool], 0.3)
        ours = distribution(frames / frames.norm(), student.clip_mean, student.phrases[pool], 0.4)
        expected["phrases_video"] += divergence(of_clip, ours) / 6
        end = last_token(text.values, text.mask)[i]
        ours = distribution(end / end.norm(), student.caption_mean, student.phrases[pool], 0.5)
        expected["phrases_text"] += divergence(of_clip if target == "clip" else of_caption, ours) / 6
    for name, value in expected.items():
        assert value > 0.01
        assert terms[name].item() == pytest.approx(value, rel=1e-4), name


@torch.no_grad()
def test_keep_compares_similarities_with_those_of_the_teacher(batch, start, load_knowing):
    config = load_knowing(**TERMS, **{"loss.temperature": 5})
    training = start(config)
    term = batch_terms(training, batch, config)[0]["keep"]
    student = training.student
    text, video = (
        student.encode_text(batch.token_ids, batch.token_mask),
        student.encode_video(batch.frames, batch.frame_mask),
    )
    scale = student.logit_scale.exp() / 5
    ours, theirs = scale * student.similarity(text, video), scale * batch.teacher_captions @ batch.teacher_clips.T
    rows = [
        F.kl_div(a.log_softmax(1), b.softmax(1), reduction="batchmean") for a, b in ((ours, theirs), (ours.T, theirs.T))
    ]
    torch.testing.assert_close(term, 25 * (rows[0] + rows[1]) / 2)


def test_a_student_that_says_what_the_teacher_says_learns_nothing(batch, start, load_knowing):
    """Teacher and student share their space, and the teacher's embeddings are the student's own."""
    config = load_knowing(**{**TERMS, "similarity.kind": "dp", "model.temporal": "none"})
    training = start(config)
    training.spaces = Spaces(training.spaces.student, training.spaces.student)
    student = training.student
    with torch.no_grad():
        text = student.encode_text(batch.token_ids, batch.token_mask)
        video = student.encode_video(batch.frames, batch.frame_mask)
        ends = F.normalize(last_token(text.values, text.mask), dim=-1)
        frames = F.normalize(video.values, dim=-1) * video.mask[..., None]
    same = replace(batch, teacher_clips=F.normalize(frames.sum(1), dim=-1), teacher_captions=ends)
    terms = batch_terms(training, same, config)[0]
    for name in ("phrases_video", "phrases_text", "keep"):
        assert terms[name].item() == pytest.approx(0, abs=1e-6)
    (terms["phrases_video"] + terms["phrases_text"] + terms["keep"]).backward()
    for name, parameter in student.named_parameters():
        assert parameter.grad is None or parameter.grad.norm() < 1e-4, name


@pytest.mark.parametrize("name", ["phrases_video", "phrases_text", "keep"])
def test_the_gradient_is_that_of_finite_differences(batch, start, load_knowing, name):
    config = load_knowing(**TERMS, **{"similarity.kind": "dp", "model.temporal": "none"})
    training = start(config)
    training.student.double()
    training.spaces = Spaces(*(
        replace(
            space,
            phrases=space.phrases.double(),
            clip_mean=space.clip_mean.double(),
            caption_mean=space.caption_mean.double(),
        )
        for space in (training.spaces.teacher, training.spaces.student)
    ))  # fmt: skip
    exact = replace(batch, teacher_clips=batch.teacher_clips.double(), teacher_captions=batch.teacher_captions.double())
    backbone = training.student.backbone
    weight = backbone.clip.visual.proj if name == "phrases_video" else backbone.text.text_projection
    batch_terms(training, exact, config)[0][name].backward()
    step = torch.zeros_like(weight)
    step[3, 4] = 1e-5
    values = []
    with torch.no_grad():
        for sign in (1, -1):
            weight.add_(sign * step)
            values.append(batch_terms(training, exact, config)[0][name].item())
            weight.sub_(sign * step)
    assert weight.grad[3, 4].item() != 0
    assert weight.grad[3, 4].item() == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5, abs=1e-9)


def test_the_logit_scale_learns_from_captions_and_videos_alone(batch, start, load_knowing):
    """A shared temperature would shrink until all distributions are uniform."""
    training = start(load_knowing(**TERMS))
    terms = batch_terms(training, batch, load_knowing(**TERMS))[0]
    (terms["phrases_video"] + terms["phrases_text"] + terms["keep"]).backward()
    scale = training.student.logit_scale.grad
    assert scale is None or scale == 0


def test_a_step_logs_every_term(batch, start, load_knowing):
    config = load_knowing(**TERMS)
    logs = train_step(start(config), batch, config)
    parts = {name: logs[f"loss/{name}"] for name in ("contrastive", "phrases_video", "phrases_text", "keep")}
    total = sum(config.loss.weights[name] * value for name, value in parts.items())
    assert logs["loss/total"] == pytest.approx(total, rel=1e-5)
