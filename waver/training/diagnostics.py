"""What is watched beside the loss: a worker's shares of a global batch, whose sum over workers is the mean over pairs."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from waver.model.student import Encoded


@torch.no_grad()
def watch(encoded: Encoded, *, num_pairs: int, learned_weights: bool) -> dict[str, Float[Tensor, ""]]:
    """Entropies of what the model attends to, each between 0 (one item has everything) and 1 (all count alike).

    Args:
        encoded: this worker's pairs.
        num_pairs: in the global batch.
        learned_weights: whether the interaction weighs its tokens, as wti does.

    Returns:
        `entropy/text_weights` and `entropy/video_weights` of the interaction, `entropy/phrase_attention` of the fusion;
        those that there are.
    """
    watched = {}
    if learned_weights:
        video = encoded.plain or encoded.informed
        for name, tokens in (("text_weights", encoded.text), ("video_weights", video)):
            watched[f"entropy/{name}"] = relative_entropy(tokens.weights, tokens.mask).sum() / num_pairs
    if encoded.attention is not None:
        heads = encoded.attention.transpose(1, 2)  # (B, F, H, K): masked frames are left out
        entropy = relative_entropy(heads, torch.ones_like(heads, dtype=torch.bool)).mean(2)
        mask = encoded.informed.mask
        watched["entropy/phrase_attention"] = ((entropy * mask).sum(1) / mask.sum(1)).sum() / num_pairs
    return watched


@torch.no_grad()
def agreement(
    plain: Float[Tensor, "m M"], informed: Float[Tensor, "m M"], *, num_pairs: int
) -> dict[str, Float[Tensor, ""]]:
    """`agreement/first_answer`: share of captions that plain and informed videos of the batch answer with the same clip."""
    return {"agreement/first_answer": (plain.argmax(1) == informed.argmax(1)).sum() / num_pairs}


def relative_entropy(weights: Float[Tensor, "*items L"], mask: Bool[Tensor, "*items L"]) -> Float[Tensor, "*items"]:
    """Entropy of weights that sum to 1 over L tokens, divided by that of equal weights; 0 where there is one token."""
    weights = weights.float()
    entropy = -torch.xlogy(weights, weights).where(mask, 0).sum(-1)
    return entropy / mask.sum(-1).clamp(min=2).log()
