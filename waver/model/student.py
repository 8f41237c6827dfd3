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

from dataclasses import dataclass

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
from waver.model.temporal import TEMPORAL_AGGREGATORS

MAX_LOGIT_SCALE = 100.0
"""Upper bound of exp(logit_scale), as in CLIP (arXiv 2103.00020)."""
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

    Args:
        backbone: the two towers.
        temporal: name of a temporal aggregator, see `TEMPORAL_AGGREGATORS`.
        temporal_layers: number of transformer blocks of seqTransf.
        similarity: name of an interaction, see `INTERACTIONS`.
        wti_layers: number of linear layers of wti's weight heads.
        fusion: whether clips can be informed by phrases.
        sigmoid: whether the loss is the sigmoid loss, which learns a bias: that of the backbone, or a new one.

    Attributes:
        interaction: the row of `INTERACTIONS`.
        text_weights, video_weights: heads for the token weights; None if the interaction learns none.
        cross: module of the interaction; None if it has none. Checkpoints keep its parameters under this name.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        temporal: str,
        temporal_layers: int,
        similarity: str,
        wti_layers: int,
        fusion: bool = False,
        sigmoid: bool = False,
    ):
        super().__init__()
        self.backbone = backbone
        self.interaction = INTERACTIONS[similarity]
        self.fusion = KnowledgeFusion(backbone.width) if fusion else None
        self.temporal = TEMPORAL_AGGREGATORS[temporal](backbone, temporal_layers)
        learns_weights, build_module = self.interaction.learns_weights, self.interaction.build_module
        self.text_weights = WeightHead(backbone.width, wti_layers) if learns_weights else None
        self.video_weights = WeightHead(backbone.width, wti_layers) if learns_weights else None
        self.cross = build_module(backbone.width, backbone.num_positions, self.temporal) if build_module else None
        of_backbone = getattr(backbone.clip, "logit_bias", None) if sigmoid else None
        if of_backbone is not None:
            of_backbone.requires_grad_(True)
        self._logit_bias_of_backbone = of_backbone is not None
        self.new_logit_bias = nn.Parameter(torch.tensor(LOGIT_BIAS)) if sigmoid and of_backbone is None else None

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
        values = self._frame_values(frames, mask)
        return self.aggregate(values if phrases is None else self._fuse(values, phrases), mask)

    def aggregate(self, frames: Float[Tensor, "B F D"], mask: Bool[Tensor, "B F"]) -> Embeddings:
        """Applies the temporal aggregator to frame embeddings, plain or fused with phrases, and weighs the frames."""
        return self.weigh_frames(frames if self.temporal is None else self.temporal(frames, mask), mask)

    def weigh_frames(self, values: Float[Tensor, "B F D"], mask: Bool[Tensor, "B F"]) -> Embeddings:
        """Adds the weights of frames to their embeddings after the temporal aggregator."""
        return Embeddings(values, mask, self._weights(self.video_weights, values, mask))

    def similarity(self, text: Embeddings, video: Embeddings) -> Float[Tensor, "T V"]:
        """Computes the similarity of every text with every video, without the logit scale."""
        compute = self.interaction.similarity if self.cross is None else self.cross
        assert compute is not None, "an interaction has a function or a module"
        return compute(text, video)

    def forward(self, batch: Batch, phrases: Float[Tensor, "B K D"], *, plain: bool, informed: bool) -> Encoded:
        """Embeds the captions and clips of a batch; frames pass the backbone once, even for both ways.

        Stored embeddings in the batch do not pass their frozen tower again.

        Args:
            batch: on the device of the model.
            phrases: the teacher's embeddings of batch.phrase_ids.
            plain: whether to embed the clips from their frames alone.
            informed: whether to embed them with their phrases.
        """
        tokens, mask = batch.tokens, batch.token_mask
        text = self.encode_text(batch.token_ids, mask) if tokens is None else self.weigh_tokens(tokens, mask)
        frames = self._frame_values(batch.frames, batch.frame_mask)
        attention = None
        if self.fusion is not None and informed and phrases.shape[1] > 1:
            with torch.no_grad():
                attention = self.fusion.attention(frames, phrases)
        return Encoded(
            text,
            self.aggregate(frames, batch.frame_mask) if plain else None,
            self.aggregate(self._fuse(frames, phrases), batch.frame_mask) if informed else None,
            attention,
        )

    def train(self, mode: bool = True) -> "Student":
        """Sets training mode, but keeps batch norms, dropout and text towers of transformers in evaluation mode.

        The statistics of a batch norm would otherwise be those of each worker's share of the batch, and dropout (also that
        of whole blocks, as in ConvNeXt and ViTamin) would draw other values for each number of workers, so that the loss
        would depend on it.
        """
        super().train(mode)
        for module in self.modules():
            if isinstance(module, _PER_WORKER):
                module.eval()
        return self

    def _frame_values(
        self, frames: UInt8[Tensor, "B F 3 H W"] | Float[Tensor, "B F D"], mask: Bool[Tensor, "B F"]
    ) -> Float[Tensor, "B F D"]:
        if frames.ndim == 3:
            assert frames.shape[-1] == self.backbone.width, "embeddings of frames are those of this backbone"
            return frames
        return self.backbone.encode_frames(self.backbone.pixels(frames), mask)

    def _fuse(self, frames: Float[Tensor, "B F D"], phrases: Float[Tensor, "B K D"]) -> Float[Tensor, "B F D"]:
        assert self.fusion is not None, "only a student with a fusion embeds informed videos"
        return self.fusion(frames, phrases)

    @staticmethod
    def _weights(head: WeightHead | None, values: Tensor, mask: Tensor) -> Tensor:
        if head is not None:
            return head.weights(values, mask)
        return uniform_weights(mask).to(torch.promote_types(values.dtype, torch.float32))
