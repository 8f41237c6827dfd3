"""Computes the gradient of a global batch in parts of each worker's share, in the memory that one part needs.

The loss compares every caption with every clip, so it is no sum over parts. Instead

1. each part is embedded without gradient, and the embeddings are kept;
2. the loss of the global batch is computed from the embeddings, with its gradient for the embeddings and for the
   parameters that the loss itself uses;
3. each part is embedded again, with gradient, and the gradient of its embeddings is propagated back to the parameters.

The sum of the gradients is that of the global batch. Each part passes the towers twice.

Source: GradCache (Gao et al., arXiv 2101.06983).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.profiler import record_function

from waver.data.batch import Batch
from waver.model.embeddings import Embeddings
from waver.model.student import Encoded
from waver.training.profiling import BACKWARD, FORWARD

_Embed = Callable[[Batch], Encoded]


def backward_by_parts(
    parts: Sequence[Batch],
    *,
    embed: _Embed,
    embed_last: _Embed,
    loss: Callable[[Encoded], Tensor],
    parameters: Iterable[Tensor],
    learned_weights: bool,
) -> None:
    """Adds the gradient of a loss to the `grad` of all parameters.

    Args:
        parts: this worker's share of a global batch, on the device of the model.
        embed: embeds a part; the student.
        embed_last: embeds the last part with gradient; the student, wrapped in DDP if there are several workers. DDP then
            reduces the gradient of all parts once, so that workers with different numbers of parts stay in step.
        loss: returns the loss of the embeddings of the whole share; called once.
        parameters: those of the student.
        learned_weights: whether the weights of tokens have a gradient.
    """
    states: list[list[Tensor]] = []
    embedded: list[Encoded] = []
    device = parts[0].frames.device
    with record_function(FORWARD), torch.no_grad():
        for part in parts:
            states.append(_random_states(device))
            embedded.append(embed(part))
    whole = _join(embedded)
    leaves = [tensor.requires_grad_() for tensor in _with_gradient(whole, learned_weights)]
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    value = loss(whole)
    with record_function(BACKWARD):
        gradients = torch.autograd.grad(value, [*leaves, *trained], allow_unused=True)
        del value, whole, embedded
        of_parts = zip(*(_split(gradient, parts) for gradient in gradients[: len(leaves)]), strict=True)
        for number, (part, cached) in enumerate(zip(parts, of_parts, strict=True), 1):
            is_last = number == len(parts)
            _set_random_states(states[number - 1], device)
            outputs = _with_gradient((embed_last if is_last else embed)(part), learned_weights)
            pairs = [
                (output, gradient) for output, gradient in zip(outputs, cached, strict=True) if output.requires_grad
            ]
            if is_last:  # together with the gradient of the towers, so that DDP reduces each parameter once
                pairs += list(zip(trained, gradients[len(leaves) :], strict=True))
            if known := [(tensor, gradient) for tensor, gradient in pairs if gradient is not None]:
                torch.autograd.backward([tensor for tensor, _ in known], [gradient for _, gradient in known])


def split_batch(batch: Batch, size: int) -> list[Batch]:
    """Splits a worker's share into parts of at most `size` pairs, in their order."""
    return [batch[start : start + size] for start in range(0, len(batch.clip_ids), size)]


def _with_gradient(encoded: Encoded, learned_weights: bool) -> list[Tensor]:
    """Returns the tensors of embeddings that can have a gradient, in a fixed order."""
    items = [item for item in (encoded.text, encoded.plain, encoded.informed) if item is not None]
    return [item.values for item in items] + ([item.weights for item in items] if learned_weights else [])


def _join(parts: Sequence[Encoded]) -> Encoded:
    """Joins the embeddings of all parts."""

    def joined(name: str) -> Embeddings | None:
        found = [getattr(part, name) for part in parts]
        return None if found[0] is None else Embeddings.concatenate(found)

    attention = [part.attention for part in parts if part.attention is not None]
    text = joined("text")
    assert text is not None, "captions are always embedded"
    return Encoded(text, joined("plain"), joined("informed"), torch.cat(attention) if attention else None)


def _split(gradient: Tensor | None, parts: Sequence[Batch]) -> Iterator[Tensor | None]:
    """Yields the rows of a gradient that belong to each part; None if the loss does not depend on the tensor."""
    start = 0
    for part in parts:
        yield None if gradient is None else gradient[start : start + len(part.clip_ids)]
        start += len(part.clip_ids)


def _random_states(device: torch.device) -> list[Tensor]:
    """Returns the states of the generators that layers such as dropout draw from."""
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def _set_random_states(states: Sequence[Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
