"""Estimates of the memory of training with the settings that save memory."""

from waver.doctor import machine, memory
from waver.training.build import build_student


def test_memory_knows_what_is_frozen_recomputed_adapted_and_done_by_parts(load_tiny, teacher_weights):
    def parts(**settings) -> tuple[machine.ModelSize, dict[str, int]]:
        config = load_tiny(**{"train.global_batch_size": 64, "model.weights": str(teacher_weights), **settings})
        model = machine.model_size(config)
        (found,) = memory.check_memory(config, None, model, num_phrases=0, gpus=[], ram=None)
        return model, found.details["worker"]

    model, base = parts()
    activations, frames = "activations of the towers", "frames of a batch"
    assert base[activations] == 64 * model.activation_bytes
    by_parts = parts(**{"train.micro_batch_size": 8})[1]
    assert by_parts[activations] == base[activations] / 8
    assert by_parts[frames] == (64 + 4 * 8) * 3 * 3 * 16**2 < base[frames]

    backbone = load_tiny().model.backbone
    deep = {"model.backbone": backbone | {"vision_cfg": backbone["vision_cfg"] | {"layers": 4}}, "model.weights": None}
    kept = parts(**deep)[0].activation_bytes
    recomputed = parts(**deep, **{"train.grad_checkpointing": True})[0].activation_bytes
    assert kept / 5 < recomputed < kept / 2
    frozen = [
        parts(**deep, **{"train.freeze": [part]})[0].activation_bytes for part in ("vision.1", "vision.3", "vision")
    ]
    assert kept > frozen[0] > frozen[1] > frozen[2] > 0

    adapted, with_adapters = parts(**{"model.lora.rank": 2})
    # Of three blocks of width 32: queries, keys, values and output.
    assert adapted.num_adapted == 3 * 4 * 32**2
    in_towers = sum(p.numel() for p in build_student(load_tiny()).backbone.parameters()) - 1
    assert (adapted.num_not_saved, adapted.num_parameters) == (in_towers, model.num_parameters + 3 * 4 * 2 * 2 * 32)
    assert adapted.num_trained == adapted.num_parameters - in_towers
    assert with_adapters["weights, gradients, AdamW"] == 4 * (adapted.num_parameters + 3 * adapted.num_trained)
    assert adapted.checkpoint_bytes == 12 * adapted.num_trained
    # Its weights are not gradients of each pair.
    assert adapted.activation_bytes < model.activation_bytes
    assert with_adapters[activations] == 64 * adapted.activation_bytes + 4 * adapted.num_adapted


def test_a_tower_that_cannot_recompute_is_found_before_training(load_tiny):
    vision = {"layers": [1, 1, 1, 1], "width": 8, "head_width": 16}
    backbone = load_tiny().model.backbone | {"vision_cfg": vision}
    config = load_tiny(**{"model.backbone": backbone, "video.size": 32, "train.grad_checkpointing": True})
    _, (found,) = machine.measure_model(config, needed=True)
    assert (found.level, found.check) == ("error", "model")
    assert "the vision tower of model.backbone (ModifiedResNet) has no gradient checkpointing" in found.found


def test_a_cpu_that_computes_bfloat16_can_be_asked_to(load_tiny):
    auto = load_tiny(**{"train.precision": "auto"})
    for name in ("amx_bf16", "avx512_bf16"):
        assert "train.precision = bf16" in memory.precision_hint(auto, {name: True, "avx2": True})
    assert memory.precision_hint(auto, {"amx_bf16": False, "avx2": True}) == ""
    assert memory.precision_hint(load_tiny(**{"train.precision": "fp32"}), {"amx_bf16": True}) == ""
