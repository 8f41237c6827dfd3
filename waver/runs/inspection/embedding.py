"""Embeds the clips and captions of the subset, and reads the attention of its frames to phrases."""

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from waver.data.batch import frames_to_tensor
from waver.data.clip_store import ClipStore
from waver.evaluation.evaluate import Evaluation
from waver.evaluation.gallery import Gallery
from waver.knowledge.store import Knowledge
from waver.model.embeddings import Embeddings
from waver.model.student import Student
from waver.runs.inspection.pictures import shrink
from waver.runs.inspection.settings import InspectionSettings
from waver.runs.inspection.subset import Subset

_BATCH_SIZE = 16
_COLUMN = 64
"""Side of a frame above a heat map, in pixels."""
_THUMBNAIL = 48
"""Side of a thumbnail in the projector, in pixels."""


@dataclass(frozen=True)
class EmbeddedClips:
    """The embedded clips of a subset; `columns`, `attention` and `phrases` are of the first `num_maps` clips only."""

    video: Embeddings
    columns: tuple[UInt8[np.ndarray, "_ s s 3"], ...]
    """Valid frames, as shown above a heat map."""
    thumbnails: UInt8[np.ndarray, "n p p 3"]
    """Middle frame of every clip, as shown in the projector."""
    attention: tuple[Float[np.ndarray, "_ K"], ...]
    """Attention of valid frames to phrases, mean over the heads; empty without knowledge."""
    phrases: tuple[tuple[str, ...], ...]
    """Phrases of each clip, best match first; empty without knowledge."""


@dataclass(frozen=True)
class EmbeddedSubset:
    """The decoded clips of a subset, and their captions, clip by clip."""

    clip_ids: tuple[str, ...]
    captions: tuple[str, ...]
    styles: tuple[str, ...]
    clip_of_caption: Int[np.ndarray, " t"]
    token_ids: Int[Tensor, "t T"]
    text: Embeddings
    clips: EmbeddedClips
    representatives: tuple[int, ...]
    """Row of each clip's first caption, which represents the clip."""
    similarity: Float[np.ndarray, "n n"]
    """Similarity of the representatives (rows) to the clips (columns)."""


@torch.no_grad()
def embed_subset(
    student: Student,
    evaluation: Evaluation,
    split: Gallery,
    subset: Subset,
    store: ClipStore,
    settings: InspectionSettings,
    *,
    video: Embeddings | None,
    knowledge: Knowledge | None,
) -> EmbeddedSubset | None:
    """Embeds the decoded clips of a subset and their captions; returns None if no clip was decoded.

    Args:
        student: the model.
        evaluation: the evaluation, which names the missing clips.
        split: the evaluated split.
        subset: subset of the split.
        store: clip store.
        settings: how captions and clips are embedded.
        video: embeddings of all clips of the gallery that are not missing, from the evaluation; None embeds them again.
        knowledge: knowledge of the clips; None reads no attention.
    """
    subset = drop_missing(subset, evaluation)
    if not subset.clips:
        return None
    clip_ids = [evaluation.clip_ids[clip] for clip in subset.clips]
    rows = rows_of_clips(subset, evaluation)
    video = video and video.map(lambda tensor: tensor[rows])
    clips = embed_clips(student, clip_ids, store, settings, video=video, knowledge=knowledge)
    chosen = list(itertools.chain(*subset.texts))
    captions = [split.texts[text] for text in chosen]
    token_ids, text = embed_texts(student, captions, settings)
    # Every clip of a gallery has at least one caption.
    first = np.cumsum([0, *(len(texts) for texts in subset.texts[:-1])]).tolist()
    similarity = student.similarity(text.map(lambda tensor: tensor[first]), clips.video)
    return EmbeddedSubset(
        clip_ids=tuple(clip_ids),
        captions=tuple(captions),
        styles=tuple(split.styles[chosen]),
        clip_of_caption=np.repeat(np.arange(len(clip_ids)), [len(texts) for texts in subset.texts]),
        token_ids=token_ids,
        text=text,
        clips=clips,
        representatives=tuple(first),
        similarity=similarity.float().cpu().numpy(),
    )


def drop_missing(subset: Subset, evaluation: Evaluation) -> Subset:
    """Returns the subset without the clips that are missing in an evaluation."""
    missing = set(evaluation.missing_clips)
    kept = [i for i, clip in enumerate(subset.clips) if evaluation.clip_ids[clip] not in missing]
    return Subset(tuple(subset.clips[i] for i in kept), tuple(subset.texts[i] for i in kept))


def rows_of_clips(subset: Subset, evaluation: Evaluation) -> list[int]:
    """Returns the row of each clip of a subset in the embeddings of an evaluation, which omit missing clips."""
    missing = set(evaluation.missing_clips)
    row_of = np.cumsum([clip_id not in missing for clip_id in evaluation.clip_ids]) - 1
    return row_of[list(subset.clips)].tolist()


@torch.no_grad()
def embed_clips(
    student: Student,
    clip_ids: list[str],
    store: ClipStore,
    settings: InspectionSettings,
    *,
    video: Embeddings | None,
    knowledge: Knowledge | None,
) -> EmbeddedClips:
    """Reads and embeds clips.

    Args:
        student: the model.
        clip_ids: one or more decoded clips.
        store: clip store.
        settings: how clips are embedded; attention is read for the first `num_maps` clips.
        video: embeddings of the clips, if the evaluation kept them; then only clips with a heat map pass the backbone.
        knowledge: knowledge of the clips; without it, or if it lacks a clip with a heat map, no attention is read.
    """
    device = student.logit_scale.device
    if knowledge and not settings.informed and knowledge.unmatched_clips(clip_ids[: settings.num_maps]):
        knowledge = None  # phrases were matched for training clips only
    table = knowledge.phrase_embeddings().to(device) if knowledge else None
    fusion = student.fusion
    embedded, columns, thumbnails, attention, phrases_of = [], [], [], [], []
    for first in range(0, len(clip_ids), _BATCH_SIZE):
        batch = clip_ids[first : first + _BATCH_SIZE]
        pixels, lengths = store.read(batch)
        mapped = min(len(batch), max(0, settings.num_maps - first))
        columns += [shrink(pixels[i, : lengths[i]], _COLUMN) for i in range(mapped)]
        thumbnails.append(shrink(pixels[np.arange(len(batch)), lengths // 2], _THUMBNAIL))
        needed = len(batch) if video is None else mapped if knowledge else 0
        if not needed:
            continue
        frames, mask = (tensor.to(device) for tensor in frames_to_tensor(pixels[:needed], lengths[:needed]))
        values = student.encode_frames(frames, mask)
        count = needed if settings.informed else mapped
        if knowledge and count:
            assert table is not None
            assert fusion is not None, "a student without fusion cannot attend to phrases"
            phrase_ids = knowledge.phrase_ids(batch[:count], settings.top_k)
            phrases = table[phrase_ids.to(device)]
            seen = fusion.attention(values[:count], phrases).mean(1).float().cpu().numpy()
            attention += [seen[i, : lengths[i]] for i in range(mapped)]
            phrases_of += [tuple(knowledge.phrases[i] for i in ids) for ids in phrase_ids[:mapped].tolist()]
            values = fusion(values, phrases) if settings.informed else values
        if video is None:
            embedded.append(student.aggregate(values, mask))
    return EmbeddedClips(
        _joined(embedded) if video is None else video,
        tuple(columns),
        np.concatenate(thumbnails),
        tuple(attention),
        tuple(phrases_of),
    )


@torch.no_grad()
def embed_texts(
    student: Student, texts: list[str], settings: InspectionSettings
) -> tuple[Int[Tensor, "t T"], Embeddings]:
    """Returns token ids and embeddings of captions, padded to the longest of them."""
    tokenizer = settings.tokenizer
    tokens = tokenizer(texts, max_words=settings.max_words, prompt=settings.prompt)
    token_ids, mask = (tensor.to(student.logit_scale.device) for tensor in tokenizer.cut_padding(*tokens))
    parts = zip(token_ids.split(64), mask.split(64), strict=True)
    return token_ids, _joined([student.encode_text(*part) for part in parts])


def _joined(parts: list[Embeddings]) -> Embeddings:
    return Embeddings(*(torch.cat([getattr(part, name) for part in parts]) for name in ("values", "mask", "weights")))
