"""Exact evaluation of a split, shared by any number of workers, with the same figures for each number.

Figures that were computed in another way (answers excused, DSL, QB-Norm) stand beside the plain ones, never in their place.

Batches of clips and tiles of the similarity are cut without regard to the workers and then dealt to them: whoever computes
one gets the same bits. Nothing is dropped and nothing counted twice.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from waver.config import ExperimentConfig
from waver.data.annotations import validation_source
from waver.data.clip_store import ClipStore
from waver.evaluation.embedding import _embed_clips, _embed_texts
from waver.evaluation.gallery import gallery
from waver.evaluation.metrics import direction_metrics, retrieval_metrics
from waver.evaluation.ranking import EvaluationError, Ranks, Tile, rank_tiles, row_chunks
from waver.evaluation.rescoring import Workers, check_one_to_one, dual_softmax_ranks, inverted_softmax_ranks, read_bank
from waver.evaluation.top_clips import TopClips
from waver.knowledge.store import Knowledge
from waver.model.embeddings import Embeddings
from waver.model.student import Student
from waver.training import parallel
from waver.training.step import autocast


@dataclass(frozen=True)
class Evaluation:
    """Metrics of a split, and what they were computed over."""

    metrics: dict[str, float]
    variants: dict[str, dict[str, float]]
    """Metrics computed in another way, where it was asked for: `excused`, `dsl`, `qb_norm` (t2v only)."""
    split: str
    gallery_size: int
    num_queries: int
    missing_clips: tuple[str, ...]
    """In the gallery without embedding: misses."""
    ranks: Ranks
    clip_ids: tuple[str, ...]
    """The gallery, in order."""
    text_ids: tuple[str, ...]
    """`<clip_id>#<caption_index>` of each query, in the order of ranks.t2v."""
    clip_of_text: Int[Tensor, " texts"]
    """Number, in the gallery, of each query's clip."""
    validation: str
    """Where the validation split comes from: the data set's own, or held out of train."""
    styles: dict[str, dict[str, float]]
    """Style of writing -> t2v metrics of the captions in it; empty where the data set tells no styles."""
    device: str
    """Kind of device that computed: figures of another one differ in the last digits."""
    precision: str
    """Of the towers."""
    video: Embeddings | None = None
    """Of the clips that are not missing, in the order of the gallery, where they were asked for."""

    @property
    def top(self) -> TopClips | None:
        """The clips that each query finds first, where they were asked for."""
        return self.ranks.top


@torch.no_grad()
def evaluate(
    student: Student,
    captions: pa.Table,
    store: ClipStore,
    config: ExperimentConfig,
    *,
    split: str,
    knowledge: Knowledge | None = None,
    top_k: int = 0,
    excused: Int[Tensor, "pairs 2"] | None = None,
    rescore: bool = False,
    keep_video: bool = False,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Exact metrics of a split, shared by the workers; identical for any number of them, on each of them.

    Args:
        student: the model.
        captions: caption table; only rows of the split count.
        store: its clips.
        config: of the experiment.
        split: train, validation or test.
        knowledge: of the clips, needed where config.informed_at_inference; else it is never looked at.
        top_k: how many of the first clips of each query `Evaluation.top` names; 0 for none.
        excused: (text, clip) that are not wrong, in the numbers of `gallery`, for figures under `excused`; see
            `waver.data.duplicates.excused_pairs`.
        rescore: whether config.evaluate.dsl and qb_norm are heeded; choosing a model does not need them.
        keep_video: whether `Evaluation.video` is wanted.
        on_progress: is told (clips embedded, clips to embed) of this worker.

    Raises:
        EvaluationError: if the split is empty, no clip of it was decoded, a similarity is NaN, or the split does not allow a
            metric that is asked for.
    """
    device = student.logit_scale.device
    student.eval()
    queries = gallery(captions, split)
    clip_ids, clip_of_text = queries.clip_ids, queries.clip_of_text.to(device)
    bank = _bank(captions, config) if rescore and config.evaluate.qb_norm else ()
    if rescore and config.evaluate.dsl:
        check_one_to_one(clip_of_text, len(clip_ids))
    # What the first worker sees: an ingest may be at work.
    decoded = set(parallel.broadcast_object(store.ok_clip_ids()))
    available = torch.tensor([clip in decoded for clip in clip_ids], device=device)
    if not available.any():
        raise EvaluationError(
            f"none of the {len(clip_ids)} clips of the {split} split could be decoded: see the ledger of the clip store"
        )
    if not config.informed_at_inference:
        knowledge = None
    assert knowledge or not config.informed_at_inference, "informed videos need the phrases of their clips"
    video = _embed_clips(student, [clip for clip in clip_ids if clip in decoded], store, config, knowledge, on_progress)
    # Row of a clip's embedding; of no meaning where it has none.
    slot = (available.cumsum(0) - 1).clamp(min=0)
    workers = Workers(parallel.rank(), parallel.world_size(), parallel.all_reduce)
    chunks = row_chunks(clip_of_text, config.evaluate.chunk_size)[workers.worker :: workers.num_workers]
    text = {chunk.start: _embed_texts(student, queries.texts[chunk], config) for chunk in chunks}

    @lru_cache(maxsize=1)
    def bank_text(start: int) -> Embeddings:
        return _embed_texts(student, bank[start : start + config.evaluate.chunk_size], config)

    def tile(rows: slice, columns: slice) -> Tensor:
        return student.similarity(text[rows.start], video.map(lambda tensor: tensor[slot[columns]]))

    def bank_tile(rows: slice, columns: slice) -> Tensor:
        return student.similarity(bank_text(rows.start), video.map(lambda tensor: tensor[slot[columns]]))

    how = {"chunk_size": config.evaluate.chunk_size, **vars(workers)}
    ranks = rank_tiles(tile, clip_of_text, available, top_k=top_k, **how)
    assert (len(ranks.t2v), len(ranks.v2t)) == (len(queries.texts), len(clip_ids)), "every query is ranked exactly once"
    variants = {}
    if excused is not None:
        pairs = excused.to(device)
        variants["excused"] = retrieval_metrics(rank_tiles(tile, clip_of_text, available, excused=pairs, **how))
    if rescore:
        scale = student.logit_scale.exp().item()
        variants |= _rescored(tile, bank_tile, len(bank), clip_of_text, available, config, scale, workers)
    return Evaluation(
        metrics=retrieval_metrics(ranks),
        variants=variants,
        split=split,
        gallery_size=len(clip_ids),
        num_queries=len(queries.texts),
        missing_clips=tuple(clip for clip in clip_ids if clip not in decoded),
        ranks=ranks,
        clip_ids=clip_ids,
        text_ids=queries.text_ids,
        clip_of_text=queries.clip_of_text,
        validation=validation_source(captions),
        styles={
            style: direction_metrics("t2v", ranks.t2v[torch.from_numpy(queries.styles == style)], len(clip_ids))
            for style in sorted(set(queries.styles) - {""})
        },
        device=device.type,
        precision="fp32" if isinstance(autocast(config, device), nullcontext) else "bf16",
        video=video if keep_video else None,
    )


def _bank(captions: pa.Table, config: ExperimentConfig) -> list[str]:
    """The captions of train that QB-Norm asks for; never one of the split that is evaluated, unless that is train."""
    train = captions["caption"].filter(pa.compute.equal(captions["split"], "train"))
    if len(train) == 0:
        raise EvaluationError(
            "evaluate.qb_norm needs captions of train, and the data set has none: leave it out (--set "
            "evaluate.qb_norm=false)"
        )
    num_queries = min(config.evaluate.qb_norm_queries or len(train), len(train))
    return train.take(np.linspace(0, len(train) - 1, num_queries).round().astype(np.int64)).to_pylist()


def _rescored(
    tile: Tile,
    bank_tile: Tile,
    num_bank: int,
    clip_of_text: Int[Tensor, " texts"],
    available: Bool[Tensor, " clips"],
    config: ExperimentConfig,
    scale: float,
    workers: Workers,
) -> dict[str, dict[str, float]]:
    """Metrics after DSL and QB-Norm, those that the configuration asks for."""
    how, settings = {"chunk_size": config.evaluate.chunk_size, "workers": workers}, config.evaluate
    found = {}
    if settings.dsl:
        ranks = dual_softmax_ranks(tile, clip_of_text, available, scale=scale / settings.dsl_temperature, **how)
        found["dsl"] = retrieval_metrics(ranks)
    if settings.qb_norm:
        beta = settings.qb_norm_beta
        bank = read_bank(bank_tile, num_bank, available, beta=beta, top_k=settings.qb_norm_top_k, **how)
        t2v = inverted_softmax_ranks(tile, bank, clip_of_text, available, beta=beta, **how)
        found["qb_norm"] = direction_metrics("t2v", t2v, len(available))
    return found
