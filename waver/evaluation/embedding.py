"""embedding."""

from collections.abc import Callable, Sequence

import torch

from waver.config import ExperimentConfig
from waver.data.batch import frames_to_tensor, read_ahead
from waver.data.clip_store import ClipStore
from waver.data.epochs import fixed_batches
from waver.knowledge.store import Knowledge
from waver.model.embeddings import Embeddings
from waver.model.student import Student
from waver.model.tokenizer import tokenize
from waver.training import parallel
from waver.training.step import autocast


def _embed_clips(
    student: Student,
    clip_ids: list[str],
    store: ClipStore,
    config: ExperimentConfig,
    knowledge: Knowledge | None,
    on_progress: Callable[[int, int], None],
) -> Embeddings:
    """Embeddings of all clips, on every worker; each embeds every world_size-th batch."""
    device = student.logit_scale.device
    table = knowledge.phrase_embeddings().to(device) if knowledge else None
    num_frames, width = config.video.max_frames, student.backbone.width
    everything = Embeddings(
        torch.zeros(len(clip_ids), num_frames, width, device=device),
        torch.zeros(len(clip_ids), num_frames, dtype=torch.bool, device=device),
        torch.zeros(len(clip_ids), num_frames, device=device),
    )
    mine = fixed_batches(len(clip_ids), config.evaluate.batch_size)[parallel.rank() :: parallel.world_size()]
    for done, (rows, clips) in enumerate(zip(mine, read_ahead(store, [clip_ids[rows] for rows in mine]), strict=True)):
        frames, mask = (tensor.to(device, non_blocking=True) for tensor in frames_to_tensor(*clips))
        phrases = None
        if knowledge:
            phrases = table[knowledge.phrase_ids(clip_ids[rows], config.knowledge.top_k).to(device)]
        with autocast(config, device):
            video = student.encode_video(frames, mask, phrases)
        everything.values[rows], everything.mask[rows], everything.weights[rows] = (
            video.values.float(),
            mask,
            video.weights,
        )
        on_progress(done + 1, len(mine))
    # Other workers' rows are 0 here, so the sum is the exact gathering of uneven shares.
    values, mask, weights = (
        parallel.all_reduce(t, "sum") for t in (everything.values, everything.mask.int(), everything.weights)
    )
    return Embeddings(values, mask.bool(), weights)


def _embed_texts(student: Student, texts: Sequence[str], config: ExperimentConfig) -> Embeddings:
    """Embeddings of some captions, as long as the longest of them."""
    token_ids, mask = tokenize(list(texts), max_words=config.text.max_words, prompt=config.text.prompt)
    longest, device = int(mask.sum(1).max()), student.logit_scale.device
    with autocast(config, device):
        text = student.encode_text(token_ids[:, :longest].to(device), mask[:, :longest].to(device))
    return text.full_precision()
