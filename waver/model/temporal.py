"""Temporal aggregators: each frame of a clip attends to, or is read after, the other frames.

To add one: write its module and a row of `TEMPORAL_AGGREGATORS`, and add its name to `model.temporal` in
`waver/config/model.py` (which stays free of torch, so it cannot read the table; a test compares the two).

Source: CLIP4Clip (Luo et al., arXiv 2104.08860), which names them seqTransf and seqLSTM.
"""

# pyright: reportMissingTypeStubs=false
# (open_clip has no stubs.)

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from open_clip.transformer import QuickGELU, Transformer
from torch import Tensor, nn

from waver.model.backbone import Backbone
from waver.model.errors import BackboneError


class TransformerAggregator(nn.Module):
    """seqTransf: transformer blocks over the frames, initialised from the first blocks of the text tower.

    The blocks are initialised randomly if the text tower has another width than the common embedding space, or other blocks
    than CLIP's.

    Raises:
        BackboneError: if the number of attention heads does not divide the width.
    """

    def __init__(self, backbone: Backbone, num_layers: int):
        super().__init__()
        text = backbone.text
        fits = _has_clip_blocks(text, backbone.width)
        num_heads = text.transformer.resblocks[0].attn.num_heads if fits else max(1, backbone.width // 64)
        if backbone.width % num_heads:
            raise BackboneError(
                f"model.temporal: seqTransf needs an embed_dim that {num_heads} heads divide, not {backbone.width}"
            )
        self.num_heads: int = num_heads
        self.position_embedding = nn.Parameter(torch.randn(backbone.num_positions, backbone.width) * 0.01)
        self.transformer = build_transformer(backbone.width, num_layers, num_heads)
        if fits:
            with torch.no_grad():
                self.position_embedding.copy_(text.positional_embedding[: backbone.num_positions])
            for block, source in zip(self.transformer.resblocks, text.transformer.resblocks, strict=False):
                block.load_state_dict(source.state_dict())

    def forward(self, frames: Float[Tensor, "B F D"], mask: Bool[Tensor, "B F"]) -> Float[Tensor, "B F D"]:
        """Lets each frame attend to the valid frames of its clip; residual."""
        bias = attention_bias(mask, self.num_heads)
        positions = self.position_embedding[: frames.shape[1]].to(frames.dtype)
        return frames + self.transformer(frames + positions, attn_mask=bias)


def _has_clip_blocks(text: Any, width: int) -> bool:
    """Returns whether a text tower has blocks as CLIP's, of a width."""
    blocks = getattr(text.transformer, "resblocks", None)
    if blocks is None or text.transformer.width != width:
        return False
    with torch.device("meta"):
        ours = build_transformer(width, 1, 1).resblocks[0].state_dict()
    theirs = blocks[0].state_dict()
    return {name: tensor.shape for name, tensor in ours.items()} == {name: t.shape for name, t in theirs.items()}


class LstmAggregator(nn.Module):
    """seqLSTM: a one-layer LSTM over the valid frames; residual."""

    def __init__(self, width: int):
        super().__init__()
        self.lstm = nn.LSTM(width, width, batch_first=True)

    def forward(self, frames: Float[Tensor, "B F D"], mask: Bool[Tensor, "B F"]) -> Float[Tensor, "B F D"]:
        """Adds the LSTM's output to the frames; valid frames must come first in every clip."""
        packed = nn.utils.rnn.pack_padded_sequence(frames, mask.sum(1).cpu(), batch_first=True, enforce_sorted=False)
        outputs, _ = nn.utils.rnn.pad_packed_sequence(
            self.lstm(packed)[0], batch_first=True, total_length=frames.shape[1]
        )
        return frames + outputs


TEMPORAL_AGGREGATORS: Mapping[str, Callable[[Backbone, int], nn.Module | None]] = {
    "none": lambda backbone, num_layers: None,
    "seqTransf": TransformerAggregator,
    "seqLSTM": lambda backbone, num_layers: LstmAggregator(backbone.width),
}
"""Name (`model.temporal`) -> builds the module from the backbone and the number of layers. The module maps frames (B, F, D)
and their mask (B, F) to frames of the same shape."""


def build_transformer(width: int, num_layers: int, num_heads: int) -> Transformer:
    """Builds transformer blocks like those of CLIP's text tower (QuickGELU), with the layer norms' epsilon of BERT."""
    norm_layer: Any = partial(nn.LayerNorm, eps=1e-12)  # open_clip only calls it, though it asks for a class
    return Transformer(width, num_layers, num_heads, act_layer=QuickGELU, norm_layer=norm_layer)


def attention_bias(mask: Bool[Tensor, "M L"], num_heads: int) -> Float[Tensor, "MH L L"]:
    """Builds the additive attention mask for `nn.MultiheadAttention`: every token sees the valid ones."""
    bias = torch.zeros_like(mask, dtype=torch.float32).masked_fill(~mask, -torch.inf)
    return bias[:, None, None, :].expand(-1, num_heads, mask.shape[1], -1).flatten(0, 1)
