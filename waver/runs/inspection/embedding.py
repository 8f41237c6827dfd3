"""The subset after the towers: embeddings of its clips and captions, and what its frames look at."""

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
from waver.model.tokenizer import tokenize
from waver.runs.inspection.pictures import shrink
from waver.runs.inspection.settings import InspectionSettings
from waver.runs.inspection.subset import Subset

_BATCH_SIZE = 16
_COLUMN = 64
"""Size of the frames above a heat map."""
_THUMBNAIL = 48
"""Size of those in the projector."""


@dataclass(frozen=True)
class Sight:
    """The clips of a subset."""

    video: Embeddings
    columns: tuple[UInt8[np.ndarray, "_ s s 3"], ...]
    """The valid frames of the first clips, as they stand above a heat map."""
    thumbnails: UInt8[np.ndarray, "n p p 3"]
    """A frame of every clip, from its middle, as the projector shows it."""
    attention: tuple[Float[np.ndarray, "_ K"], ...]
    """Of the first clips' valid frames to their phrases, mean over the heads; empty where there are none."""
    phrases: tuple[tuple[str, ...], ...]
    """Of the first clips, best match first."""


@dataclass(frozen=True)
class EmbeddedSubset:
    """The clips of a subset that have frames, and their captions, clip by clip."""

    clip_ids: tuple[str, ...]
    captions: tuple[str, ...]
    styles: tuple[str, ...]
    clip_of_caption: Int[np.ndarray, " t"]
    token_ids: Int[Tensor, "t N"]
    text: Embeddings
    sight: Sight
    representatives: tuple[int, ...]
    """The caption that stands for each clip: its first."""
    similarity: Float[np.ndarray, "n n"]
    """Of those captions with the clips."""


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
    """Embeds what has frames of a subset; None where nothing has.

    Args:
        student: the model.
        evaluation: says which clips have frames.
        split: that was evaluated.
        subset: of it.
        store: has the frames.
        settings: how captions and clips are embedded.
        video: embeddings of all clips of the gallery that are not missing, from the evaluation; None embeds them again.
        knowledge: of the clips; None draws no attention.
    """
    subset = with_frames(subset, evaluation)
    if not subset.clips:
        return None
    clip_ids = [evaluation.clip_ids[clip] for clip in subset.clips]
    rows = rows_of_clips(subset, evaluation)
    video = video and video.map(lambda tensor: tensor[rows])
    sight = see_clips(student, clip_ids, store, settings, video=video, knowledge=knowledge)
    chosen = list(itertools.chain(*subset.texts))
    captions = [split.texts[text] for text in chosen]
    token_ids, text = read_texts(student, captions, max_words=settings.max_words, prompt=settings.prompt)
    # Every clip of a gallery has a caption.
    first = np.cumsum([0, *(len(texts) for texts in subset.texts[:-1])]).tolist()
    similarity = student.similarity(text.map(lambda tensor: tensor[first]), sight.video)
    return EmbeddedSubset(
        clip_ids=tuple(clip_ids),
        captions=tuple(captions),
        styles=tuple(split.styles[chosen]),
        clip_of_caption=np.repeat(np.arange(len(clip_ids)), [len(texts) for texts in subset.texts]),
        token_ids=token_ids,
        text=text,
        sight=sight,
        representatives=tuple(first),
        similarity=similarity.float().cpu().numpy(),
    )


def with_frames(subset: Subset, evaluation: Evaluation) -> Subset:
    """The part of a subset whose clips were embedded in an evaluation."""
    missing = set(evaluation.missing_clips)
    kept = [i for i, clip in enumerate(subset.clips) if evaluation.clip_ids[clip] not in missing]
    return Subset(tuple(subset.clips[i] for i in kept), tuple(subset.texts[i] for i in kept))


def rows_of_clips(subset: Subset, evaluation: Evaluation) -> list[int]:
    """Where the clips of a subset stand among those that an evaluation embedded."""
    missing = set(evaluation.missing_clips)
    row_of = np.cumsum([clip_id not in missing for clip_id in evaluation.clip_ids]) - 1
    return row_of[list(subset.clips)].tolist()


@torch.no_grad()
def see_clips(
    student: Student,
    clip_ids: list[str],
    store: ClipStore,
    settings: InspectionSettings,
    *,
    video: Embeddings | None,
    knowledge: Knowledge | None,
) -> Sight:
    """Reads some clips and embeds them.

    Args:
        student: the model.
        clip_ids: one or more; all have frames.
        store: has their frames.
        settings: how clips are embedded, and of how many the attention is wanted.
        video: their embeddings if the evaluation kept them; then only frames whose attention is wanted pass the backbone.
        knowledge: of the clips; if it is None or lacks one of the clips with a heat map, there is no attention.
    """
    device = student.logit_scale.device
    if knowledge and not settings.informed and knowledge.unmatched_clips(clip_ids[: settings.num_maps]):
        knowledge = None  # phrases were matched for the clips of train alone
    table = knowledge.phrase_embeddings().to(device) if knowledge else None
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
        values = student.backbone.encode_frames(student.backbone.pixels(frames), mask)
        count = needed if settings.informed else mapped
        if knowledge and count:
            phrase_ids = knowledge.phrase_ids(batch[:count], settings.top_k)
            phrases = table[phrase_ids.to(device)]
            seen = student.fusion.attention(values[:count], phrases).mean(1).float().cpu().numpy()
            attention += [seen[i, : lengths[i]] for i in range(mapped)]
            phrases_of += [tuple(knowledge.phrases[i] for i in ids) for ids in phrase_ids[:mapped].tolist()]
            values = student.fusion(values, phrases) if settings.informed else values
        if video is None:
            embedded.append(student.aggregate(values, mask))
    return Sight(
        _joined(embedded) if video is None else video,
        tuple(columns),
        np.concatenate(thumbnails),
        tuple(attention),
        tuple(phrases_of),
    )


@torch.no_grad()
def read_texts(
    student: Student, texts: list[str], *, max_words: int, prompt: str | None
) -> tuple[Int[Tensor, "t N"], Embeddings]:
    """Token ids and embeddings of some captions, as long as the longest of them."""
    token_ids, mask = tokenize(texts, max_words=max_words, prompt=prompt)
    longest, device = int(mask.sum(1).max()), student.logit_scale.device
    token_ids, mask = token_ids[:, :longest].to(device), mask[:, :longest].to(device)
    parts = zip(token_ids.split(64), mask.split(64), strict=True)
    return token_ids, _joined([student.encode_text(*part) for part in parts])


def _joined(parts: list[Embeddings]) -> Embeddings:
    return Embeddings(*(torch.cat([getattr(part, name) for part in parts]) for name in ("values", "mask", "weights")))
