import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from waver.data.annotations import AnnotationError
from waver.data.epochs import epoch_batches
from waver.model.errors import BackboneError
from waver.runs.inputs import load_captions
from waver.training.build import build_tokenizer, build_training, warmup_cosine
from waver.training.step import (
    NonFiniteLossError,
    compute_gradients,
    make_batch,
    train_epoch,
    train_step,
    weighted_sum,
)

CPU = torch.device("cpu")


@pytest.fixture
def batches(captions, store, tiny_config):
    rows = np.array(
        [r for r, c in enumerate(captions["clip_id"].to_pylist()) if c in store.ok_clip_ids() and c < "v14"]
    )
    _, clips = np.unique(captions["clip_id"].take(rows).to_numpy(), return_inverse=True)

    def plan(epoch: int):
        for chosen in epoch_batches(clips, epoch=epoch, seed=0, global_batch_size=6, captions_per_clip=1):
            share = rows[chosen]
            yield make_batch(
                captions, share, store.read(captions["clip_id"].take(share).to_pylist()), tiny_config, len(share)
            )

    return plan


def test_batch_joins_captions_with_their_clips(captions, store, tiny_config):
    rows = np.array([5, 0, 9])
    clip_ids = captions["clip_id"].take(rows).to_pylist()
    batch = make_batch(captions, rows, store.read(clip_ids), tiny_config, num_pairs=8)
    assert batch.clip_ids == tuple(clip_ids)
    assert batch.captions == tuple(captions["caption"].take(rows).to_pylist())
    assert (batch.frames.shape, batch.frames.dtype, batch.num_pairs) == ((3, 3, 3, 16, 16), torch.uint8, 8)
    frames, num_frames = store.read(clip_ids)
    assert torch.equal(batch.frames[1, :, 2], torch.from_numpy(frames[1, ..., 2]))
    assert batch.frame_mask.sum(1).tolist() == num_frames.tolist()


def test_captions_are_padded_to_the_longest_of_the_batch(captions, store, load_tiny):
    config = load_tiny(**{"text.max_words": 40})
    batch = make_batch(captions, np.array([5, 0, 9]), store.read(["v00", "v01", "v02"]), config, num_pairs=3)
    assert batch.token_ids.shape == batch.token_mask.shape
    assert batch.token_mask.sum(1).max() == batch.token_mask.shape[1] < 12


def test_a_tower_that_reads_padding_gets_the_whole_context(captions, store, tiny_config, load_tiny):
    backbone = tiny_config.model.backbone
    config = load_tiny(**{"model.backbone": {**backbone, "text_cfg": {**backbone["text_cfg"], "no_causal_mask": True}}})
    batch = make_batch(captions, np.array([5, 0, 9]), store.read(["v00", "v01", "v02"]), config, num_pairs=3)
    assert batch.token_ids.shape == (3, 77)
    assert batch.token_mask.sum(1).max() == batch.token_mask.shape[1] < 12


@pytest.mark.parametrize("kind", ["dp", "ti", "wti", "xti", "xclip"])
def test_padding_changes_neither_loss_nor_gradient(captions, store, load_tiny, kind):
    """The same captions, cut to the longest of them and padded to text.max_words, in float64."""
    config = load_tiny(**{"similarity.kind": kind, "text.max_words": 20})
    rows, clips = np.array([5, 0, 9]), store.read(["v00", "v01", "v02"])
    cut = make_batch(captions, rows, clips, config, num_pairs=3)
    padded = replace(cut, **dict(zip(
        ("token_ids", "token_mask"), build_tokenizer(config)(list(cut.captions), max_words=20), strict=True
    )))  # fmt: skip
    assert padded.token_mask.shape[1] == 20 > cut.token_mask.shape[1]
    found = []
    for batch in (cut, padded):
        training = build_training(config, num_steps=10, device=CPU)
        training.student.double()
        terms, _ = compute_gradients(training, batch, config)
        gradients = {n: p.grad for n, p in training.student.named_parameters() if p.grad is not None}
        found.append((weighted_sum(terms, config.loss.weights), gradients))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=0, atol=1e-12)
    assert found[0][1].keys() == found[1][1].keys()
    for name, gradient in found[0][1].items():
        torch.testing.assert_close(gradient, found[1][1][name], rtol=0, atol=1e-10, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dp", "ti", "wti", "xclip", "xti"])
def test_training_lowers_the_loss(batches, load_tiny, kind):
    config = load_tiny(**{"similarity.kind": kind, "train.warmup_fraction": 0.0, "train.lr": 3e-3})
    training = build_training(config, num_steps=60, device=CPU)
    losses = [logs["loss/total"] for epoch in range(20) for logs in train_epoch(training, batches(epoch), config)]
    assert (training.epoch, training.step) == (20, len(losses))
    assert np.mean(losses[-3:]) < 0.6 * np.mean(losses[:3])


def test_logs_have_losses_rates_and_gradient_norm(batches, load_tiny):
    config = load_tiny(**{"train.backbone_lr_scale": 0.01})
    training = build_training(config, num_steps=10, device=CPU)
    logs = next(train_epoch(training, batches(0), config))
    assert logs["loss/total"] == pytest.approx(logs["loss/contrastive"])
    assert logs["lr/backbone"] == pytest.approx(0.01 * logs["lr/new"])
    assert logs["logit_scale"] == pytest.approx(1 / 0.07)
    assert logs["grad_norm"] > 0
    assert logs["clips_per_s"] > 0
    assert 0 <= logs["data_wait_share"] <= 1


def test_vectors_and_logit_scale_have_no_weight_decay(load_tiny):
    training = build_training(load_tiny(), num_steps=10, device=CPU)
    groups = training.optimizer.param_groups
    assert [group["weight_decay"] for group in groups] == [0.2, 0.0, 0.2, 0.0]
    assert all(p.ndim > 1 for group in groups[::2] for p in group["params"])
    assert sum(len(group["params"]) for group in groups) == len(list(training.student.parameters()))


def test_backbone_can_be_frozen(batches, load_tiny):
    config = load_tiny(**{"train.backbone_lr_scale": 0, "train.warmup_fraction": 0.0})
    training = build_training(config, num_steps=10, device=CPU)
    before = copy.deepcopy(training.student.state_dict())
    train_step(training, next(batches(0)), config)
    changed = {name for name, value in training.student.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert not any(name.startswith("backbone") for name in changed)


def test_parts_of_the_backbone_can_be_frozen(batches, load_tiny):
    """They change in no step, not by weight decay either, and the optimizer keeps nothing for them."""
    config = load_tiny(**{"train.freeze": ["vision", "text.1"], "train.warmup_fraction": 0.0})
    training = build_training(config, num_steps=10, device=CPU)
    before = copy.deepcopy(training.student.state_dict())
    train_step(training, next(batches(0)), config)
    frozen = ("visual.", "positional_embedding", "token_embedding", "transformer.resblocks.0.")
    names = {f"backbone.clip.{name}" for name in frozen}
    parameters = dict(training.student.named_parameters())
    unchanged = {name for name in parameters if torch.equal(before[name], parameters[name])}
    assert unchanged == {name for name in parameters if name.startswith(tuple(names))}
    assert {name for name, p in parameters.items() if p.grad is None} == unchanged
    optimized = {id(p) for group in training.optimizer.param_groups for p in group["params"]}
    assert optimized == {id(p) for name, p in parameters.items() if name not in unchanged}


@pytest.mark.parametrize("settings", [{"train.backbone_lr_scale": 0}, {"train.freeze": ["vision", "text"]}])
def test_no_trainable_parameter_is_an_error(load_tiny, settings):
    config = load_tiny(**settings, **{"model.temporal": "none", "similarity.kind": "dp"})
    with pytest.raises(BackboneError, match="nothing can be learned"):
        build_training(config, num_steps=10, device=CPU)


def test_recomputed_activations_change_no_weight(batches, load_tiny):
    kept, recomputed = load_tiny(), load_tiny(**{"train.grad_checkpointing": True})
    runs = [build_training(config, num_steps=10, device=CPU) for config in (kept, recomputed)]
    logs = [train_step(run, next(batches(0)), config) for run, config in zip(runs, (kept, recomputed), strict=True)]
    assert runs[1].student.backbone.clip.visual.transformer.grad_checkpointing
    assert not runs[0].student.backbone.clip.visual.transformer.grad_checkpointing
    assert logs[0] == logs[1]
    for name, value in runs[0].student.state_dict().items():
        assert torch.equal(runs[1].student.state_dict()[name], value), name


def test_nan_loss_raises_before_any_weight_changes(batches, tiny_config):
    training = build_training(tiny_config, num_steps=10, device=CPU)
    with torch.no_grad():
        training.student.text_weights[0].weight[0, 0] = torch.nan
    before = copy.deepcopy(training.student.state_dict())
    message = r"step 1: loss = nan.*train.lr is not the cause: .* text_weights.0.weight has values that are NaN"
    with pytest.raises(NonFiniteLossError, match=message):
        train_step(training, next(batches(0)), tiny_config)
    for name, value in training.student.state_dict().items():
        assert torch.equal(value.nan_to_num(), before[name].nan_to_num())
    assert training.step == 0
    training.step = 1
    with pytest.raises(NonFiniteLossError, match=r"step 2: loss = nan.* lr = .*Lower train.lr"):
        train_step(training, next(batches(0)), tiny_config)


def test_a_first_step_that_overflows_does_not_blame_the_learning_rate(batches, tiny_config):
    training = build_training(tiny_config, num_steps=10, device=CPU)
    with torch.no_grad():
        training.student.logit_scale.fill_(1000.0)
    message = r"step 1: loss = .*train.lr is not the cause: .*logit_scale = inf\) a value overflows"
    with pytest.raises(NonFiniteLossError, match=message):
        train_step(training, next(batches(0)), tiny_config)


def test_schedule():
    factors = [warmup_cosine(step, num_steps=100, warmup=0.1) for step in range(100)]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert factors[55] == pytest.approx(0.5 * (1 + math.cos(math.pi * 45 / 90)))
    assert factors[9] == max(factors) == 1
    assert 0 < factors[-1] < 0.001
    assert [warmup_cosine(step, num_steps=4, warmup=0.0) for step in range(2)] == pytest.approx(
        [1, 0.5 * (1 + math.cos(math.pi / 4))]
    )
    assert warmup_cosine(4, num_steps=4, warmup=1.0) >= 0


@pytest.mark.parametrize(
    ("data", "missing"),
    [
        ({"format": "msrvtt", "split": "7k"}, "MSRVTT_train.7k.csv"),
        ({"format": "msvd"}, "captions_msvd.json"),
        ({"format": "vatex", "split": "1k5"}, "test1k5_sec_list.txt"),
        ({"format": "didemo", "allow_missing_captions": True}, "val_list.txt"),
        ({"format": "table"}, "unknown kind of file"),
    ],
)
def test_every_data_set_has_its_loader(load_tiny, tmp_path, data, missing):
    config = load_tiny(data={"annotations": str(tmp_path / "none"), "videos": str(tmp_path), **data})
    with pytest.raises(AnnotationError) as caught:
        load_captions(config)
    assert missing in str(caught.value)
