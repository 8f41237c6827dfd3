"""Knowledge fusion: the frames of a clip attend to the phrases that describe it."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from waver.model.errors import BackboneError


class KnowledgeFusion(nn.Module):
    """The cross-domain distillation block of WAVER (arXiv 2312.09507), of which only the video half's output is used.

    Multi-head attention of the frames (queries) to the phrases (keys, values), then a feed-forward layer of width D; each is
    residual with a layer norm after it. With one phrase, attention has a single key and adds a projection of the phrase.

    Raises:
        BackboneError: if the number of attention heads does not divide the width.
    """

    def __init__(self, width: int):
        super().__init__()
        self.num_heads = max(1, width // 64)
        if width % self.num_heads:
            raise BackboneError(
                f"knowledge.fusion: attention needs an embed_dim that {self.num_heads} heads divide, not {width}"
            )
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.attended = nn.Linear(width, width)
        self.attended_norm = nn.LayerNorm(width, eps=1e-12)
        self.hidden, self.output = nn.Linear(width, width), nn.Linear(width, width)
        self.output_norm = nn.LayerNorm(width, eps=1e-12)
        # Small weights, as in BERT: untrained, the block changes frames little.
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, frames: Float[Tensor, "B F D"], phrases: Float[Tensor, "B K D"]) -> Float[Tensor, "B F D"]:
        """Lets each frame attend to the K phrases of its clip."""
        phrases = phrases.to(frames.dtype)
        attended = F.scaled_dot_product_attention(
            self._heads(self.query(frames)), self._heads(self.key(phrases)), self._heads(self.value(phrases))
        )
        frames = self.attended_norm(frames + self.attended(attended.transpose(1, 2).flatten(2)))
        return self.output_norm(frames + self.output(F.gelu(self.hidden(frames))))

    def attention(self, frames: Float[Tensor, "B F D"], phrases: Float[Tensor, "B K D"]) -> Float[Tensor, "B H F K"]:
        """Returns the attention weights of each head, which sum to 1 over the phrases; for plots and diagnostics."""
        query, key = self._heads(self.query(frames)), self._heads(self.key(phrases.to(frames.dtype)))
        return (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(dim=-1)

    def _heads(self, tokens: Float[Tensor, "B L D"]) -> Float[Tensor, "B H L d"]:
        return tokens.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
