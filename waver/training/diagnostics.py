"""Diagnostics logged beside the loss. Each worker computes its share; the sum over workers is the mean over pairs."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from waver.knowledge.soft_targets import effective_number
from waver.model.student import Encoded


@torch.no_grad()
def batch_diagnostics(encoded: Encoded, *, num_pairs: int, learned_weights: bool) -> dict[str, Float[Tensor, ""]]:
    """Computes normalised entropies of weights and attention: 0 if one item has all the weight, 1 if all have the same.

    Args:
        encoded: this worker's pairs.
        num_pairs: number of pairs in the global batch.
        learned_weights: whether the interaction learns the weights of its tokens, as wti does.

    Returns:
        `entropy/text_weights` and `entropy/video_weights` if the weights are learned, `entropy/phrase_attention` if frames
        attend to several phrases.
    """
    diagnostics: dict[str, Tensor] = {}
    if learned_weights:
        video = encoded.plain or encoded.informed
        assert video is not None, "a batch has plain or informed videos"
        for name, tokens in (("text_weights", encoded.text), ("video_weights", video)):
            diagnostics[f"entropy/{name}"] = normalised_entropy(tokens.weights, tokens.mask).sum() / num_pairs
    if encoded.attention is not None:
        assert encoded.informed is not None, "attention comes from informed videos"
        heads = encoded.attention.transpose(1, 2)  # (B, F, H, K): the mask of frames has (B, F)
        entropy = normalised_entropy(heads, torch.ones_like(heads, dtype=torch.bool)).mean(2)
        mask = encoded.informed.mask
        diagnostics["entropy/phrase_attention"] = ((entropy * mask).sum(1) / mask.sum(1)).sum() / num_pairs
    return diagnostics


@torch.no_grad()
def top1_agreement(
    plain: Float[Tensor, "m M"], informed: Float[Tensor, "m M"], *, num_pairs: int
) -> dict[str, Float[Tensor, ""]]:
    """Computes `agreement/first_answer`: share of captions with the same first clip among plain and informed videos.

    Args:
        plain: similarities of this worker's m captions with all M plain videos.
        informed: the same with informed videos.
        num_pairs: number of pairs in the global batch.
    """
    return {"agreement/first_answer": (plain.argmax(1) == informed.argmax(1)).sum() / num_pairs}


@torch.no_grad()
def top1_accuracy(t2v: Float[Tensor, "m M"], *, offset: int, num_pairs: int) -> Float[Tensor, ""]:
    """Computes the share of captions whose own clip is the first answer within the batch.

    Args:
        t2v: similarities of this worker's m captions with all M videos.
        offset: column of this worker's first pair.
        num_pairs: number of pairs in the global batch.
    """
    own = torch.arange(offset, offset + len(t2v), device=t2v.device)
    return (t2v.argmax(1) == own).sum() / num_pairs


@torch.no_grad()
def effective_candidates(
    similarities: tuple[Float[Tensor, "m M"], Float[Tensor, "m M"]], scale: Float[Tensor, ""], *, num_pairs: int
) -> Float[Tensor, ""]:
    """Computes how many candidates a target of the distillation has: exp(H) of its softmax, the mean over rows.

    It is 1 for hard labels, and the size of the batch for equal probabilities.

    Args:
        similarities: (t2v, v2t) of the teacher: this worker's m rows against all M columns.
        scale: factor on the similarities in the softmax.
        num_pairs: number of pairs in the global batch.
    """
    return effective_number(torch.cat([scale * each for each in similarities])).sum() / (2 * num_pairs)


@torch.no_grad()
def shared_caption_share(same_caption: Bool[Tensor, "m M"], *, num_pairs: int) -> dict[str, Float[Tensor, ""]]:
    """Computes `batch/shared_captions`: share of combinations of two pairs of the batch that have the same caption.

    Args:
        same_caption: whether this worker's m pairs have the same caption as each of the M pairs; a pair has its own.
        num_pairs: number of pairs in the global batch.
    """
    others = same_caption.sum() - len(same_caption)
    return {"batch/shared_captions": others / max(1, num_pairs * (num_pairs - 1))}


def normalised_entropy(weights: Float[Tensor, "*items L"], mask: Bool[Tensor, "*items L"]) -> Float[Tensor, "*items"]:
    """Computes the entropy of weights that sum to 1 over the valid tokens, divided by that of equal weights.

    It is between 0 and 1; 0 for a single token.
    """
    weights = weights.float()
    entropy = -torch.xlogy(weights, weights).where(mask, 0).sum(-1)
    return entropy / mask.sum(-1).clamp(min=2).log()
