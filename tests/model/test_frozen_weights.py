import hashlib

import pytest
import torch

from waver.model.frozen_weights import frozen_weights, weights_digest
from waver.training.build import build_student, freeze_student


def test_the_logit_scale_is_never_frozen_because_training_limits_it(load_tiny):
    config = load_tiny(**{"train.backbone_lr_scale": 0})
    student = build_student(config)
    assert frozen_weights(student) == {}
    freeze_student(student, config)
    assert not student.logit_scale.requires_grad
    with torch.no_grad():
        student.logit_scale.fill_(9.0)
    student.clamp_logit_scale()
    assert student.logit_scale < 9
    expected = {name for name in student.state_dict() if name.startswith("backbone.")}
    assert frozen_weights(student).keys() == expected - {"backbone.clip.logit_scale", "backbone.clip.attn_mask"}


@pytest.mark.parametrize("where", ["vision", "both"])
def test_with_adapters_the_pretrained_weights_of_both_towers_are_frozen(load_tiny, teacher_weights, where):
    """Earlier checkpoints have the hash of exactly these, buffers included."""
    config = load_tiny(**{"model.weights": str(teacher_weights), "model.lora": {"rank": 2, "where": where}})
    student = build_student(config, str(teacher_weights))
    freeze_student(student, config)
    in_backbone = {name for name in student.state_dict() if name.startswith("backbone.")}
    of_adapters = {name for name in in_backbone if name.endswith((".up", ".down"))}
    assert of_adapters
    assert frozen_weights(student).keys() == in_backbone - of_adapters - {"backbone.clip.logit_scale"}


def test_the_hash_depends_on_each_name_and_value_and_not_on_their_order():
    weights = {"b": torch.arange(3.0), "a": torch.tensor(7)}
    content = b"a" + weights["a"].numpy().tobytes() + b"b" + weights["b"].numpy().tobytes()
    digest = weights_digest(weights)
    assert digest == hashlib.sha256(content).hexdigest()
    assert weights_digest(dict(reversed(weights.items()))) == digest
    for other in ({"b": weights["b"]}, weights | {"a": torch.tensor(8)}, {"c": weights["a"], "b": weights["b"]}):
        assert weights_digest(other) != digest
