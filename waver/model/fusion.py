"""Knowledge fusion: the frames of a clip attend to the phrases that describe it."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from waver.model.dropout import Drop, dropout_of_pairs, keep_all
from waver.model.errors import BackboneError
from waver.model.random_streams import BERT_STD, draw_linear

_TINY = 1e-12
"""Lower bound of the norm of a frame in a quotient: the frames of padding are 0."""


class KnowledgeFusion(nn.Module):
    """Multi-head attention of the frames (queries) to the phrases (keys, values), then a feed-forward layer of width D.

    With one phrase, attention has a single key and adds a projection of the phrase.

    `published` is the cross-domain distillation block of WAVER (arXiv 2312.09507), of which only the video half's output is
    used: both layers are residual with a layer norm after them. It gives all frames the norm sqrt(D), whatever they had.

    `gated` starts as nothing: informed frames are the plain ones until training opens its gates. Both layers are residual
    with a layer norm before them, and a learned scalar, 0 at the start, multiplies what each adds to the frames (as in
    ReZero, arXiv 2003.04887, and Flamingo, arXiv 2204.14198; LayerScale, arXiv 2103.17239, has one for each channel).
    Informed frames have the norm of the plain ones, also after training, so that the two differ in what they say and not in
    their scale. That norm depends on the backbone: 10 for CLIP ViT-B/32, 55 for the backbone of the quickstart. So what is
    added is multiplied by the norm of the frame over sqrt(D): both layers start with outputs of a norm near sqrt(D), and a
    gate of 0.1 changes frames of any backbone by about a tenth.

    Args:
        width: D.
        kind: `gated` or `published`.
        dropout: share of the values that training drops where BERT does: of the attention to phrases, of what attention
            computes and of what the feed-forward layer computes. The released code drops 0.1.

    Raises:
        BackboneError: if the number of attention heads does not divide the width.
    """

    def __init__(self, width: int, kind: Literal["gated", "published"] = "gated", *, dropout: float = 0.0):
        super().__init__()
        self.num_heads = max(1, width // 64)
        if width % self.num_heads:
            raise BackboneError(
                f"knowledge.fusion: attention needs an embed_dim that {self.num_heads} heads divide, not {width}"
            )
        self.gated, self.dropout = kind == "gated", dropout
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.attended = nn.Linear(width, width)
        # Checkpoints have the state of the optimizer by the order of the parameters: the published block's has to stay.
        self.attended_norm = None if self.gated else nn.LayerNorm(width, eps=1e-12)
        self.hidden, self.output = nn.Linear(width, width), nn.Linear(width, width)
        self.output_norm = None if self.gated else nn.LayerNorm(width, eps=1e-12)
        if self.gated:
            self.query_norm, self.phrase_norm, self.hidden_norm = (nn.LayerNorm(width) for _ in range(3))
            self.attended_gate, self.output_gate = (nn.Parameter(torch.zeros(())) for _ in range(2))
        # Gated, a layer keeps the scale of its input. Published: as in BERT; the block changes frames little at first.
        draw_linear(self, std=width**-0.5 if self.gated else BERT_STD)

    def forward(
        self,
        frames: Float[Tensor, "B F D"],
        phrases: Float[Tensor, "B K D"],
        seeds: Sequence[int] | None = None,
    ) -> Float[Tensor, "B F D"]:
        """Lets each frame attend to the K phrases of its clip.

        Args:
            frames: frames of the clips.
            phrases: phrases of the clips.
            seeds: of the dropout of each clip, in training; None to drop nothing, in evaluation.
        """
        phrases = phrases.to(frames.dtype)
        drop = dropout_of_pairs(self.dropout, seeds) if self.dropout and seeds is not None else keep_all
        if self.attended_norm is None or self.output_norm is None:
            return self._add_gated(frames, phrases, drop)
        frames = self.attended_norm(frames + self._attend(frames, phrases, drop))
        return self.output_norm(frames + self._feed_forward(frames, drop))

    def attention(self, frames: Float[Tensor, "B F D"], phrases: Float[Tensor, "B K D"]) -> Float[Tensor, "B H F K"]:
        """Returns the attention weights of each head, which sum to 1 over the phrases; for plots and diagnostics."""
        phrases = phrases.to(frames.dtype)
        if self.gated:
            frames, phrases = self.query_norm(frames), self.phrase_norm(phrases)
        return _attention_weights(self._heads(self.query(frames)), self._heads(self.key(phrases)))

    def _add_gated(
        self, frames: Float[Tensor, "B F D"], phrases: Float[Tensor, "B K D"], drop: Drop
    ) -> Float[Tensor, "B F D"]:
        """Adds what each layer computes, on the scale of the frames, and returns frames of the norm that they had."""
        norm = frames.norm(dim=-1, keepdim=True)
        scale = norm / math.sqrt(frames.shape[-1])
        attended = self._attend(self.query_norm(frames), self.phrase_norm(phrases), drop)
        fused = frames + self.attended_gate * scale * attended
        fused = fused + self.output_gate * scale * self._feed_forward(self.hidden_norm(fused), drop)
        return fused * (norm / fused.norm(dim=-1, keepdim=True).clamp_min(_TINY))  # by exactly 1 while gates are closed

    def _attend(
        self, frames: Float[Tensor, "B F D"], phrases: Float[Tensor, "B K D"], drop: Drop
    ) -> Float[Tensor, "B F D"]:
        query, key, value = (
            self._heads(self.query(frames)),
            self._heads(self.key(phrases)),
            self._heads(self.value(phrases)),
        )
        if drop is keep_all:
            seen = F.scaled_dot_product_attention(query, key, value)
        else:
            seen = drop(_attention_weights(query, key)) @ value
        return drop(self.attended(seen.transpose(1, 2).flatten(2)))

    def _feed_forward(self, frames: Float[Tensor, "B F D"], drop: Drop) -> Float[Tensor, "B F D"]:
        return drop(self.output(F.gelu(self.hidden(frames))))

    def _heads(self, tokens: Float[Tensor, "B L D"]) -> Float[Tensor, "B H L d"]:
        return tokens.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


def _attention_weights(query: Float[Tensor, "B H F d"], key: Float[Tensor, "B H K d"]) -> Float[Tensor, "B H F K"]:
    return (query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])).softmax(dim=-1)
