"""The training step in pure torch: the same functions run in one process, under DDP, and inside Ray."""

import math
import operator
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import reduce

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.profiler import record_function

from waver.config import ExperimentConfig
from waver.data.batch import Batch, caption_keys, frames_to_tensor
from waver.knowledge.soft_targets import FrozenEmbeddings
from waver.knowledge.store import Knowledge
from waver.model.pretrained.weights import count_non_finite
from waver.model.random_streams import derive_seed
from waver.model.student import Encoded
from waver.training import parallel
from waver.training.build import Training, build_tokenizer, linear_warmup
from waver.training.global_batch import Objective, Videos
from waver.training.micro_batches import backward_by_parts, split_batch
from waver.training.objective import loss_terms, needs_plain
from waver.training.profiling import BACKWARD, FORWARD, LOSS, OPTIMIZER

Scalars = dict[str, Float[Tensor, ""]]
"""Name -> value, with gradient in the case of loss terms."""


class NonFiniteLossError(parallel.CollectiveError):
    """The loss or its gradient is NaN or infinite; the weights were not changed."""


def make_batch(
    captions: pa.Table,
    rows: Int[np.ndarray, " B"],
    clips: tuple[UInt8[np.ndarray, "B F H W 3"] | Float[np.ndarray, "B F D"], Int[np.ndarray, " B"]],
    config: ExperimentConfig,
    num_pairs: int,
    knowledge: Knowledge | None = None,
    tokens: Float[np.ndarray, "B N D"] | None = None,
    teacher: FrozenEmbeddings | None = None,
) -> Batch:
    """Builds a worker's share of a global batch: captions with the frames, and the phrases, of their clips.

    Captions are padded to the longest of the share, not to `text.max_words`: the text tower computes padding as well.

    Args:
        captions: caption table.
        rows: rows of the B captions.
        clips: frames of their clips, and the number of valid frames of each, as `ClipStore.read` or `EmbeddedClips.read`
            returns them.
        config: configuration of the experiment.
        num_pairs: number of pairs in the global batch.
        knowledge: phrases of the clips; None for none.
        tokens: embeddings of the captions, see `EmbeddedClips.read_tokens`; None if the text tower is to embed them.
        teacher: the frozen teacher's embeddings, for terms that learn from them; None for none.
    """
    chosen = captions.take(rows)
    texts = chosen["caption"].to_pylist()
    tokenizer = build_tokenizer(config)
    words = tokenizer(texts, max_words=config.text.max_words, prompt=config.text.prompt)
    token_ids, token_mask = tokenizer.cut_padding(*words)
    frames, frame_mask = frames_to_tensor(*clips)
    clip_ids = tuple(chosen["clip_id"].to_pylist())
    phrase_ids = torch.zeros(len(rows), 0, dtype=torch.int64)
    if knowledge:
        assert knowledge.control_kind == config.knowledge.control, "knowledge is under the control of the run"
        phrase_ids = knowledge.phrase_ids(clip_ids, config.knowledge.top_k)
    values = None if tokens is None else torch.from_numpy(tokens[:, : token_mask.shape[1]])
    batch = Batch(
        token_ids,
        token_mask,
        frames,
        frame_mask,
        phrase_ids,
        clip_ids,
        tuple(texts),
        caption_keys(token_ids, token_mask),
        num_pairs,
        values,
    )
    if teacher is None:
        return batch
    described = teacher.clips(knowledge.described(clip_ids)) if knowledge and knowledge.control else None
    return replace(
        batch,
        teacher_clips=teacher.clips(clip_ids),
        teacher_captions=teacher.captions(texts),
        described_clips=described,
    )


def train_step(training: Training, batch: Batch, config: ExperimentConfig) -> dict[str, float]:
    """Takes one optimizer step over a global batch.

    Returns:
        Name -> value to log: loss and loss terms of the global batch, diagnostics (see `waver.training.diagnostics`),
        learning rates, gradient norm before clipping, logit scale and, of the sigmoid loss, logit bias.

    Raises:
        NonFiniteLossError: if the loss or its gradient is not finite; on every worker, before any weight is changed.
    """
    student = training.student
    student.train()
    training.optimizer.zero_grad(set_to_none=True)
    terms, diagnostics = compute_gradients(training, batch, config)
    weights = loss_weights(training, config)
    loss = weighted_sum(terms, weights)
    norm = torch.nn.utils.clip_grad_norm_(student.parameters(), config.train.clip_grad_norm)

    sums = {f"loss/{name}": term for name, term in terms.items()} | {"loss/total": loss} | diagnostics
    values = {"grad_norm": norm, "logit_scale": student.logit_scale.exp()}
    if "distill" in terms:
        values["distill/weight"] = torch.tensor(weights["distill"], device=norm.device)
    if student.logit_bias is not None:
        values["logit_bias"] = student.logit_bias
    summed = parallel.all_reduce(torch.stack([value.detach() for value in sums.values()]), "sum")
    rates = training.schedule.get_last_lr()
    logs = _read_scalars(dict(zip(sums, summed, strict=True)) | values)
    logs |= {"lr/backbone": float(rates[0]), "lr/new": float(rates[-1])}
    if not all(math.isfinite(value) for value in logs.values()):
        raise NonFiniteLossError(_explain_non_finite(training, logs, config))
    with record_function(OPTIMIZER):
        training.optimizer.step()
        training.schedule.step()
        if config.loss.kind == "softmax":  # SigLIP's scale has no bound, and is above CLIP's in its published weights
            student.clamp_logit_scale()
    training.step += 1
    training.rows += batch.num_pairs
    return logs


def _read_scalars(values: Scalars) -> dict[str, float]:
    """Copies scalars from the device, all at once: each copy waits until the device has finished its work."""
    copied = torch.stack([value.detach().reshape(()).double() for value in values.values()]).tolist()
    return dict(zip(values, copied, strict=True))


def _explain_non_finite(training: Training, logs: dict[str, float], config: ExperimentConfig) -> str:
    """Returns the message for a step whose loss or gradient is not finite; the step changed no weight."""
    found = f"step {training.step + 1}: loss = {logs['loss/total']}, gradient norm = {logs['grad_norm']}"
    if training.step == 0:
        bad = count_non_finite(training.student.state_dict())
        cause = f"{next(iter(bad))} has values that are NaN or infinite" if bad else "a value overflows"
        return (
            f"{found}. No weight has been changed before it, so train.lr is not the cause: with the weights as they are "
            f"(model.weights = {config.model.weights}, logit_scale = {logs['logit_scale']:.3g}) {cause}. Take other "
            "weights, or compute with train.precision=fp32"
        )
    return (
        f"{found}, at lr = {logs['lr/new']:.3g} (backbone {logs['lr/backbone']:.3g}). The step changed no weight; the last "
        "checkpoint is good. Lower train.lr, or raise train.warmup_fraction, and run the command again with a new name"
    )


def compute_gradients(training: Training, batch: Batch, config: ExperimentConfig) -> tuple[Scalars, Scalars]:
    """Adds the gradient of a global batch to the `grad` of the student's parameters; the same on every worker.

    Returns:
        As `batch_terms`.
    """
    size = config.train.micro_batch_size
    # The largest share decides for all workers: they must meet in the same collectives in the same order.
    if size is None or parallel.shard(batch.num_pairs, 0, parallel.world_size()).stop <= size:
        terms, diagnostics = batch_terms(training, batch, config)
        with record_function(BACKWARD):
            _worker_loss(terms, training, config).backward()
        return terms, diagnostics
    batch = batch.to(training.student.logit_scale.device)
    found: list[tuple[Scalars, Scalars]] = []

    def loss(encoded: Encoded) -> Tensor:
        found.append(_terms_of(training, encoded, batch, config))
        return _worker_loss(found[0][0], training, config)

    backward_by_parts(
        split_batch(batch, size),
        embed=lambda part: _embed(training.student, training, part, config),
        embed_last=lambda part: _embed(training.forward, training, part, config),
        loss=loss,
        parameters=training.student.parameters(),
        learned_weights=training.student.interaction.learns_weights,
    )
    return found[0]


def loss_weights(training: Training, config: ExperimentConfig) -> dict[str, float]:
    """Returns the weights of the loss terms in the next step: that of `distill` rises, see `loss.distill_warmup`."""
    weights = config.loss.weights
    factor = linear_warmup(training.step, num_steps=training.num_steps, warmup=config.loss.distill_warmup)
    return weights | {"distill": weights["distill"] * factor}


def weighted_sum(terms: Scalars, weights: Mapping[str, float]) -> Float[Tensor, ""]:
    """Returns the sum of loss terms with their weights."""
    return reduce(operator.add, (weights[name] * term for name, term in terms.items()))


def _worker_loss(terms: Scalars, training: Training, config: ExperimentConfig) -> Float[Tensor, ""]:
    """Returns the loss whose gradient a worker computes: DDP averages gradients, but a worker's loss is a share of a sum."""
    return weighted_sum(terms, loss_weights(training, config)) * parallel.world_size()


def batch_terms(training: Training, batch: Batch, config: ExperimentConfig) -> tuple[Scalars, Scalars]:
    """Computes this worker's shares of the loss terms and diagnostics of a global batch; see `waver.training.objective`."""
    batch = batch.to(training.student.logit_scale.device)
    with record_function(FORWARD):
        encoded = _embed(training.forward, training, batch, config)
    return _terms_of(training, encoded, batch, config)


def _embed(forward: Callable[..., Encoded], training: Training, batch: Batch, config: ExperimentConfig) -> Encoded:
    """Embeds the pairs of a batch, in all ways that the loss reads.

    Args:
        forward: the student, or its wrapper of DDP.
        training: state of the run.
        batch: on the device of the model.
        config: configuration of the experiment.
    """
    plain = needs_plain(config.loss.weights, _retrieved(config))
    with autocast(config, batch.frames.device):
        return forward(
            batch,
            training.phrases[batch.phrase_ids],
            plain=plain,
            informed=config.uses_fusion,
            dropout_seeds=_dropout_seeds(training, batch, config),
        )


def _dropout_seeds(training: Training, batch: Batch, config: ExperimentConfig) -> list[int] | None:
    """Returns a seed for each pair, from the step and its place in the global batch; None without dropout."""
    if not config.knowledge.dropout:
        return None
    first = parallel.shard(batch.num_pairs, parallel.rank(), parallel.world_size()).start + batch.first
    places = range(first, first + len(batch.clip_ids))
    return [derive_seed(config.seed, "dropout", training.step, place) for place in places]


def _terms_of(training: Training, encoded: Encoded, batch: Batch, config: ExperimentConfig) -> tuple[Scalars, Scalars]:
    # Workers pad captions to the longest of their own share, and exchange embeddings of one length.
    if parallel.world_size() > 1:
        encoded = replace(encoded, text=encoded.text.pad(config.text.max_words))
    loss = config.loss
    objective = Objective(
        loss.weights,
        loss.temperature,
        _retrieved(config),
        loss.kind,
        knowledge_temperature=loss.knowledge_temperature,
        ignores_shared_captions=loss.shared_captions == "ignored",
        text_target=loss.phrases_text_target,
    )
    with record_function(LOSS):
        return loss_terms(training.student, encoded, batch, training.phrases, objective, training.spaces)


def _retrieved(config: ExperimentConfig) -> Videos:
    return "informed" if config.informed_at_inference else "plain"


def train_epoch(training: Training, batches: Iterable[Batch], config: ExperimentConfig) -> Iterator[dict[str, float]]:
    """Trains for one epoch, or the rest of one.

    Yields:
        The logs of each step, see `train_step`, with the throughput (clips per second) and the fraction of the step's time
        spent waiting for data.
    """
    batches = iter(batches)
    while True:
        start = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            break
        waited = time.perf_counter() - start
        logs = train_step(training, batch, config)
        seconds = time.perf_counter() - start
        speed = batch.num_pairs / seconds
        yield logs | {
            "clips_per_s": speed,
            "clips_per_s_per_worker": speed / parallel.world_size(),
            "data_wait_share": waited / seconds,
        }
    training.epoch += 1


def autocast(config: ExperimentConfig, device: torch.device) -> torch.autocast | nullcontext[None]:
    """Returns the context for the precision of the towers; similarity and loss are always in full precision."""
    bf16 = config.train.precision == "bf16" or (config.train.precision == "auto" and device.type == "cuda")
    return torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext()
