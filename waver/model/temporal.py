"""temporal."""

from functools import partial

import torch
from jaxtyping import Bool, Float
from open_clip.transformer import QuickGELU, Transformer
from torch import Tensor, nn

from waver.model.backbone import Backbone, BackboneError
from waver.model.interaction import attention_bias


class TransformerAggregator(nn.Module):
    """seqTransf: transformer blocks over the frames, which start as the first blocks of the text tower.

    Where the text tower is of another width than the common space, its blocks do not fit and the new ones start at random.
    """

    def __init__(self, backbone: Backbone, num_layers: int):
        super().__init__()
        text = backbone.text
        fits = text.transformer.width == backbone.width
        num_heads = text.transformer.resblocks[0].attn.num_heads if fits else max(1, backbone.width // 64)
        if backbone.width % num_heads:
            raise BackboneError(
                f"model.temporal: seqTransf needs an embed_dim that {num_heads} heads divide, not {backbone.width}"
            )
        self.position_embedding = nn.Parameter(torch.randn(text.positional_embedding.shape[0], backbone.width) * 0.01)
        self.transformer = Transformer(
            backbone.width, num_layers, num_heads, act_layer=QuickGELU, norm_layer=partial(nn.LayerNorm, eps=1e-12)
        )
        if fits:
            with torch.no_grad():
                self.position_embedding.copy_(text.positional_embedding)
            for block, source in zip(self.transformer.resblocks, text.transformer.resblocks, strict=False):
                block.load_state_dict(source.state_dict())

    def forward(self, frames: Float[Tensor, "B F D"], mask: Bool[Tensor, "B F"]) -> Float[Tensor, "B F D"]:
        """Each frame after looking at the valid frames of its clip, added to what it was."""
        bias = attention_bias(mask, self.transformer.resblocks[0].attn.num_heads)
        positions = self.position_embedding[: frames.shape[1]].to(frames.dtype)
        return frames + self.transformer(frames + positions, attn_mask=bias)


class LstmAggregator(nn.Module):
    """seqLSTM: a one-layer LSTM over the valid frames, added to what they were."""

    def __init__(self, width: int):
        super().__init__()
        self.lstm = nn.LSTM(width, width, batch_first=True)

    def forward(self, frames: Float[Tensor, "B F D"], mask: Bool[Tensor, "B F"]) -> Float[Tensor, "B F D"]:
        """Valid frames come first in every clip, so lengths say it all."""
        packed = nn.utils.rnn.pack_padded_sequence(frames, mask.sum(1).cpu(), batch_first=True, enforce_sorted=False)
        seen, _ = nn.utils.rnn.pad_packed_sequence(self.lstm(packed)[0], batch_first=True, total_length=frames.shape[1])
        return frames + seen
