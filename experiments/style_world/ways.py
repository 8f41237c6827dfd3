"""The ways of fine-tuning that are compared, and the settings that are tried for each before the comparison."""

import itertools
from dataclasses import dataclass, field
from typing import Any, Literal

_LRS = (1e-4, 2e-4, 3e-4, 5e-4, 1e-3, 2e-3)
_FEW_LRS = (3e-4, 1e-3)
_WEIGHTS = (0.3, 1.0, 3.0)
PHRASES = {"knowledge.top_k": 10, "knowledge.num_matches": 10}
_FUSED = {**PHRASES, "knowledge.fusion": "gated", "knowledge.at_inference": True}
_TEXT = {**PHRASES, "loss.phrases_text_target": "caption"}

Dictionary = Literal["seen", "shuffled", "random", "all"]
"""Whose phrases, see `dictionaries.py`."""


@dataclass(frozen=True)
class Way:
    """One way of fine-tuning."""

    settings: dict[str, Any] = field(default_factory=dict)
    """Settings of waver that it changes in experiment.yaml."""
    weight: str | None = None
    """Key of its weight, which is tuned together with the learning rate; None to try more learning rates."""
    dictionary: Dictionary = "seen"
    all_writers: bool = False
    """Whether it is trained on captions of all writers: an oracle."""
    kind: Literal["baseline", "knowledge", "control", "oracle"] = "knowledge"
    averages: tuple[float, ...] = ()
    """See `runs.Job`."""

    def trials(self) -> list[dict[str, Any]]:
        """Returns the settings that are tried: six for every way, so that none is tuned more than another."""
        if self.weight is None:
            return [{"train.lr": lr} for lr in _LRS]
        return [{"train.lr": lr, self.weight: weight} for lr, weight in itertools.product(_FEW_LRS, _WEIGHTS)]


DECAY = "decay_to_start"
"""Key of `runs.Job.decay_to_start`, which is no setting of waver."""
BASELINE = "(a) contrastive loss alone"
WAYS: dict[str, Way] = {
    BASELINE: Way(kind="baseline"),
    "(a) averaged with the start (WiSE-FT)": Way(kind="baseline", averages=(0.2, 0.4, 0.6, 0.8)),
    "(a) + decay to the start (L2-SP)": Way(weight=DECAY, kind="baseline"),
    "(a) + similarities kept": Way(weight="loss.keep", kind="baseline"),
    "phrases of captions": Way(_TEXT, "loss.phrases_text"),
    "phrases of captions, words shuffled": Way(_TEXT, "loss.phrases_text", "shuffled", kind="control"),
    "phrases of captions, random words": Way(_TEXT, "loss.phrases_text", "random", kind="control"),
    "phrases of captions, of all writers (leaky)": Way(_TEXT, "loss.phrases_text", "all", kind="oracle"),
    "phrases of clips for captions": Way({**_TEXT, "loss.phrases_text_target": "clip"}, "loss.phrases_text"),
    "phrases of clips for videos": Way(PHRASES, "loss.phrases_video"),
    "fusion": Way(_FUSED),
    "fusion, published block": Way({**_FUSED, "knowledge.fusion": "published"}),
    "fusion, shuffled phrases": Way({**_FUSED, "knowledge.control": "shuffled"}, kind="control"),
    "fusion, constant phrases": Way({**_FUSED, "knowledge.control": "constant"}, kind="control"),
    "fusion + distillation": Way({**_FUSED, "knowledge.at_inference": False}, "loss.distill"),
    "all writers seen (oracle)": Way(all_writers=True, kind="oracle"),
}
"""Row of the table -> the way."""
