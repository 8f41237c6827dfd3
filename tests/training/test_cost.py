from dataclasses import replace

import pyarrow as pa
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from waver.config import load_config
from waver.data.batch import Batch
from waver.model.backbone import Backbone
from waver.training.build import build_training
from waver.training.cost import CostError, TrainingCost, count_forward, format_hours, training_cost
from waver.training.step import compute_gradients


def table(**splits: tuple[int, int]) -> pa.Table:
    """Split -> (number of clips, captions of each)."""
    rows = [(f"{split}{clip}", split) for split, (clips, each) in splits.items() for clip in range(clips * each)]
    return pa.table(
        {
            "clip_id": [f"{split}{int(clip_id.removeprefix(split)) // splits[split][1]}" for clip_id, split in rows],
            "split": [split for _, split in rows],
        }
    )


def random_batch(config, num_pairs: int) -> Batch:
    words, frames, size = config.text.max_words, config.video.max_frames, config.video.size
    return Batch(
        token_ids=torch.randint(1, 100, (num_pairs, words)),
        token_mask=torch.ones(num_pairs, words, dtype=torch.bool),
        frames=torch.randint(0, 255, (num_pairs, frames, 3, size, size), dtype=torch.uint8),
        frame_mask=torch.ones(num_pairs, frames, dtype=torch.bool),
        phrase_ids=torch.randint(0, 9, (num_pairs, config.knowledge.top_k)),
        clip_ids=tuple(map(str, range(num_pairs))),
        captions=tuple(map(str, range(num_pairs))),
        caption_keys=torch.arange(num_pairs),
        num_pairs=num_pairs,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"train.backbone_lr_scale": 0},
        {"similarity.kind": "xti"},
        {"similarity.kind": "xclip"},
        {"similarity.kind": "dp", "model.temporal": "none"},
        {"loss.distill": 1, "knowledge.at_inference": False},
        {"loss.kind": "sigmoid", "train.micro_batch_size": 4, "train.freeze": ["vision"]},
        {"train.micro_batch_size": 3, "train.grad_checkpointing": True},
        {"train.freeze": ["text.1"], "train.grad_checkpointing": True},
    ],
    ids=str,
)
def test_the_estimate_is_what_a_step_computes(load_knowing, settings):
    pixels = {"knowledge.top_k": 0, "embeddings.use": "never"}
    config = load_knowing(**{"train.global_batch_size": 6, "train.epochs": 1, **pixels, **settings} | (
        {"knowledge.top_k": 3} if "loss.distill" in settings else {}))  # fmt: skip
    training = build_training(config, num_steps=1, device=torch.device("cpu"), phrases=torch.randn(9, 32))
    with FlopCounterMode(display=False) as counter:
        compute_gradients(training, random_batch(config, 6), config)
    cost = training_cost(config, table(train=(6, 1), validation=(1, 1)))
    assert cost.num_pairs == 6
    # The first layer of the vision tower needs no gradient of its input, and on CPUs torch does not count attention.
    assert counter.get_total_flops() == pytest.approx(cost.training_flops, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "image", "text"),
    [("ViT-B-32-quickgelu", 8.82e9, 5.96e9), ("ViT-B-16", 35.13e9, 5.96e9), ("RN50", 12.22e9, 5.96e9)],
)
def test_towers_cost_what_open_clip_publishes(repository, backbone, image, text):
    """In docs/model_profile.csv, whose texts have 77 tokens. waver projects and weighs all of them."""
    settings = {"model.backbone": backbone, "text.max_words": 77}
    forward = count_forward(load_config(repository / "experiments/msrvtt.yaml", settings))
    assert (forward.frame, forward.caption) == (pytest.approx(image, rel=0.01), pytest.approx(text, rel=0.05))


@pytest.mark.slow
def test_adapters_cost_less_than_training_the_towers_and_more_than_frozen_ones(load_knowing):
    captions = table(train=(6, 1), validation=(1, 1))
    costs = []
    for settings in ({"train.backbone_lr_scale": 0}, {"model.lora.rank": 2, "model.lora.where": "text"}, {}):
        pixels = {"knowledge.top_k": 0, "embeddings.use": "never"}
        config = load_knowing(**{"train.global_batch_size": 6, "train.epochs": 1, **pixels, **settings})
        training = build_training(config, num_steps=1, device=torch.device("cpu"))
        with FlopCounterMode(display=False) as counter:
            compute_gradients(training, random_batch(config, 6), config)
        estimate = training_cost(config, captions).training_flops
        assert 0.9 * counter.get_total_flops() <= estimate <= 1.4 * counter.get_total_flops()
        costs.append(counter.get_total_flops())
    assert costs == sorted(set(costs))


def test_an_lstm_costs_two_products_for_each_of_its_four_gates(load_tiny):
    forward = count_forward(load_tiny(**{"model.temporal": "seqLSTM", "similarity.kind": "dp"}))
    assert forward.clip == 3 * 2 * 4 * 2 * 32**2


@pytest.mark.slow
def test_epochs_captions_frozen_towers_and_workers_count(load_tiny):
    def cost(train=10, **settings) -> TrainingCost:
        return training_cost(load_tiny(**settings), table(train=(train, 4), validation=(5, 2)))

    base = cost()
    assert base.num_pairs == 2 * 10
    assert cost(**{"train.epochs": 6}).flops == 3 * base.flops
    assert cost(**{"train.captions_per_clip": 4}).training_flops == 4 * base.training_flops
    assert cost(**{"train.captions_per_clip": 4}).evaluation_flops == base.evaluation_flops
    assert cost(20).training_flops == 2 * base.training_flops
    forward = count_forward(load_tiny())
    towers = 20 * (forward.caption + 3 * forward.frame)
    frozen = cost(**{"train.backbone_lr_scale": 0, "embeddings.use": "never"})
    # The weights of tokens are trained in both; they are counted with the captions.
    assert base.training_flops - frozen.training_flops == 2 * towers
    two = cost(**{"resources.workers": 2, "similarity.kind": "xti"})
    one = cost(**{"similarity.kind": "xti"})
    comparison = count_forward(load_tiny(**{"similarity.kind": "xti"})).comparison
    assert two.training_flops - one.training_flops == 3 * 20 * 6 * comparison
    clip = 3 * forward.frame + forward.clip
    assert base.evaluation_flops == 2 * (5 * clip + 10 * forward.caption + 50 * forward.comparison)


def test_what_is_read_from_embeddings_is_computed_once(load_tiny):
    """10 clips of train with 4 captions, 5 of validation with 2; frames and, if they are read often, captions."""
    captions, forward = table(train=(10, 4), validation=(5, 2)), count_forward(load_tiny())

    def cost(**settings) -> TrainingCost:
        return training_cost(load_tiny(**{"train.backbone_lr_scale": 0, **settings}), captions)

    pixels, once = cost(**{"embeddings.use": "never"}), cost()
    assert pixels.embedding_flops == 0
    assert once.embedding_flops == 15 * 3 * forward.frame
    assert pixels.training_flops - once.training_flops == 2 * 10 * 3 * forward.frame
    assert pixels.evaluation_flops - once.evaluation_flops == 2 * 5 * 3 * forward.frame
    assert once.gpu_hours - once.embedding_hours == pytest.approx((once.flops - once.embedding_flops) / 4e13 / 3600)
    tower = forward.caption - forward.words
    often, words = cost(**{"train.epochs": 5}), cost(**{"train.epochs": 5, "embeddings.captions": False})
    assert often.embedding_flops == once.embedding_flops + 50 * tower
    assert words.training_flops - often.training_flops == 5 * 10 * tower
    assert words.evaluation_flops - often.evaluation_flops == 5 * 10 * tower
    assert cost(**{"train.backbone_lr_scale": 1}).embedding_flops == 0
    text = cost(**{"train.backbone_lr_scale": 1, "train.freeze": ["text"], "embeddings.captions": True})
    assert text.embedding_flops == 50 * tower


def test_a_run_that_reads_embeddings_computes_what_is_estimated(load_tiny):
    config = load_tiny(**{"train.backbone_lr_scale": 0, "train.epochs": 1, "embeddings.captions": True})
    training = build_training(config, num_steps=1, device=torch.device("cpu"))
    batch = random_batch(config, 6)
    batch = replace(batch, frames=torch.randn(6, 3, 32), tokens=torch.randn(6, config.text.max_words, 32))
    with FlopCounterMode(display=False) as counter:
        compute_gradients(training, batch, config)
    cost = training_cost(config, table(train=(6, 1), validation=(1, 1)))
    assert counter.get_total_flops() == pytest.approx(cost.training_flops, rel=0.1)


def test_a_tower_that_the_meta_device_cannot_run_is_an_error_in_words(load_tiny, monkeypatch):
    """Its width depends on its pixels, say."""
    monkeypatch.setattr(Backbone, "encode_tokens", lambda self, tokens, mask: tokens[: tokens.sum().item()])
    with pytest.raises(CostError, match=r"the cost of training is not estimated: .*item.* meta"):
        count_forward(load_tiny(**{"text.max_words": 9}))  # counted by no other test


def test_cost_in_words():
    cost = TrainingCost(855_000, 278_676_899_712_000_000, 358_096_788_720_000)
    assert cost.describe() == (
        "279 PFLOP for 855,000 pairs of a caption and a clip and the validations, 1.9 GPU-hours at 40 TFLOP/s "
        "(assumed of an A100 in bf16)"
    )
    assert TrainingCost(1, 3 * 10**12, 0).describe().startswith("3 TFLOP for 1 pairs")
    shared = TrainingCost(1, 144 * 10**15, 0, 288 * 10**15).describe()
    assert shared.startswith("432 PFLOP")
    assert "3.0 GPU-hours at 40 TFLOP/s" in shared
    assert shared.endswith("), 2.0 GPU-hours of it for embeddings that other runs share")
    assert [format_hours(hours) for hours in (0.001, 0.05, 1.25, 77.5)] == [
        "less than a GPU-minute",
        "3 GPU-minutes",
        "1.2 GPU-hours",
        "78 GPU-hours",
    ]
