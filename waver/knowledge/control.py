"""Controls of experiments with knowledge: clips get phrases that do not describe them.

Phrases also change a model by the layers that fuse them and by a loss of their own. What a model gains under a control, it
does not owe to what the phrases say:

- shuffled: each clip gets the phrases of another clip of its split. Each phrase occurs as often as without the control.
- constant: all clips get the phrases of one training clip.

All choices follow from a hash of (seed, clip), so that they do not depend on the process, on the number of workers, or on
the order in which clips are asked for.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from waver.tools.errors import WaverError

ControlKind = Literal["none", "shuffled", "constant"]


class ControlError(WaverError):
    """There are too few clips for a control."""


@dataclass(frozen=True)
class Control:
    """Whose phrases each clip gets."""

    kind: Literal["shuffled", "constant"]
    phrases_of: Mapping[str, str]
    """Clip -> the clip whose phrases it gets."""

    def summary(self) -> dict[str, str]:
        """Returns what checkpoints and results store: the kind and, for `constant`, the clip whose phrases all clips get."""
        clip = {"constant_clip": next(iter(self.phrases_of.values()))} if self.kind == "constant" else {}
        return {"control": self.kind} | clip


def build_control(kind: ControlKind, clips_of_split: Mapping[str, Iterable[str]], *, seed: int) -> Control | None:
    """Assigns phrases to the clips of a data set.

    Args:
        kind: `knowledge.control`.
        clips_of_split: split -> its clips that have phrases; `train` is one of them.
        seed: seed of the experiment.

    Returns:
        The control; None for the kind `none`.

    Raises:
        ControlError: if a split has a single clip, whose phrases cannot be shuffled.
    """
    if kind == "none":
        return None
    ordered = {
        split: sorted(set(clips), key=lambda clip: (draw(seed, clip), clip)) for split, clips in clips_of_split.items()
    }
    if kind == "constant":
        clips = [clip for of_split in ordered.values() for clip in of_split]
        return Control(kind, dict.fromkeys(clips, ordered["train"][0]))
    for split, clips in ordered.items():
        if len(clips) == 1:
            raise ControlError(
                f"knowledge.control = shuffled: the {split} split has a single clip with phrases ({clips[0]}), and no other "
                "to exchange them with: set knowledge.control to constant or none"
            )
    # One cycle through a split: no clip keeps its phrases, and a new clip changes those of one other clip only.
    return Control(
        kind,
        {clip: other for clips in ordered.values() for clip, other in zip(clips, clips[1:] + clips[:1], strict=True)},
    )


def draw(seed: int, item: str) -> int:
    """Returns a random number that depends on a seed and an item alone, between 0 and 2 ** 256 - 1."""
    return int.from_bytes(hashlib.sha256(f"{seed} {item}".encode()).digest())


def control_text(kind: str) -> str:
    """Returns a control in words, as results show it; empty for `none`."""
    return {"shuffled": "control: shuffled phrases", "constant": "control: constant phrases"}.get(kind, "")
