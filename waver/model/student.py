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
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from waver.data.batch import Batch
from waver.model.backbone import Backbone
from waver.model.embeddings import Embeddings
from waver.model.fusion import KnowledgeFusion
from waver.model.interaction import CrossEncoder, WeightHead, dp, uniform_weights, wti
from waver.model.temporal import LstmAggregator, TransformerAggregator

MAX_LOGIT_SCALE = 100.0


@dataclass(frozen=True)
class Encoded:
    """A batch after the towers; None where a way of embedding the clips was not asked for."""

    text: Embeddings
    plain: Embeddings | None
    informed: Embeddings | None
    attention: Float[Tensor, "B H F K"] | None
    """Of the frames to several phrases, without gradient; see `KnowledgeFusion.attention`."""


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
        attention = None
        if informed and phrases.shape[1] > 1:
            with torch.no_grad():
                attention = self.fusion.attention(frames, phrases)
        return Encoded(
            text,
            self.aggregate(frames, batch.frame_mask) if plain else None,
            self.aggregate(self.fusion(frames, phrases), batch.frame_mask) if informed else None,
            attention,
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
