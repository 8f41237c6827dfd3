"""The student: a vision-language model that embeds captions and videos for retrieval.

    phrases ------------------------------+ (informed)
                                          v
    frames --backbone--> frame tokens --fusion--+--temporal aggregator--> video tokens --+
                                  |    (plain)  |                                        +--interaction--> similarity
                                  +-------------+                                        |
    words  --backbone--> one embedding a token ----------------------> text tokens ------+

A clip can be embedded in two ways by the same weights: plain, from its frames alone, and informed by its K phrases.
Source: WAVER (arXiv 2312.09507), on the aggregators of CLIP4Clip (arXiv 2104.08860).
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from open_clip.transformer import QuickGELU, Transformer
from torch import Tensor, nn

from waver.backbone import Backbone
from waver.batch import Batch, Embeddings
from waver.similarity import CrossEncoder, WeightHead, attention_bias, dp, uniform_weights, wti

MAX_LOGIT_SCALE = 100.0


class KnowledgeFusion(nn.Module):
    """Frames look at the phrases of their clip: the cross-domain block of WAVER, the half whose output is used.

    Attention of the frames (queries) to the phrases (keys, values), then a layer of width D, each added to what came in and
    normalised after. With one phrase the attention has nothing to choose from and adds a projection of it.
    """

    def __init__(self, width: int):
        super().__init__()
        self.num_heads = max(1, width // 64)
        if width % self.num_heads:
            raise ValueError(
                f"knowledge.fusion: attention needs an embed_dim that {self.num_heads} heads divide, not {width}"
            )
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.attended = nn.Linear(width, width)
        self.attended_norm = nn.LayerNorm(width, eps=1e-12)
        self.hidden, self.output = nn.Linear(width, width), nn.Linear(width, width)
        self.output_norm = nn.LayerNorm(width, eps=1e-12)
        # Small, as in BERT: at the start frames pass nearly as they are.
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, frames: Float[Tensor, "B F D"], phrases: Float[Tensor, "B K D"]) -> Float[Tensor, "B F D"]:
        """Each frame after looking at the K phrases of its clip."""
        phrases = phrases.to(frames.dtype)
        seen = F.scaled_dot_product_attention(
            self._heads(self.query(frames)), self._heads(self.key(phrases)), self._heads(self.value(phrases))
        )
        frames = self.attended_norm(frames + self.attended(seen.transpose(1, 2).flatten(2)))
        return self.output_norm(frames + self.output(F.gelu(self.hidden(frames))))

    def attention(self, frames: Float[Tensor, "B F D"], phrases: Float[Tensor, "B K D"]) -> Float[Tensor, "B H F K"]:
        """How much each frame looks at each phrase, in each head; sums to 1 over the phrases. For people to look at."""
        query, key = self._heads(self.query(frames)), self._heads(self.key(phrases.to(frames.dtype)))
        return (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(dim=-1)

    def _heads(self, tokens: Float[Tensor, "B L D"]) -> Float[Tensor, "B H L d"]:
        return tokens.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


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
            raise ValueError(
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


@dataclass(frozen=True)
class Encoded:
    """A batch after the towers; None where a way of embedding the clips was not asked for."""

    text: Embeddings
    plain: Embeddings | None
    informed: Embeddings | None


class Student(nn.Module):
    """Embeds captions and videos, and compares them.

    The towers (`encode_text`, `encode_video`) see single items; `similarity` sees every text with every video. They are
    apart because workers exchange embeddings, and an evaluation embeds once and compares in tiles.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        temporal: Literal["none", "seqTransf", "seqLSTM"],
        temporal_layers: int,
        similarity: Literal["dp", "ti", "wti", "xti"],
        wti_layers: int,
        fusion: bool = False,
    ):
        super().__init__()
        self.backbone = backbone
        self.kind = similarity
        self.fusion = KnowledgeFusion(backbone.width) if fusion else None
        self.temporal = {
            "none": lambda: None,
            "seqTransf": lambda: TransformerAggregator(backbone, temporal_layers),
            "seqLSTM": lambda: LstmAggregator(backbone.width),
        }[temporal]()
        self.text_weights = WeightHead(backbone.width, wti_layers) if similarity == "wti" else None
        self.video_weights = WeightHead(backbone.width, wti_layers) if similarity == "wti" else None
        num_positions = backbone.text.positional_embedding.shape[0]
        self.cross = CrossEncoder(backbone.width, num_positions=num_positions) if similarity == "xti" else None
        if self.cross is not None and isinstance(self.temporal, TransformerAggregator):
            _start_from(self.cross, self.temporal)

    @property
    def logit_scale(self) -> nn.Parameter:
        """Logarithm of the factor on similarities in the loss; see `clamp_logit_scale`."""
        return self.backbone.logit_scale

    def clamp_logit_scale(self) -> None:
        """Keeps exp(logit_scale) at 100 at most, after every optimizer step, as CLIP does."""
        with torch.no_grad():
            self.logit_scale.clamp_(max=torch.tensor(MAX_LOGIT_SCALE).log().item())

    def encode_text(self, token_ids: Int[Tensor, "B N"], mask: Bool[Tensor, "B N"]) -> Embeddings:
        """Every token of every caption."""
        values = self.backbone.encode_tokens(token_ids)
        return Embeddings(values, mask, self._weights(self.text_weights, values, mask))

    def encode_video(
        self,
        frames: UInt8[Tensor, "B F 3 H W"],
        mask: Bool[Tensor, "B F"],
        phrases: Float[Tensor, "B K D"] | None = None,
    ) -> Embeddings:
        """Every frame of every clip: informed where phrases are given, else plain."""
        values = self.backbone.encode_frames(self.backbone.pixels(frames), mask)
        return self.aggregate(values if phrases is None else self.fusion(values, phrases), mask)

    def aggregate(self, frames: Float[Tensor, "B F D"], mask: Bool[Tensor, "B F"]) -> Embeddings:
        """Frame embeddings, as the backbone or the knowledge fusion gives them -> video tokens."""
        values = frames if self.temporal is None else self.temporal(frames, mask)
        return Embeddings(values, mask, self._weights(self.video_weights, values, mask))

    def similarity(self, text: Embeddings, video: Embeddings) -> Float[Tensor, "T V"]:
        """Similarity of every text with every video, not scaled."""
        if self.cross is not None:
            return self.cross(text, video)
        return dp(text, video) if self.kind == "dp" else wti(text, video)

    def forward(self, batch: Batch, phrases: Float[Tensor, "B K D"], *, plain: bool, informed: bool) -> Encoded:
        """A batch after the towers, the clips embedded in the ways that are asked for; frames pass the backbone once.

        Args:
            batch: on the device of the model.
            phrases: the teacher's embeddings of batch.phrase_ids.
            plain: whether the clips are embedded from their frames alone.
            informed: whether they are embedded with their phrases.
        """
        text = self.encode_text(batch.token_ids, batch.token_mask)
        frames = self.backbone.encode_frames(self.backbone.pixels(batch.frames), batch.frame_mask)
        return Encoded(
            text,
            self.aggregate(frames, batch.frame_mask) if plain else None,
            self.aggregate(self.fusion(frames, phrases), batch.frame_mask) if informed else None,
        )

    def train(self, mode: bool = True) -> "Student":
        """Statistics of batch norms (of a ResNet backbone) stay those it came with.

        Each worker's would be those of its share of the batch, and the loss would depend on the number of workers.
        """
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    @staticmethod
    def _weights(head: WeightHead | None, values: Tensor, mask: Tensor) -> Tensor:
        if head is not None:
            return head.weights(values, mask)
        return uniform_weights(mask).to(torch.promote_types(values.dtype, torch.float32))


def _start_from(cross: CrossEncoder, temporal: TransformerAggregator) -> None:
    """The cross-encoder, too, starts from the text tower's blocks; its heads may be fewer or more, the weights fit."""
    for block, source in zip(cross.transformer.resblocks, temporal.transformer.resblocks, strict=False):
        block.load_state_dict(source.state_dict())
    with torch.no_grad():
        cross.position_embedding.copy_(temporal.position_embedding)
