"""A step by parts against the plain step: the same loss, the same gradient of every parameter."""

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch

from waver.config import ExperimentConfig
from waver.data.batch import Batch
from waver.training.build import Training, build_training
from waver.training.micro_batches import split_batch
from waver.training.step import batch_terms, compute_gradients, make_batch, train_step, weighted_sum

CPU = torch.device("cpu")
STEPS = {
    "wti seqTransf": {"knowledge.top_k": 0},
    "dp": {"knowledge.top_k": 0, "similarity.kind": "dp", "model.temporal": "none"},
    "ti seqLSTM": {"knowledge.top_k": 0, "similarity.kind": "ti", "model.temporal": "seqLSTM"},
    "xclip": {"knowledge.top_k": 0, "similarity.kind": "xclip"},
    "xti": {"knowledge.top_k": 0, "similarity.kind": "xti", "model.temporal": "none"},
    "informed": {"loss.knowledge": 0.5},
    "sigmoid": {"loss.knowledge": 0.5, "loss.kind": "sigmoid"},
    "gated": {"knowledge.fusion": "gated", "model.frame_norm": "layer"},
    "dropout": {"knowledge.dropout": 0.5, "loss.distill": 1, "loss.temperature": 2},
    "distilled": {"knowledge.at_inference": False, "loss.knowledge": 0.3, "loss.distill": 2, "loss.temperature": 2},
    "shared captions": {"loss.shared_captions": "ignored", "knowledge.top_k": 2, "loss.knowledge": 0.5},
}
"""Every interaction and aggregator, and every use of knowledge."""


@pytest.fixture
def make(captions, store, knowledge) -> Callable[[ExperimentConfig], Batch]:
    """Seven pairs, a number that no size of parts divides."""

    def make(config: ExperimentConfig) -> Batch:
        clip_ids = store.ok_clip_ids()[:7]
        rows = np.array([captions["clip_id"].to_pylist().index(clip_id) for clip_id in clip_ids])
        return make_batch(captions, rows, store.read(clip_ids), config, 7, knowledge)

    return make


@pytest.fixture
def start(knowledge) -> Callable[..., Training]:
    def start(config: ExperimentConfig, dtype: torch.dtype = torch.float32) -> Training:
        phrases = knowledge.phrase_embeddings()
        training = build_training(config, num_steps=9, device=CPU, phrases=phrases)
        training.student.to(dtype).train()
        open_gates(training)
        training.phrases = phrases.to(dtype)
        return training

    return start


def open_gates(training: Training) -> None:
    """So that informed videos are other than plain ones."""
    fusion = training.student.fusion
    if fusion is not None and fusion.gated:
        with torch.no_grad():
            fusion.attended_gate.fill_(0.7)
            fusion.output_gate.fill_(0.7)


def gradients_of(training: Training) -> dict[str, torch.Tensor]:
    """Takes them, so that the next step starts without."""
    found = {name: p.grad for name, p in training.student.named_parameters() if p.requires_grad}
    training.student.zero_grad(set_to_none=True)
    assert all(gradient is not None for gradient in found.values())
    return found


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    whole = torch.stack([gradient.norm() for gradient in expected.values()]).norm()
    assert whole > 0
    for name, gradient in expected.items():
        # Some biases have no effect (a softmax does not see them): their gradient is rounding alone.
        difference = (found[name] - gradient).norm()
        assert difference <= tolerance * max(gradient.norm(), 0.01 * whole), name


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-4)], ids=str)
@pytest.mark.parametrize("step", STEPS)
def test_loss_and_gradient_are_those_of_the_plain_step(make, start, load_knowing, step, dtype, tolerance):
    config = load_knowing(**STEPS[step])
    batch, training = make(config), start(config, dtype)
    plain_terms, plain_diagnostics = compute_gradients(training, batch, config)
    expected = gradients_of(training)
    for size in (1, 3, 6):
        by_parts = load_knowing(**STEPS[step], **{"train.micro_batch_size": size})
        terms, diagnostics = compute_gradients(training, batch, by_parts)
        torch.testing.assert_close(terms, plain_terms, rtol=tolerance, atol=0)
        torch.testing.assert_close(diagnostics, plain_diagnostics, rtol=tolerance, atol=tolerance)
        assert_same(gradients_of(training), expected, tolerance)


def test_towers_see_one_part_at_a_time(make, start, load_knowing, monkeypatch):
    config = load_knowing(**{"train.micro_batch_size": 3})
    batch, training = make(config), start(config)
    seen = []
    encode = training.student.backbone.encode_tokens

    def note(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        seen.append((len(ids), torch.is_grad_enabled()))
        return encode(ids, mask)

    monkeypatch.setattr(training.student.backbone, "encode_tokens", note)
    compute_gradients(training, batch, config)
    assert seen == [(3, False), (3, False), (1, False), (3, True), (3, True), (1, True)]
    seen.clear()
    compute_gradients(training, batch, load_knowing(**{"train.micro_batch_size": 7}))
    assert seen == [(7, True)]  # one part is the plain step, which embeds once


def test_dropped_patches_are_the_same_in_both_passes(make, start, load_knowing, tiny_config):
    """Against a step that embeds the same parts once, with gradient, and keeps all of them."""
    backbone = copy.deepcopy(tiny_config.model.backbone)
    backbone["vision_cfg"]["patch_dropout"] = 0.5
    settings = {"knowledge.top_k": 0, "model.backbone": backbone, "model.weights": None}
    config = load_knowing(**settings, **{"train.micro_batch_size": 3})
    batch, training = make(config), start(config, torch.float64)
    torch.manual_seed(5)
    terms, _ = compute_gradients(training, batch, config)
    after, found = torch.get_rng_state(), gradients_of(training)

    torch.manual_seed(5)
    drawn = [training.student(part, training.phrases[part.phrase_ids], plain=True, informed=False)
             for part in split_batch(batch, 3)]  # fmt: skip
    assert torch.equal(torch.get_rng_state(), after)
    whole = type(drawn[0].text).concatenate
    training.forward = lambda *args, **kwargs: type(drawn[0])(
        whole([part.text for part in drawn]), whole([part.plain for part in drawn]), None, None
    )
    expected_terms, _ = batch_terms(training, batch, config)
    weighted_sum(expected_terms, config.loss.weights).backward()
    torch.testing.assert_close(terms, expected_terms)
    assert_same(found, gradients_of(training), 1e-6)
    # Other patches give another loss, so the comparison above can fail.
    training.forward = training.student
    other = compute_gradients(training, batch, load_knowing(**settings))[0]
    assert not torch.isclose(other["contrastive"], terms["contrastive"], rtol=1e-6)


def test_a_step_by_parts_changes_weights_like_the_plain_step(make, start, load_knowing):
    plain = load_knowing(**{"loss.knowledge": 0.5})
    by_parts = load_knowing(**{"loss.knowledge": 0.5, "train.micro_batch_size": 2})
    batch, runs = make(plain), [start(plain), start(by_parts)]
    logs = [train_step(training, batch, config) for training, config in zip(runs, (plain, by_parts), strict=True)]
    assert logs[0].keys() == logs[1].keys()
    for name, value in logs[0].items():
        assert logs[1][name] == pytest.approx(value, rel=1e-4), name


def test_bfloat16_by_parts_is_as_near_as_its_rounding(make, start, load_knowing):
    config = load_knowing(**{"train.precision": "bf16", "loss.knowledge": 0.5})
    batch, training = make(config), start(config)
    terms, _ = compute_gradients(training, batch, config)
    expected = gradients_of(training)
    by_parts = load_knowing(**{"train.precision": "bf16", "loss.knowledge": 0.5, "train.micro_batch_size": 3})
    found_terms, _ = compute_gradients(training, batch, by_parts)
    torch.testing.assert_close(found_terms, terms, rtol=0.02, atol=0)
    assert_same(gradients_of(training), expected, 0.1)


def test_settings_of_memory_do_not_make_another_run(load_tiny):
    base, other = load_tiny(), load_tiny(**{"train.micro_batch_size": 2})
    assert (base.identity(), base.digest()) == (other.identity(), other.digest())
    assert load_tiny(**{"train.lr": 2}).digest() != base.digest()
