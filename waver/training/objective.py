"""What is learned: the terms of the loss for a batch, from its embeddings, over all workers.

    contrastive   captions against the videos that are retrieved (informed ones, or plain ones)
    knowledge     phrases of the teacher against plain videos
    distill       plain videos answer captions as informed videos do
    informed      captions against informed videos, where plain ones are retrieved and informed ones teach them in `distill`

Source: WAVER (arXiv 2312.09507).
"""

import functools
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from waver.data.batch import Batch
from waver.model.embeddings import Embeddings
from waver.model.interaction import uniform_weights, wti
from waver.model.student import Encoded, Student
from waver.training import parallel
from waver.training.diagnostics import agreement, watch
from waver.training.losses import contrastive, distillation, shared_phrases


def loss_terms(
    student: Student,
    encoded: Encoded,
    batch: Batch,
    phrases: Float[Tensor, "P D"],
    *,
    weights: Mapping[str, float],
    temperature: float,
    retrieved: Literal["plain", "informed"],
) -> tuple[dict[str, Float[Tensor, ""]], dict[str, Float[Tensor, ""]]]:
    """This worker's share of each term that has a weight, and of what is watched beside them (see
    `waver.training.diagnostics`).

    The sum over workers is that of the global batch.

    Each worker compares its own rows with all columns, not the whole matrix.

    Args:
        student: compares texts with videos.
        encoded: what it made of the batch.
        batch: this worker's share, on the device of the model.
        phrases: the teacher's embeddings of all phrases.
        weights: term -> weight; what has none is not computed.
        temperature: of `distill`.
        retrieved: which videos captions are to find.
    """
    scale = student.logit_scale.exp()
    offset = parallel.shard(batch.num_pairs, parallel.rank(), parallel.world_size()).start
    text = _gather(encoded.text, batch.num_pairs)
    videos = {
        name: _gather(video, batch.num_pairs) for name in ("plain", "informed") if (video := getattr(encoded, name))
    }

    @functools.cache
    def answers(name: Literal["plain", "informed"]) -> tuple[Tensor, Tensor]:
        return _both_directions(student.similarity, text, videos[name])

    terms = {}
    watched = watch(encoded, num_pairs=batch.num_pairs, learned_weights=student.text_weights is not None)
    if weights["contrastive"]:
        terms["contrastive"] = contrastive(*answers(retrieved), scale, offset=offset)
    if weights["distill"]:
        terms["distill"] = distillation(answers("plain"), answers("informed"), scale, temperature=temperature)
        watched |= agreement(answers("plain")[0], answers("informed")[0], num_pairs=batch.num_pairs)
        if retrieved == "plain":
            terms["informed"] = contrastive(*answers("informed"), scale, offset=offset)
    if weights["knowledge"]:
        ids = batch.phrase_ids
        all_ids = parallel.all_gather(ids, batch.num_pairs)  # rather than their embeddings, which every worker has
        known = (_phrase_tokens(phrases, ids), _phrase_tokens(phrases, all_ids))
        rows = _both_directions(wti, known, videos["plain"])
        terms["knowledge"] = contrastive(*rows, scale, offset=offset, not_negative=shared_phrases(ids, all_ids))
    return terms, watched


_Gathered = tuple[Embeddings, Embeddings]
"""Embeddings of this worker's items, and of those of all workers."""


def _gather(own: Embeddings, num_pairs: int) -> _Gathered:
    own = own.full_precision()
    return own, own.map(lambda tensor: parallel.all_gather(tensor, num_pairs))


def _both_directions(
    similarity: Callable[[Embeddings, Embeddings], Float[Tensor, "T V"]], text: _Gathered, video: _Gathered
) -> tuple[Float[Tensor, "m M"], Float[Tensor, "m M"]]:
    """(t2v, v2t): this worker's texts with all videos, and its videos with all texts."""
    (own_text, all_text), (own_video, all_video) = text, video
    t2v = similarity(own_text, all_video)
    return t2v, t2v.T if parallel.world_size() == 1 else similarity(all_text, own_video).T


def _phrase_tokens(phrases: Float[Tensor, "P D"], phrase_ids: Int[Tensor, "B K"]) -> Embeddings:
    """The K phrases of each clip as the tokens of one text, each counting the same."""
    mask = torch.ones_like(phrase_ids, dtype=torch.bool)
    return Embeddings(phrases[phrase_ids], mask, uniform_weights(mask).to(phrases.dtype))
