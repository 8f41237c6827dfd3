"""Interactions: how the tokens of a text and the frames of a video become their similarity.

`dp`, `ti`, `wti` and `xclip` are pure functions of two `Embeddings`; `xti` is a module with parameters, `CrossEncoder`.
Padding can never win a maximum, since it repeats a valid token of its item. The reference implementation multiplies padded
cosines by 0 instead, which wins wherever all cosines are negative.

To add an interaction: write its function or module and a row of `INTERACTIONS`, and add its name to `similarity.kind` in
`waver/config/model.py` (which stays free of torch, so it cannot read the table; a test compares the two).

Source: Wang et al., "Disentangled Representation Learning for Text-Video Retrieval", 2022 (arXiv 2203.07111), whose
interactions WAVER (arXiv 2312.09507) uses; of `xclip`, X-CLIP (arXiv 2207.07285).
"""

# pyright: reportMissingTypeStubs=false
# (open_clip has no stubs.)

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from open_clip.transformer import QuickGELU
from torch import Tensor, nn

from waver.model.embeddings import Embeddings
from waver.model.errors import BackboneError
from waver.model.temporal import TransformerAggregator, attention_bias, build_transformer

XCLIP_TEMPERATURE = 0.01
"""Temperature of the softmax over cosines in `xclip`, the best of those that its authors compare."""


def uniform_weights(mask: Bool[Tensor, "M L"]) -> Float[Tensor, "M L"]:
    """Returns equal weights for the valid tokens of each item; they sum to 1, padding has 0."""
    return mask / mask.sum(dim=-1, keepdim=True)


def last_token(values: Float[Tensor, "M L D"], mask: Bool[Tensor, "M L"]) -> Float[Tensor, "M D"]:
    """Returns the last valid token of each item: of a caption its end token, CLIP's sentence embedding."""
    last = mask.sum(dim=-1) - 1
    return values[torch.arange(len(values), device=values.device), last]


def dp(text: Embeddings, video: Embeddings) -> Float[Tensor, "T V"]:
    """Dot product: cosine of the end token with the mean of the normalised frames."""
    return sentence(text) @ mean_frame(video).T


def sentence(text: Embeddings) -> Float[Tensor, "T D"]:
    """Returns the normalised end token of each text."""
    return F.normalize(last_token(text.values, text.mask), dim=-1)


def mean_frame(video: Embeddings) -> Float[Tensor, "V D"]:
    """Returns the normalised mean of the normalised frames of each video."""
    frames = F.normalize(video.values, dim=-1).masked_fill(~video.mask[..., None], 0)
    return F.normalize(frames.sum(dim=1) / video.mask.sum(dim=1, keepdim=True), dim=-1)


def wti(text: Embeddings, video: Embeddings) -> Float[Tensor, "T V"]:
    """Weighted token-wise interaction.

    With c the cosines of the text's tokens n and the video's frames f, and a, b the weights of both, the similarity is
    1/2 (sum_n a_n max_f c_nf + sum_f b_f max_n c_nf). With uniform weights it is `ti`, token-wise interaction.
    """
    # Videos are the last dimension: the maxima are then taken between rows of memory and cost little beside the product.
    cosines = torch.einsum("tnd,fvd->tnfv", _normalised(text), _normalised(video).transpose(0, 1))
    best_frame, best_token = cosines.amax(dim=2), cosines.amax(dim=1)
    return (
        torch.einsum("tnv,tn->tv", best_frame, text.weights) + torch.einsum("tfv,vf->tv", best_token, video.weights)
    ) / 2


def _normalised(items: Embeddings) -> Float[Tensor, "M L D"]:
    """Returns unit vectors; the padding of an item repeats its first valid token."""
    return F.normalize(repeat_valid(items), dim=-1)


def repeat_valid(items: Embeddings) -> Float[Tensor, "M L D"]:
    """Returns the values of items; their padding repeats their first valid token.

    A repeated token changes no maximum, which saves the two masked copies of all cosines that filling with -inf would take.
    """
    first = items.values[torch.arange(len(items), device=items.values.device), items.mask.int().argmax(dim=1)]
    return items.values.where(items.mask[..., None], first[:, None])


def xclip(text: Embeddings, video: Embeddings) -> Float[Tensor, "T V"]:
    """Multi-grained similarity: the mean of the cosines of sentence or words with video or frames.

    Cosines of several words or frames are aggregated by their own softmax, those of words with frames in both orders. It is
    the similarity of X-CLIP (Ma et al., 2022, arXiv 2207.07285, equations 3 to 13) without the matrices, initialised with
    the identity, that the authors' code learns in it.
    """
    words, frames, end, mean = _normalised(text), _normalised(video), sentence(text), mean_frame(video)
    of_words, of_frames = text.mask[:, None], video.mask[None]
    cosines = torch.einsum("tnd,vfd->tvnf", words, frames)
    by_words = _attend(_attend(cosines, of_frames[:, :, None]), of_words)
    by_frames = _attend(_attend(cosines.transpose(2, 3), of_words[:, :, None]), of_frames)
    video_words = _attend(torch.einsum("tnd,vd->tvn", words, mean), of_words)
    sentence_frames = _attend(torch.einsum("td,vfd->tvf", end, frames), of_frames)
    return (end @ mean.T + video_words + sentence_frames + (by_words + by_frames) / 2) / 4


def _attend(cosines: Float[Tensor, "T V *other L"], mask: Bool[Tensor, "T_or_1 V_or_1 *other_or_1 L"]) -> Tensor:
    """Sums the valid cosines along the last dimension, weighted by their softmax."""
    weights = (cosines / XCLIP_TEMPERATURE).masked_fill(~mask, -torch.inf).softmax(dim=-1)
    return (weights * cosines).sum(dim=-1)


class WeightHead(nn.Sequential):
    """Computes token weights for `wti`: 1 to 3 linear layers with ReLU between them, then a masked softmax."""

    def __init__(self, width: int, num_layers: int):
        hidden = [layer for _ in range(num_layers - 1) for layer in (nn.Linear(width, width), nn.ReLU())]
        super().__init__(*hidden, nn.Linear(width, 1))

    def weights(self, values: Float[Tensor, "M L D"], mask: Bool[Tensor, "M L"]) -> Float[Tensor, "M L"]:
        """Returns weights that sum to 1 over the valid tokens of an item and are 0 elsewhere."""
        return self(values).squeeze(-1).masked_fill(~mask, -torch.inf).softmax(dim=-1)


class CrossEncoder(nn.Module):
    """xti: a transformer over [end token of the text, frames] of every pair; a linear layer scores its pooled first token.

    Every pair of text and video passes the transformer: the cost is proportional to texts x videos x layers, far above the
    other interactions.

    Raises:
        BackboneError: if the number of attention heads does not divide the width.
    """

    def __init__(self, width: int, num_layers: int = 4, num_heads: int = 8, num_positions: int = 77):
        super().__init__()
        if width % num_heads:
            raise BackboneError(f"similarity.kind: xti needs an embed_dim that {num_heads} heads divide, not {width}")
        self.num_heads = num_heads
        self.position_embedding = nn.Parameter(torch.randn(num_positions, width) * 0.01)
        self.transformer = build_transformer(width, num_layers, num_heads)
        self.pool_norm = nn.LayerNorm(width, eps=1e-12)
        self.pool = nn.Linear(width, width)
        self.activation = QuickGELU()
        self.score = nn.Linear(width, 1)

    @classmethod
    def build(cls, width: int, num_positions: int, aggregator: nn.Module | None) -> "CrossEncoder":
        """Builds the module; a seqTransf aggregator initialises its blocks and positions (from the text tower, that is)."""
        cross = cls(width, num_positions=num_positions)
        if isinstance(aggregator, TransformerAggregator):
            # The number of blocks and of heads may differ: the first blocks are initialised, and the weights fit.
            for block, source in zip(cross.transformer.resblocks, aggregator.transformer.resblocks, strict=False):
                block.load_state_dict(source.state_dict())
            with torch.no_grad():
                cross.position_embedding.copy_(aggregator.position_embedding)
        return cross

    def forward(self, text: Embeddings, video: Embeddings) -> Float[Tensor, "T V"]:
        """Returns the similarity of every text with every video; one text at a time, which bounds memory in evaluation."""
        sentences = last_token(text.values, text.mask)
        return torch.stack([self._score(sentence, video) for sentence in sentences])

    def _score(self, sentence: Float[Tensor, " D"], video: Embeddings) -> Float[Tensor, " V"]:
        num_videos = len(video)
        tokens = torch.cat([sentence.expand(num_videos, 1, -1), video.values], dim=1)
        mask = F.pad(video.mask, (1, 0), value=True)
        tokens = tokens + self.position_embedding[: tokens.shape[1]].to(tokens.dtype)
        tokens = self.transformer(tokens, attn_mask=attention_bias(mask, self.num_heads))
        pooled = self.activation(self.pool(self.pool_norm(tokens[:, 0])))
        return self.score(pooled).squeeze(-1)


@dataclass(frozen=True)
class Interaction:
    """One row of `INTERACTIONS`: how it is computed, and what the student, its checks and the plots need to know of it."""

    similarity: Callable[[Embeddings, Embeddings], Tensor] | None = None
    """Pure function of text and video; None if `build_module` builds what computes the similarity."""
    build_module: Callable[[int, int, nn.Module | None], nn.Module] | None = None
    """Builds, from (width, number of positions, temporal aggregator), the module with parameters that computes the
    similarity; None for a pure function."""
    learns_weights: bool = False
    """Whether a `WeightHead` computes the weights of tokens and of frames; else they are uniform."""
    compares_sentence: bool = False
    """Whether the end token alone stands for the text."""
    num_extra_positions: int = 0
    """Positions that the module needs beside one per frame."""


INTERACTIONS: Mapping[str, Interaction] = {
    "dp": Interaction(dp, compares_sentence=True),
    "ti": Interaction(wti),
    "wti": Interaction(wti, learns_weights=True),
    "xclip": Interaction(xclip),
    "xti": Interaction(build_module=CrossEncoder.build, compares_sentence=True, num_extra_positions=1),
}
"""Name (`similarity.kind`) -> the interaction."""
