"""What the configurations of earlier versions of waver mean, which lack the settings that were added since."""

from collections.abc import Mapping
from typing import Any

BEFORE: dict[str, dict[str, Any]] = {
    "model": {"frame_norm": "none", "initialisation": "torch"},
    "vocabulary": {"file": None, "leaky": False},
    "knowledge": {
        **{"control": "none", "dropout": 0.0, "effective_phrases": 10.0},
        **{"teacher": None, "matching": "cosine"},
    },
    "loss": {
        **{"phrases_video": 0.0, "phrases_text": 0.0, "phrases_text_target": "caption", "keep": 0.0},
        **{"knowledge_temperature": None, "distill_warmup": 0.0, "shared_captions": "negative"},
    },
}
"""Section -> setting that earlier versions did not have -> the value with which they computed.

The configuration of a run that lacks a setting is read with this value. The value is not hashed, so that hashes stay the
same."""


def with_settings_before(stored: Mapping[str, Any], before: Mapping[str, Mapping[str, Any]] = BEFORE) -> dict[str, Any]:
    """Adds the settings that the configuration of a run lacks.

    Args:
        stored: the content of its file.
        before: section -> setting -> value.
    """
    return {**stored, **{section: {**values, **(stored.get(section) or {})} for section, values in before.items()}}


def without_settings_before(section: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of a section as they are hashed: without those that mean what earlier versions computed."""
    before = BEFORE.get(section, {})
    return {name: value for name, value in settings.items() if name not in before or value != before[name]}


def hashed_fusion(fusion: str, *, is_used: bool) -> str:
    """Returns knowledge.fusion as it is hashed: earlier versions had one block, which they called `attention`.

    Args:
        fusion: the setting.
        is_used: whether anything reads informed videos; which block would inform them is meaningless otherwise.
    """
    return "attention" if fusion == "published" or (fusion == "gated" and not is_used) else fusion


def hashed_loss(loss: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of the section `loss` as they are hashed; those of terms without weight count for nothing."""
    hashed = without_settings_before("loss", loss)
    if not loss["distill"]:
        hashed.pop("distill_warmup", None)
    if not loss["distill"] and not loss["keep"]:
        hashed["temperature"] = _USUAL_TEMPERATURE
    if not loss["knowledge"]:
        hashed.pop("knowledge_temperature", None)
    return hashed


_USUAL_TEMPERATURE = 1.0
"""The default of earlier versions, which hashed `loss.temperature` of every experiment."""
