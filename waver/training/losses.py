"""Losses as pure functions of similarities.

Each worker passes the rows of its own pairs against ALL columns of the global batch, and gets its share of the loss: the sum
over workers is the loss of the global batch, for any number of workers.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


def contrastive(
    t2v: Float[Tensor, "m M"],
    v2t: Float[Tensor, "m M"],
    logit_scale: Float[Tensor, ""],
    *,
    offset: int,
    not_negative: Bool[Tensor, "m M"] | None = None,
) -> Float[Tensor, ""]:
    """Computes the symmetric cross-entropy between captions and videos, CLIP's loss (Radford et al., arXiv 2103.00020).

    Args:
        t2v: similarity of this worker's m captions with all M videos.
        v2t: similarity of this worker's m videos with all M captions.
        logit_scale: factor on the similarities (not its logarithm).
        offset: column of this worker's first pair.
        not_negative: pairs left out of the negatives (the positive pair of a row always counts); None for none.

    Returns:
        Sum over this worker's pairs of (CE(t2v) + CE(v2t)) / 2, divided by M.
    """
    targets = torch.arange(offset, offset + len(t2v), device=t2v.device)
    logits = [logit_scale * rows for rows in (t2v, v2t)]
    if not_negative is not None:
        # Masked after scaling: the gradient of the scale would otherwise be infinity times zero.
        excluded = not_negative & ~F.one_hot(targets, t2v.shape[1]).bool()
        logits = [rows.masked_fill(excluded, -torch.inf) for rows in logits]
    terms = [F.cross_entropy(rows, targets, reduction="sum") for rows in logits]
    return (terms[0] + terms[1]) / (2 * t2v.shape[1])


def sigmoid(
    t2v: Float[Tensor, "m M"],
    logit_scale: Float[Tensor, ""],
    logit_bias: Float[Tensor, ""],
    *,
    offset: int,
    not_negative: Bool[Tensor, "m M"] | None = None,
) -> Float[Tensor, ""]:
    """Computes the sigmoid loss between captions and videos: SigLIP's (Zhai et al., arXiv 2303.15343).

    Whether a caption and a video belong together is decided for each pair on its own, so one direction covers all pairs.

    Args:
        t2v: similarity of this worker's m captions with all M videos.
        logit_scale: factor on the similarities (not its logarithm).
        logit_bias: added to the scaled similarities.
        offset: column of this worker's first pair.
        not_negative: pairs that do not count as negatives (the positive pair of a row always counts); None for none.

    Returns:
        Minus the sum, over this worker's captions and all videos, of log sigmoid(z (logit_scale * t2v + logit_bias)) with
        z = 1 for the positive pair of a caption and -1 for others, divided by M.
    """
    targets = torch.arange(offset, offset + len(t2v), device=t2v.device)
    positive = F.one_hot(targets, t2v.shape[1]).bool()
    logits = logit_scale * t2v + logit_bias
    terms = F.logsigmoid(torch.where(positive, logits, -logits))
    if not_negative is not None:
        terms = terms.masked_fill(not_negative & ~positive, 0)
    return -terms.sum() / t2v.shape[1]


def shared_phrases(rows: Int[Tensor, "m K"], columns: Int[Tensor, "M K"]) -> Bool[Tensor, "m M"]:
    """Returns which pairs of clips have a phrase in common; such clips are not each other's negatives."""
    return (rows[:, None, :, None] == columns[None, :, None, :]).any(dim=(2, 3))


def equal_pairs(rows: Int[Tensor, " m"], columns: Int[Tensor, " M"]) -> Bool[Tensor, "m M"]:
    """Returns which rows and columns have equal keys, such as those of equal captions."""
    return rows[:, None] == columns[None, :]


def soft_targets(student: Float[Tensor, "m S"], teacher: Float[Tensor, "m S"], *, num_pairs: int) -> Float[Tensor, ""]:
    """Computes the KL divergence of a student's distribution over S candidates from a teacher's.

    Args:
        student: logits of this worker's m items.
        teacher: the same of the teacher, which gets no gradient.
        num_pairs: number of items in the global batch.

    Returns:
        Sum over this worker's items of KL(teacher || student), divided by num_pairs.
    """
    targets = teacher.detach().log_softmax(1)
    return F.kl_div(student.log_softmax(1), targets, reduction="sum", log_target=True) / num_pairs


def distillation(
    student: tuple[Float[Tensor, "m M"], Float[Tensor, "m M"]],
    teacher: tuple[Float[Tensor, "m M"], Float[Tensor, "m M"]],
    logit_scale: Float[Tensor, ""],
    *,
    temperature: float,
) -> Float[Tensor, ""]:
    """Computes the KL divergence of the student's softened softmax from the teacher's (Hinton et al., arXiv 1503.02531).

    Neither the teacher nor the logit scale gets a gradient; the scale would shrink until both distributions were uniform.

    Args:
        student: similarities (t2v, v2t) of the student: this worker's m rows against all M columns.
        teacher: the same of the teacher.
        logit_scale: factor on all similarities (not its logarithm).
        temperature: divides the logits; its square multiplies the result, so that gradients keep their magnitude.

    Returns:
        Sum over this worker's rows of (KL(t2v) + KL(v2t)) / 2, times temperature squared, divided by M.
    """
    scale = logit_scale.detach() / temperature
    terms = [
        F.kl_div(
            (scale * ours).log_softmax(1), (scale * theirs.detach()).log_softmax(1), reduction="sum", log_target=True
        )
        for ours, theirs in zip(student, teacher, strict=True)
    ]
    return temperature**2 * (terms[0] + terms[1]) / (2 * student[0].shape[1])
