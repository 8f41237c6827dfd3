"""Exact evaluation of a split, shared by any number of workers, with the same metrics for every number.

Metrics computed in another way (excused answers, DSL, QB-Norm) are reported beside the plain ones, never in their place.

Batches of clips and tiles of the similarity are the same for any number of workers, which take turns with them. Every
worker computes the same bits for a batch or a tile. No clip and no caption is dropped or counted twice.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from waver.config import ExperimentConfig
from waver.data.annotations import validation_source
from waver.data.clip_store import ClipStore
from waver.data.embedded_clips import EmbeddedClips
from waver.evaluation.embedding import EmbeddedSplit, embed_split
from waver.evaluation.gallery import Gallery, build_gallery
from waver.evaluation.metrics import direction_metrics, retrieval_metrics
from waver.evaluation.ranking import EvaluationError, Ranks, Workers, rank_tiles
from waver.evaluation.rescoring import (
    build_query_bank,
    check_one_to_one,
    dual_softmax_ranks,
    inverted_softmax_ranks,
)
from waver.evaluation.top_clips import TopClips
from waver.knowledge.store import Knowledge
from waver.model.embeddings import Embeddings
from waver.model.student import Student
from waver.model.tokenizer import Truncation
from waver.training import parallel
from waver.training.step import autocast


@dataclass(frozen=True)
class EvaluationOptions:
    """What an evaluation computes beside the plain metrics."""

    top_k: int = 0
    """Number of first clips per query in `Evaluation.top`; 0 for none."""
    excused: Int[Tensor, "pairs 2"] | None = None
    """(text, clip) pairs that do not count as wrong in the variant `excused`, as indices into `build_gallery`'s texts and
    clips; see `waver.data.duplicates.excused_pairs`. None leaves the variant out."""
    rescore: bool = False
    """Whether to compute the variants that config.evaluate.dsl and qb_norm request; not needed to choose a model."""
    keep_video: bool = False
    """Whether to return `Evaluation.video`."""
    keep_text: bool = False
    """Whether to return `Evaluation.text`; for an evaluation by one worker, which has all captions."""


@dataclass(frozen=True)
class Evaluation:
    """Metrics of a split, and what they were computed from."""

    metrics: dict[str, float]
    variants: dict[str, dict[str, float]]
    """Metrics computed in another way, if requested: `excused`, `dsl`, `qb_norm` (t2v only)."""
    split: str
    gallery_size: int
    num_queries: int
    missing_clips: tuple[str, ...]
    """Clips of the gallery without embedding, which count as misses."""
    ranks: Ranks
    clip_ids: tuple[str, ...]
    """The gallery, in order."""
    text_ids: tuple[str, ...]
    """`<clip_id>#<caption_index>` of each query, in the order of ranks.t2v."""
    clip_of_text: Int[Tensor, " texts"]
    """Index, in clip_ids, of each query's clip."""
    validation: str
    """Origin of the validation split: the data set's own, or held out of train."""
    styles: dict[str, dict[str, float]]
    """Writing style -> t2v metrics of its captions; empty if the data set has no styles."""
    device: str
    """Type of the device: metrics of another type can differ in the last digits."""
    precision: str
    """Precision of the towers: fp32 or bf16."""
    truncation: Truncation
    """How many captions are longer than the model reads."""
    cut: Bool[Tensor, " texts"]
    """Whether each query is."""
    video: Embeddings | None = None
    """Embeddings of the clips that are not missing, in the order of the gallery; None if not requested."""
    text: Embeddings | None = None
    """Embeddings of the captions, in the order of text_ids; None if not requested."""

    @property
    def top(self) -> TopClips | None:
        """First clips of each query; None if not requested."""
        return self.ranks.top


@torch.no_grad()
def evaluate(
    student: Student,
    captions: pa.Table,
    store: ClipStore | EmbeddedClips,
    config: ExperimentConfig,
    *,
    split: str,
    knowledge: Knowledge | None = None,
    options: EvaluationOptions = EvaluationOptions(),
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Computes the exact metrics of a split; returns the same on every worker, for any number of workers.

    Args:
        student: the model.
        captions: caption table; only rows of the split are evaluated.
        store: frames of the clips, or their embeddings and those of captions (`EmbeddedClips`).
        config: configuration of the experiment.
        split: train, validation or test.
        knowledge: phrases of the clips, required if config.informed_at_inference; otherwise never read.
        options: what to compute beside the plain metrics.
        on_progress: called with (batches of clips embedded, batches to embed) of this worker.

    Raises:
        EvaluationError: if the split is empty, none of its clips was decoded, a similarity is NaN, or the split does not
            allow a metric that was requested.
    """
    student.eval()
    queries = build_gallery(captions, split)
    bank = _check_rescoring(queries, captions, config) if options.rescore else []
    # All workers use the first worker's list, since an ingest may be adding clips.
    decoded = set(parallel.broadcast_object(store.ok_clip_ids()))
    available = torch.tensor([clip in decoded for clip in queries.clip_ids], device=student.logit_scale.device)
    if not available.any():
        raise EvaluationError(
            f"none of the {len(queries.clip_ids)} clips of the {split} split could be decoded: see the ledger of the clip "
            "store"
        )
    if not config.informed_at_inference:
        knowledge = None
    assert knowledge or not config.informed_at_inference, "informed videos need the phrases of their clips"
    workers = Workers(parallel.rank(), parallel.world_size(), parallel.all_reduce)
    assert workers.num_workers == 1 or not options.keep_text, "a worker has its share of the captions only"
    embedded = embed_split(
        student, queries, available, store, config, knowledge=knowledge, workers=workers, on_progress=on_progress
    )
    ranks, variants = _rank(embedded, queries, available, options, bank, workers)
    return _summarise(queries, ranks, variants, embedded, available, split=split, captions=captions, options=options)


def _check_rescoring(queries: Gallery, captions: pa.Table, config: ExperimentConfig) -> list[str]:
    """Checks, before any work, that a split allows the requested rescoring; returns the captions of QB-Norm's bank.

    Raises:
        EvaluationError: if the split does not allow it.
    """
    bank = select_bank(captions, config.evaluate.qb_norm_queries) if config.evaluate.qb_norm else []
    if config.evaluate.dsl:
        check_one_to_one(queries.clip_of_text, len(queries.clip_ids))
    return bank


def select_bank(captions: pa.Table, num_queries: int | None) -> list[str]:
    """Selects the captions of train that QB-Norm normalises with.

    Args:
        captions: caption table.
        num_queries: number of captions, evenly spaced among those of train; None for all.

    Raises:
        EvaluationError: if train has no captions.
    """
    train = captions["caption"].filter(pc.equal(captions["split"], "train"))
    if len(train) == 0:
        raise EvaluationError(
            "evaluate.qb_norm needs captions of train, and the data set has none: switch it off (--set "
            "evaluate.qb_norm=false)"
        )
    num_queries = min(num_queries or len(train), len(train))
    return train.take(np.linspace(0, len(train) - 1, num_queries).round().astype(np.int64)).to_pylist()


def _rank(
    embedded: EmbeddedSplit,
    queries: Gallery,
    available: Bool[Tensor, " clips"],
    options: EvaluationOptions,
    bank: list[str],
    workers: Workers,
) -> tuple[Ranks, dict[str, dict[str, float]]]:
    """Ranks the correct answers of a split; returns the plain ranks, and the metrics of each requested variant."""
    clip_of_text = queries.clip_of_text.to(available.device)
    settings, tile = embedded.config.evaluate, embedded.tile
    size = settings.chunk_size
    ranks = rank_tiles(tile, clip_of_text, available, chunk_size=size, top_k=options.top_k, workers=workers)
    assert (len(ranks.t2v), len(ranks.v2t)) == (len(queries.texts), len(queries.clip_ids)), "each query is ranked once"
    variants: dict[str, dict[str, float]] = {}
    if options.excused is not None:
        pairs = options.excused.to(available.device)
        excused = rank_tiles(tile, clip_of_text, available, chunk_size=size, excused=pairs, workers=workers)
        variants["excused"] = retrieval_metrics(excused)
    if options.rescore and settings.dsl:
        scale = embedded.student.logit_scale.exp().item() / settings.dsl_temperature
        dsl = dual_softmax_ranks(tile, clip_of_text, available, scale=scale, chunk_size=size, workers=workers)
        variants["dsl"] = retrieval_metrics(dsl)
    if options.rescore and settings.qb_norm:
        beta = settings.qb_norm_beta
        normalisers = build_query_bank(
            embedded.tile_of(bank),
            len(bank),
            available,
            beta=beta,
            top_k=settings.qb_norm_top_k,
            chunk_size=size,
            workers=workers,
        )
        ranked = inverted_softmax_ranks(
            tile, normalisers, clip_of_text, available, beta=beta, chunk_size=size, workers=workers
        )
        variants["qb_norm"] = direction_metrics("t2v", ranked.t2v, ranked.t2v_ties, len(available))
    return ranks, variants


def _summarise(
    queries: Gallery,
    ranks: Ranks,
    variants: dict[str, dict[str, float]],
    embedded: EmbeddedSplit,
    available: Bool[Tensor, " clips"],
    *,
    split: str,
    captions: pa.Table,
    options: EvaluationOptions,
) -> Evaluation:
    """Computes the metrics of a split and of each writing style in it."""
    cut = embedded.tokenizer.is_cut
    num_clips, device, max_words = len(queries.clip_ids), available.device, embedded.config.text.max_words
    return Evaluation(
        metrics=retrieval_metrics(ranks),
        variants=variants,
        split=split,
        gallery_size=num_clips,
        num_queries=len(queries.texts),
        missing_clips=tuple(clip for clip, ok in zip(queries.clip_ids, available.tolist(), strict=True) if not ok),
        ranks=ranks,
        clip_ids=queries.clip_ids,
        text_ids=queries.text_ids,
        clip_of_text=queries.clip_of_text,
        validation=validation_source(captions),
        styles={
            style: direction_metrics("t2v", ranks.t2v[rows], ranks.t2v_ties[rows], num_clips)
            for style in sorted(set(queries.styles) - {""})
            for rows in [torch.from_numpy(queries.styles == style)]
        },
        device=device.type,
        precision="fp32" if isinstance(autocast(embedded.config, device), nullcontext) else "bf16",
        truncation=embedded.tokenizer.measure_truncation(embedded.tokens, max_words=max_words),
        cut=torch.tensor([cut(tokens, max_words=max_words) for tokens in embedded.tokens], dtype=torch.bool),
        video=embedded.video if options.keep_video else None,
        text=Embeddings.concatenate(list(embedded.text.values())) if options.keep_text else None,
    )
