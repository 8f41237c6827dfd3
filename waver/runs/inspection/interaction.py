"""Visualises the interaction of a caption's tokens with a clip's frames, and the attention of frames to phrases."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from waver.model.embeddings import Embeddings
from waver.model.student import Student
from waver.runs.inspection.heat_map import HeatMap, draw_heat_map
from waver.runs.inspection.pictures import Picture

_MAX_PHRASES = 24


@dataclass(frozen=True)
class Interaction:
    """The parts of the similarity of one caption and one clip, without padding."""

    tokens: tuple[str, ...]
    cosines: Float[np.ndarray, "n f"]
    text_weights: Float[np.ndarray, " n"] | None
    """None if the model has no learned weights, so that all tokens count the same."""
    video_weights: Float[np.ndarray, " f"] | None
    similarity: float


@torch.no_grad()
def interaction_of(student: Student, tokens: Sequence[str], text: Embeddings, video: Embeddings) -> Interaction | None:
    """Computes the parts of the similarity of a pair.

    Args:
        student: the model.
        tokens: strings of the caption's tokens; padding may follow.
        text: embeddings of this caption only.
        video: embeddings of this clip only.

    Returns:
        The parts; only the end token for an interaction that compares no other (dp); None for one with its own module (xti),
        which does not compare tokens.
    """
    assert len(text) == len(video) == 1, "one caption and one clip"
    if student.interaction.build_module is not None:
        return None
    words, frames = (F.normalize(e.values[0, e.mask[0]], dim=-1) for e in (text, video))
    tokens, learned = tuple(tokens[: len(words)]), student.text_weights is not None
    if student.interaction.compares_sentence:
        words, tokens = words[-1:], tokens[-1:]
    return Interaction(
        tokens=tokens,
        cosines=_array(words @ frames.T),
        text_weights=_array(text.weights[0, text.mask[0]]) if learned else None,
        video_weights=_array(video.weights[0, video.mask[0]]) if learned else None,
        similarity=student.similarity(text, video).item(),
    )


def interaction_map(
    interaction: Interaction, frames: UInt8[np.ndarray, "f s s 3"], *, caption: str, clip_id: str
) -> Picture:
    """Draws the cosine of each token with each frame, with the weights of tokens and frames as bars."""
    notes = [
        f"similarity {interaction.similarity:.3f} with {clip_id}; cosine of each token (row) with each frame (column)"
    ]
    if len(interaction.tokens) > 1:
        notes.append("framed: the best frame of a token; underlined: the best token of a frame")
    if interaction.text_weights is not None:
        notes.append("blue bars: learned weights of tokens and of frames, each sums to 1")
    heat = HeatMap(
        title=caption,
        notes=tuple(notes),
        labels=interaction.tokens,
        values=interaction.cosines,
        low=float(interaction.cosines.min()),
        high=float(interaction.cosines.max()),
        row_weights=interaction.text_weights,
        column_weights=interaction.video_weights,
        mark_best=len(interaction.tokens) > 1,
    )
    return draw_heat_map(heat, frames)


def attention_map(
    attention: Float[np.ndarray, "f K"],
    phrases: Sequence[str],
    frames: UInt8[np.ndarray, "f s s 3"],
    *,
    clip_id: str,
) -> Picture:
    """Draws the attention of each frame to the phrases of its clip, best match first.

    Args:
        attention: mean over the heads; sums to 1 over the phrases.
        phrases: the K phrases; only the first 24 are drawn.
        frames: frames of the clip.
        clip_id: id of the clip.
    """
    shown = attention.T[:_MAX_PHRASES]
    cut = "" if len(phrases) == len(shown) else f", the first {len(shown)} of {len(phrases)}"
    heat = HeatMap(
        title=f"phrases of {clip_id}",
        notes=(
            f"attention of each frame (column) to each phrase (row, best match first{cut}), mean over the heads",
            f"blue bars: mean over the frames; uniform attention would be {1 / len(phrases):.2f}",
        ),
        labels=tuple(phrases[:_MAX_PHRASES]),
        values=shown,
        low=0.0,
        high=float(shown.max()),
        row_weights=shown.mean(1),
    )
    return draw_heat_map(heat, frames)


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.float().cpu().numpy()
