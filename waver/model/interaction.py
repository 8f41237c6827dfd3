"""How a text meets a video: (text tokens, video tokens) -> similarity of every text with every video.

`dp`, `ti` and `wti` are pure functions of two `Embeddings`; `CrossEncoder` (xti) has weights of its own. Padding can never
win a maximum: it repeats a valid token of its item. Multiplying by 0, as the original code does, lets it win wherever all
similarities are negative.

Source: Wang et al., "Disentangled Representation Learning for Text-Video Retrieval", 2022 (arXiv 2203.07111), whose
interactions WAVER (arXiv 2312.09507) uses.
"""

from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from open_clip.transformer import QuickGELU, Transformer
from torch import Tensor, nn

from waver.model.backbone import BackboneError
from waver.model.embeddings import Embeddings


def uniform_weights(mask: Bool[Tensor, "M L"]) -> Float[Tensor, "M L"]:
    """Every valid token counts the same; sums to 1 over the tokens of an item."""
    return mask / mask.sum(dim=-1, keepdim=True)


def last_token(values: Float[Tensor, "M L D"], mask: Bool[Tensor, "M L"]) -> Float[Tensor, "M D"]:
    """The last valid token of each item: for a caption its end token, which stands for the whole sentence."""
    last = mask.sum(dim=-1) - 1
    return values[torch.arange(len(values), device=values.device), last]


def dp(text: Embeddings, video: Embeddings) -> Float[Tensor, "T V"]:
    """Dot product: cosine of the end token with the mean of the normalised frames."""
    sentence = F.normalize(last_token(text.values, text.mask), dim=-1)
    frames = F.normalize(video.values, dim=-1).masked_fill(~video.mask[..., None], 0)
    mean = frames.sum(dim=1) / video.mask.sum(dim=1, keepdim=True)
    return sentence @ F.normalize(mean, dim=-1).T


def wti(text: Embeddings, video: Embeddings) -> Float[Tensor, "T V"]:
    """Weighted token-wise interaction.

    With c the cosines of the text's tokens n and the video's frames f, and a, b the weights of both:
    1/2 (sum_n a_n max_f c_nf + sum_f b_f max_n c_nf). Uniform weights make it `ti`.
    """
    # Videos last: the maxima are then taken between rows of memory, and cost little beside the product.
    cosines = torch.einsum("tnd,fvd->tnfv", _normalised(text), _normalised(video).transpose(0, 1))
    best_frame, best_token = cosines.amax(dim=2), cosines.amax(dim=1)
    return (
        torch.einsum("tnv,tn->tv", best_frame, text.weights) + torch.einsum("tfv,vf->tv", best_token, video.weights)
    ) / 2


def _normalised(items: Embeddings) -> Float[Tensor, "M L D"]:
    """Unit vectors, the padding of an item a copy of its first valid token.

    A copy changes no maximum, and so spares the two masked copies of all cosines that filling with -inf would take.
    """
    first = items.values[torch.arange(len(items), device=items.values.device), items.mask.int().argmax(dim=1)]
    return F.normalize(items.values.where(items.mask[..., None], first[:, None]), dim=-1)


class WeightHead(nn.Sequential):
    """Scores tokens with 1 to 3 linear layers; a masked softmax makes weights of the scores."""

    def __init__(self, width: int, num_layers: int):
        hidden = [layer for _ in range(num_layers - 1) for layer in (nn.Linear(width, width), nn.ReLU())]
        super().__init__(*hidden, nn.Linear(width, 1))

    def weights(self, values: Float[Tensor, "M L D"], mask: Bool[Tensor, "M L"]) -> Float[Tensor, "M L"]:
        """Weights that sum to 1 over the valid tokens of an item and are 0 elsewhere."""
        return self(values).squeeze(-1).masked_fill(~mask, -torch.inf).softmax(dim=-1)


class CrossEncoder(nn.Module):
    """xti: a transformer over [sentence token, frames] of every pair, and a linear score of its pooled first token.

    Every pair of text and video passes the transformer, so its cost is (texts x videos x layers), far above the others.
    """

    def __init__(self, width: int, num_layers: int = 4, num_heads: int = 8, num_positions: int = 77):
        super().__init__()
        if width % num_heads:
            raise BackboneError(f"similarity.kind: xti needs an embed_dim that {num_heads} heads divide, not {width}")
        self.position_embedding = nn.Parameter(torch.randn(num_positions, width) * 0.01)
        self.transformer = Transformer(
            width, num_layers, num_heads, act_layer=QuickGELU, norm_layer=partial(nn.LayerNorm, eps=1e-12)
        )
        self.pool_norm = nn.LayerNorm(width, eps=1e-12)
        self.pool = nn.Linear(width, width)
        self.activation = QuickGELU()
        self.score = nn.Linear(width, 1)

    def forward(self, text: Embeddings, video: Embeddings) -> Float[Tensor, "T V"]:
        """Similarity of every text with every video; one text at a time bounds the memory where no gradient is kept."""
        sentences = last_token(text.values, text.mask)
        return torch.stack([self._score(sentence, video) for sentence in sentences])

    def _score(self, sentence: Float[Tensor, " D"], video: Embeddings) -> Float[Tensor, " V"]:
        num_videos = len(video)
        tokens = torch.cat([sentence.expand(num_videos, 1, -1), video.values], dim=1)
        mask = F.pad(video.mask, (1, 0), value=True)
        tokens = tokens + self.position_embedding[: tokens.shape[1]].to(tokens.dtype)
        tokens = self.transformer(tokens, attn_mask=attention_bias(mask, self.transformer.resblocks[0].attn.num_heads))
        pooled = self.activation(self.pool(self.pool_norm(tokens[:, 0])))
        return self.score(pooled).squeeze(-1)


def attention_bias(mask: Bool[Tensor, "M L"], num_heads: int) -> Float[Tensor, "MH L L"]:
    """Additive attention mask for `nn.MultiheadAttention`: every token sees the valid ones."""
    bias = torch.zeros_like(mask, dtype=torch.float32).masked_fill(~mask, -torch.inf)
    return bias[:, None, None, :].expand(-1, num_heads, mask.shape[1], -1).flatten(0, 1)
