"""What a model does, for people to look at after an evaluation: pictures, distributions, and points for the projector.

Everything shows the same small subset, so that two steps of a run, and two runs, can be compared; but for the worst
failures, which are looked for among all queries. One worker does it while the others wait: only the subset is embedded.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from waver.backbone import tokenize
from waver.batch import Embeddings, frames_to_tensor
from waver.clip_store import ClipStore
from waver.evaluation import Evaluation, Gallery, gallery
from waver.inspection.distributions import pr_curve, rank_distributions, similarity_distributions
from waver.inspection.interaction import attention_map, interaction_map, interaction_of
from waver.inspection.matrix import similarity_matrix
from waver.inspection.pictures import Picture, read_thumbnails, shrink
from waver.inspection.projection import THUMBNAIL_SIZE, Point, PointSet, one_vector, with_border
from waver.inspection.strips import FRAME_SIZE, NUM_FRAMES, clips_of_strip, text_to_video, video_to_text
from waver.inspection.subset import Subset, choose_subset, worst_queries
from waver.knowledge import Knowledge
from waver.model import Student

_BATCH_SIZE = 16
_COLUMN = 64
"""Size of the frames above a heat map."""


@dataclass(frozen=True)
class Amounts:
    """How much is looked at; what is drawn is cut from the front of the same subset."""

    clips: int = 64
    """In the matrix, the distributions and the projector."""
    captions_per_clip: int = 4
    """In the projector; elsewhere one caption stands for a clip."""
    queries: int = 6
    """Strips in each direction."""
    worst: int = 4
    """Strips of the worst failures in each direction."""
    maps: int = 4
    """Heat maps of tokens and frames, and of phrases and frames."""


@dataclass(frozen=True)
class Inspection:
    """For TensorBoard. A tag shows the same query in every evaluation, but for the worst, which have the tag of their place."""

    images: dict[str, Picture]
    histograms: dict[str, Float[np.ndarray, " values"]]
    pr_curves: dict[str, tuple[Bool[np.ndarray, " pairs"], Float[np.ndarray, " pairs"]]]
    """(labels, predictions in [0, 1])."""
    point_sets: dict[str, PointSet]
    """See `waver.inspection.projection.write_projection`."""
    embedding_s: float
    """Seconds that the model took, with reading the subset's frames."""
    drawing_s: float


@dataclass(frozen=True)
class EmbeddedSubset:
    """The clips of a subset that have frames, and their captions."""

    subset: Subset
    token_ids: Int[Tensor, "t N"]
    text: Embeddings
    """Of all captions of `subset`, clip by clip."""
    video: Embeddings
    columns: tuple[UInt8[np.ndarray, "f s s 3"], ...]
    """The valid frames of the first clips, as they stand above a heat map."""
    first_frames: UInt8[np.ndarray, "n p p 3"]
    """Of every clip, from its middle, as the projector shows them."""
    attention: tuple[Float[np.ndarray, "f K"], ...]
    """Of the first clips' valid frames to their phrases, mean over the heads; empty where there are none."""

    @property
    def representative(self) -> list[int]:
        """Rows in `text` of the captions that stand for the clips."""
        counts = [len(texts) for texts in self.subset.texts]
        return np.cumsum([0, *counts[:-1]]).tolist()[: len(counts)]


@torch.no_grad()
def inspect_run(
    student: Student,
    evaluation: Evaluation,
    captions: pa.Table,
    store: ClipStore,
    *,
    max_words: int,
    prompt: str | None,
    knowledge: Knowledge | None = None,
    top_k: int = 0,
    informed: bool = False,
    amounts: Amounts | None = None,
    seed: int = 0,
) -> Inspection:
    """Looks at a model after an evaluation; one worker calls it.

    Scores and ranks of strips are those of the evaluation; everything else comes from embedding the subset again, in the
    full precision of the weights.

    Args:
        student: the model, as the evaluation left it.
        evaluation: with `top`, of the clips that strips name: top_k = 5 or more.
        captions: caption table; only rows of evaluation.split are looked at.
        store: its clips.
        max_words: tokens of a caption.
        prompt: sentence around a caption, if any.
        knowledge: of the clips; None draws no attention.
        top_k: phrases of a clip.
        informed: whether clips are embedded with their phrases.
        amounts: how much is looked at.
        seed: another one looks at others.
    """
    assert evaluation.ranks.top is not None, "evaluate with top_k"
    assert not informed or knowledge, "informed videos need the phrases of their clips"
    start, amounts = time.perf_counter(), amounts or Amounts()
    evaluation = replace(evaluation, ranks=evaluation.ranks.cpu(), clip_of_text=evaluation.clip_of_text.cpu())
    queries = gallery(captions, evaluation.split)
    assert queries.text_ids == evaluation.text_ids, "these are the captions that were evaluated"
    chosen = {"num_clips": amounts.clips, "captions_per_clip": amounts.captions_per_clip, "seed": seed}
    subset = choose_subset(evaluation.clip_ids, evaluation.text_ids, evaluation.clip_of_text, **chosen)
    knowledge = knowledge if top_k and student.fusion is not None else None
    embedded = embed_subset(
        student, queries, subset, store, max_words, prompt, knowledge, top_k, informed=informed, num_maps=amounts.maps
    )
    embedding_s = time.perf_counter() - start
    images = _strips(evaluation, queries.texts, subset, store, amounts)
    histograms, pr_curves, point_sets = rank_distributions(evaluation.ranks), {}, {}
    if embedded:
        rows = embedded.representative
        similarity = student.similarity(embedded.text.map(lambda t: t[rows]), embedded.video).float().cpu().numpy()
        images["similarity/matrix"] = similarity_matrix(similarity)
        images |= _maps(student, queries, embedded, knowledge, top_k)
        histograms |= similarity_distributions(similarity)
        pr_curves["similarity/pairs"] = pr_curve(similarity)
        point_sets = _point_sets(student, queries, embedded)
    drawing_s = time.perf_counter() - start - embedding_s
    return Inspection(images, histograms, pr_curves, point_sets, embedding_s, drawing_s)


def embed_subset(
    student: Student,
    queries: Gallery,
    subset: Subset,
    store: ClipStore,
    max_words: int,
    prompt: str | None,
    knowledge: Knowledge | None,
    top_k: int,
    *,
    informed: bool,
    num_maps: int,
) -> EmbeddedSubset | None:
    """Embeds what has frames of a subset; None where nothing has. Arguments as in `inspect_run`."""
    device, decoded = student.logit_scale.device, set(store.ok_clip_ids())
    there = [i for i, clip in enumerate(subset.clips) if queries.clip_ids[clip] in decoded]
    if not there:
        return None
    subset = Subset(tuple(subset.clips[i] for i in there), tuple(subset.texts[i] for i in there))
    clip_ids = [queries.clip_ids[clip] for clip in subset.clips]
    table = knowledge.phrase_embeddings().to(device) if knowledge else None
    videos, columns, first_frames, attention = [], [], [], []
    for first in range(0, len(clip_ids), _BATCH_SIZE):
        batch = clip_ids[first : first + _BATCH_SIZE]
        pixels, lengths = store.read(batch)
        frames, mask = (tensor.to(device) for tensor in frames_to_tensor(pixels, lengths))
        values = student.backbone.encode_frames(student.backbone.pixels(frames), mask)
        if knowledge:
            phrases = table[knowledge.phrase_ids(batch, top_k).to(device)]
            seen = student.fusion.attention(values, phrases).mean(1).float().cpu().numpy()
            attention += [seen[i, :length] for i, length in enumerate(lengths[: max(0, num_maps - first)])]
            values = student.fusion(values, phrases) if informed else values
        videos.append(student.aggregate(values, mask))
        columns += [shrink(pixels[i, :length], _COLUMN) for i, length in enumerate(lengths[: max(0, num_maps - first)])]
        first_frames.append(shrink(pixels[np.arange(len(batch)), lengths // 2], THUMBNAIL_SIZE))
    texts = [queries.texts[text] for texts in subset.texts for text in texts]
    token_ids, mask = tokenize(texts, max_words=max_words, prompt=prompt)
    longest = int(mask.sum(1).max())
    token_ids, mask = token_ids[:, :longest].to(device), mask[:, :longest].to(device)
    return EmbeddedSubset(
        subset,
        token_ids,
        student.encode_text(token_ids, mask),
        Embeddings(*(torch.cat([getattr(video, name) for video in videos]) for name in ("values", "mask", "weights"))),
        tuple(columns),
        np.concatenate(first_frames),
        tuple(attention),
    )


def _strips(
    evaluation: Evaluation, texts: Sequence[str], subset: Subset, store: ClipStore, amounts: Amounts
) -> dict[str, Picture]:
    looked_at = subset[: amounts.queries]
    t2v = {f"t2v/query_{n}": own[0] for n, own in enumerate(looked_at.texts, 1)}
    t2v |= {f"t2v/worst_{n}": text for n, text in enumerate(worst_queries(evaluation.ranks.t2v, amounts.worst), 1)}
    v2t = {f"v2t/query_{n}": clip for n, clip in enumerate(looked_at.clips, 1)}
    v2t |= {f"v2t/worst_{n}": clip for n, clip in enumerate(worst_queries(evaluation.ranks.v2t, amounts.worst), 1)}
    shown = [clip for text in t2v.values() for clip in clips_of_strip(evaluation, text)]
    shown += [evaluation.clip_ids[clip] for clip in v2t.values()]
    thumbnails = read_thumbnails(store, shown, size=FRAME_SIZE, num_frames=NUM_FRAMES)
    return {tag: text_to_video(evaluation, texts, text, thumbnails) for tag, text in t2v.items()} | {
        tag: video_to_text(evaluation, texts, clip, thumbnails) for tag, clip in v2t.items()
    }


def _maps(
    student: Student, queries: Gallery, embedded: EmbeddedSubset, knowledge: Knowledge | None, top_k: int
) -> dict[str, Picture]:
    images, rows = {}, embedded.representative
    for number, frames in enumerate(embedded.columns):
        row, clip_id = rows[number], queries.clip_ids[embedded.subset.clips[number]]
        interaction = interaction_of(
            student, embedded.token_ids[row], embedded.text[row : row + 1], embedded.video[number : number + 1]
        )
        if interaction:
            caption = queries.texts[embedded.subset.texts[number][0]]
            images[f"interaction/pair_{number + 1}"] = interaction_map(
                interaction, frames, caption=caption, clip_id=clip_id
            )
        if embedded.attention:
            phrases = [knowledge.phrases[i] for i in knowledge.phrase_ids([clip_id], top_k)[0].tolist()]
            images[f"knowledge/attention_{number + 1}"] = attention_map(
                embedded.attention[number], phrases, frames, clip_id=clip_id
            )
    return images


def _point_sets(student: Student, queries: Gallery, embedded: EmbeddedSubset) -> dict[str, PointSet]:
    """Clips and their captions in one space, and the clips alone: the two kinds often lie far apart."""
    subset, first = embedded.subset, embedded.first_frames
    clips = PointSet(
        one_vector(embedded.video, student.kind, is_text=False).float().cpu().numpy(),
        tuple(
            Point("clip", queries.texts[texts[0]], queries.clip_ids[clip], "")
            for clip, texts in zip(subset.clips, subset.texts, strict=True)
        ),
        first,
    )
    clip_of_row = np.repeat(np.arange(len(subset.clips)), [len(texts) for texts in subset.texts])
    captions = [
        Point("caption", queries.texts[text], queries.clip_ids[clip], queries.styles[text])
        for clip, texts in zip(subset.clips, subset.texts, strict=True)
        for text in texts
    ]
    text = one_vector(embedded.text, student.kind, is_text=True).float().cpu().numpy()
    both = PointSet(
        np.concatenate([clips.vectors, text]),
        (*clips.points, *captions),
        np.concatenate([first, with_border(first)[clip_of_row]]),
    )
    return {"clips_and_captions": both, "clips": clips}
