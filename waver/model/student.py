"""The student: a vision-language model that embeds captions and videos for retrieval.

    phrases ------------------------------+ (informed)
                                          v
    frames --backbone--> frame tokens --fusion--+--temporal aggregator--> video tokens --+
                                  |    (plain)  |                                        +--interaction--> similarity
                                  +-------------+                                        |
    words  --backbone--> text tokens ------------------------------------> text tokens --+

The same weights embed a clip in two ways: plain, from its frames alone, and informed by its K phrases.

Source: WAVER (arXiv 2312.09507), with the temporal aggregators of CLIP4Clip (arXiv 2104.08860). The released code of WAVER
embeds informed videos alone; a student that retrieves plain ones is an extension of waver.
"""

# pyright: reportMissingTypeStubs=false
# (open_clip has no stubs.)

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, UInt8
from open_clip.hf_model import HFTextEncoder
from timm.layers.drop import DropPath
from torch import Tensor, nn

from waver.data.batch import Batch
from waver.model.backbone import Backbone
from waver.model.embeddings import Embeddings
from waver.model.fusion import KnowledgeFusion
from waver.model.interaction import INTERACTIONS, WeightHead, uniform_weights
from waver.model.random_streams import BERT_STD, derive_seed, draw_linear, random_stream
from waver.model.temporal import TEMPORAL_AGGREGATORS

MAX_LOGIT_SCALE = 100.0
"""Upper bound of exp(logit_scale), as in CLIP (arXiv 2103.00020)."""
FRAME_NORM = 10.0
"""Norm of a frame after the layer norm of `frame_norm: layer`, at the start: about that of CLIP ViT-B/32's frames, on which
the published recipes train their aggregators."""
LOGIT_BIAS = -10.0
"""Bias of the sigmoid loss at the start, unless the backbone has one: nearly all pairs are negative (arXiv 2303.15343)."""


_PER_WORKER = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    nn.Dropout,
    DropPath,
    HFTextEncoder,
)
"""Modules whose results in training mode depend on how a batch is divided among workers."""


@dataclass(frozen=True)
class StudentParts:
    """What a student has beside its backbone; by default nothing that is learned."""

    temporal: str = "none"
    """Name of a temporal aggregator, see `TEMPORAL_AGGREGATORS`."""
    temporal_layers: int = 1
    """Number of transformer blocks of seqTransf."""
    similarity: str = "dp"
    """Name of an interaction, see `INTERACTIONS`."""
    wti_layers: int = 1
    """Number of linear layers of wti's weight heads."""
    frame_norm: Literal["none", "layer"] = "none"
    """layer: a layer norm on the embeddings of frames, before fusion and aggregator."""
    fusion: Literal["none", "gated", "published"] = "none"
    """How clips are informed by phrases, see `KnowledgeFusion`; none if they cannot be."""
    dropout: float = 0.0
    """Share of the values that the fusion drops in training."""
    initialisation: Literal["torch", "published"] = "torch"
    """How linear layers of weight heads and fusion start. torch: heads as torch draws linear layers, the fusion so that a
    layer keeps the scale of its input (gated) or as published. published: from N(0, 0.02) with bias 0, as in the released
    code of WAVER."""
    sigmoid: bool = False
    """Whether the loss is the sigmoid loss, which learns a bias: that of the backbone, or a new one."""


@dataclass(frozen=True)
class Encoded:
    """A batch after the towers."""

    text: Embeddings
    plain: Embeddings | None
    """Clips from their frames alone; None if not requested."""
    informed: Embeddings | None
    """Clips with their phrases; None if not requested."""
    attention: Float[Tensor, "B H F K"] | None
    """Attention of the frames to the phrases, without gradient; None for plain videos or one phrase per clip."""


class Student(nn.Module):
    """Embeds captions and videos, and computes their similarity.

    The towers (`encode_text`, `encode_video`) embed single items; `similarity` compares every text with every video. They
    are separate, since workers exchange embeddings, and evaluation embeds once and compares in tiles.

    Each part draws its random weights from a stream of its own: they do not depend on the other parts.

    Args:
        backbone: the two towers.
        parts: what is built beside them.
        seed: determines the random weights.

    Attributes:
        interaction: the row of `INTERACTIONS`.
        text_weights, video_weights: heads for the token weights; None if the interaction learns none.
        cross: module of the interaction; None if it has none. Checkpoints keep its parameters under this name.
    """

    def __init__(self, backbone: Backbone, parts: StudentParts, *, seed: int = 0):
        super().__init__()
        width = backbone.width
        self.backbone = backbone
        self.interaction = INTERACTIONS[parts.similarity]
        learns_weights, build_module = self.interaction.learns_weights, self.interaction.build_module
        self.frame_norm = nn.LayerNorm(width) if parts.frame_norm == "layer" else None
        if self.frame_norm is not None:
            nn.init.constant_(self.frame_norm.weight, FRAME_NORM / width**0.5)

        def drawn(part: str) -> AbstractContextManager[None]:
            return random_stream(derive_seed(seed, part))

        with drawn("fusion"):
            self.fusion = _build_fusion(width, parts)
        with drawn("temporal"):
            self.temporal = TEMPORAL_AGGREGATORS[parts.temporal](backbone, parts.temporal_layers)
        with drawn("text_weights"):
            self.text_weights = _build_head(width, parts) if learns_weights else None
        with drawn("video_weights"):
            self.video_weights = _build_head(width, parts) if learns_weights else None
        with drawn("cross"):
            self.cross = build_module(width, backbone.num_positions, self.temporal) if build_module else None
        of_backbone = getattr(backbone.clip, "logit_bias", None) if parts.sigmoid else None
        if of_backbone is not None:
            of_backbone.requires_grad_(True)
        self._logit_bias_of_backbone = of_backbone is not None
        self.new_logit_bias = nn.Parameter(torch.tensor(LOGIT_BIAS)) if parts.sigmoid and of_backbone is None else None

    @property
    def logit_scale(self) -> nn.Parameter:
        """Logarithm of the factor on similarities in the loss (the inverse temperature of the softmax)."""
        return self.backbone.logit_scale

    @property
    def logit_bias(self) -> nn.Parameter | None:
        """Bias of scaled similarities in the sigmoid loss; None for the softmax loss, which does not depend on it."""
        return self.backbone.clip.logit_bias if self._logit_bias_of_backbone else self.new_logit_bias

    def clamp_logit_scale(self) -> None:
        """Clamps exp(logit_scale) to MAX_LOGIT_SCALE; call it after every optimizer step."""
        with torch.no_grad():
            self.logit_scale.clamp_(max=torch.tensor(MAX_LOGIT_SCALE).log().item())

    def encode_text(self, token_ids: Int[Tensor, "B T"], mask: Bool[Tensor, "B N"]) -> Embeddings:
        """Embeds every token of every caption; see `Backbone.encode_tokens`."""
        return self.weigh_tokens(self.backbone.encode_tokens(token_ids, mask), mask)

    def weigh_tokens(self, values: Float[Tensor, "B N D"], mask: Bool[Tensor, "B N"]) -> Embeddings:
        """Adds the weights of tokens to their embeddings by the text tower."""
        return Embeddings(values, mask, self._weights(self.text_weights, values, mask))

    def encode_video(
        self,
        frames: UInt8[Tensor, "B F 3 H W"] | Float[Tensor, "B F D"],
        mask: Bool[Tensor, "B F"],
        phrases: Float[Tensor, "B K D"] | None = None,
    ) -> Embeddings:
        """Embeds every frame of every clip, from pixels or from what the vision tower made of them.

        The clips are informed if phrases are given, else plain.
        """
        values = self.encode_frames(frames, mask)
        return self.aggregate(values if phrases is None else self._fuse(values, phrases), mask)

    def encode_frames(
        self, frames: UInt8[Tensor, "B F 3 H W"] | Float[Tensor, "B F D"], mask: Bool[Tensor, "B F"]
    ) -> Float[Tensor, "B F D"]:
        """Embeds each frame on its own, from pixels or from what the vision tower made of them; the input of fusion."""
        values = frames
        if frames.ndim == 5:
            values = self.backbone.encode_frames(self.backbone.pixels(frames), mask)
        assert values.shape[-1] == self.backbone.width, "embeddings of frames are those of this backbone"
        return values if self.frame_norm is None else self.frame_norm(values)

    def aggregate(self, frames: Float[Tensor, "B F D"], mask: Bool[Tensor, "B F"]) -> Embeddings:
        """Applies the temporal aggregator to frames by `encode_frames`, plain or fused with phrases, and weighs them."""
        return self.weigh_frames(frames if self.temporal is None else self.temporal(frames, mask), mask)

    def weigh_frames(self, values: Float[Tensor, "B F D"], mask: Bool[Tensor, "B F"]) -> Embeddings:
        """Adds the weights of frames to their embeddings after the temporal aggregator."""
        return Embeddings(values, mask, self._weights(self.video_weights, values, mask))

    def similarity(self, text: Embeddings, video: Embeddings) -> Float[Tensor, "T V"]:
        """Computes the similarity of every text with every video, without the logit scale."""
        compute = self.interaction.similarity if self.cross is None else self.cross
        assert compute is not None, "an interaction has a function or a module"
        return compute(text, video)

    def forward(
        self,
        batch: Batch,
        phrases: Float[Tensor, "B K D"],
        *,
        plain: bool,
        informed: bool,
        dropout_seeds: Sequence[int] | None = None,
    ) -> Encoded:
        """Embeds the captions and clips of a batch; frames pass the backbone once, even for both ways.

        Stored embeddings in the batch do not pass their frozen tower again.

        Args:
            batch: on the device of the model.
            phrases: the teacher's embeddings of batch.phrase_ids.
            plain: whether to embed the clips from their frames alone.
            informed: whether to embed them with their phrases.
            dropout_seeds: of the fusion's dropout of each pair; None to drop nothing.
        """
        tokens, mask = batch.tokens, batch.token_mask
        text = self.encode_text(batch.token_ids, mask) if tokens is None else self.weigh_tokens(tokens, mask)
        frames = self.encode_frames(batch.frames, batch.frame_mask)
        attention = None
        if self.fusion is not None and informed and phrases.shape[1] > 1:
            with torch.no_grad():
                attention = self.fusion.attention(frames, phrases)
        return Encoded(
            text,
            self.aggregate(frames, batch.frame_mask) if plain else None,
            self.aggregate(self._fuse(frames, phrases, dropout_seeds), batch.frame_mask) if informed else None,
            attention,
        )

    def train(self, mode: bool = True) -> "Student":
        """Sets training mode, but keeps batch norms, dropout and text towers of transformers in evaluation mode.

        The statistics of a batch norm would otherwise be those of each worker's share of the batch, and dropout (also that
        of whole blocks, as in ConvNeXt and ViTamin) would draw other values for each number of workers, so that the loss
        would depend on it. The fusion's dropout draws for each pair and does not depend on the mode, see `forward`.
        """
        super().train(mode)
        for module in self.modules():
            if isinstance(module, _PER_WORKER):
                module.eval()
        return self

    def _fuse(
        self,
        frames: Float[Tensor, "B F D"],
        phrases: Float[Tensor, "B K D"],
        dropout_seeds: Sequence[int] | None = None,
    ) -> Float[Tensor, "B F D"]:
        assert self.fusion is not None, "only a student with a fusion embeds informed videos"
        return self.fusion(frames, phrases, dropout_seeds)

    @staticmethod
    def _weights(head: WeightHead | None, values: Tensor, mask: Tensor) -> Tensor:
        if head is not None:
            return head.weights(values, mask)
        return uniform_weights(mask).to(torch.promote_types(values.dtype, torch.float32))


def _build_fusion(width: int, parts: StudentParts) -> KnowledgeFusion | None:
    if parts.fusion == "none":
        return None
    fusion = KnowledgeFusion(width, parts.fusion, dropout=parts.dropout)
    if parts.initialisation == "published":
        draw_linear(fusion, std=BERT_STD)
    return fusion


def _build_head(width: int, parts: StudentParts) -> WeightHead:
    head = WeightHead(width, parts.wti_layers)
    if parts.initialisation == "published":
        draw_linear(head, std=BERT_STD)
    return head
