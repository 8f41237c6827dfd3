"""Embeddings of a split, and tiles of its similarity.

Two equal clips must get equal scores, or ties would depend on where the clips stand. A matrix product of another shape
rounds differently; within one shape the place of an item has no influence. So all clips are embedded in batches of one
size, all captions in batches of one size and length, and similarities are computed in blocks of one size. Batches and blocks
are filled up with copies of their first item. For `ti` and `wti`, `waver.evaluation.token_wise` gives equal clips equal
scores without computing padding.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from waver.config import ExperimentConfig
from waver.data.batch import frames_to_tensor, read_ahead
from waver.data.clip_store import ClipStore
from waver.data.embedded_clips import EmbeddedClips
from waver.data.epochs import even_batches
from waver.evaluation.gallery import Gallery
from waver.evaluation.ranking import Tile, Workers, row_chunks
from waver.evaluation.token_wise import token_wise
from waver.knowledge.store import Knowledge
from waver.model.embeddings import Embeddings
from waver.model.interaction import wti
from waver.model.student import Student
from waver.model.tokenizer import Tokenizer, Tokens
from waver.training import parallel
from waver.training.build import build_tokenizer
from waver.training.step import autocast

TEXTS_PER_BATCH, CLIPS_PER_BLOCK = 32, 64
"""Captions of a batch, and captions and clips of a block of similarities."""


@dataclass(frozen=True)
class EmbeddedSplit:
    """Embeddings of all clips of a split, and of the captions whose rows this worker ranks."""

    student: Student
    config: ExperimentConfig
    row_of_clip: Int[Tensor, " clips"]
    """Row, in `video`, of each clip of the gallery; arbitrary for clips without embedding, whose scores are masked."""
    video: Embeddings
    """Of the available clips, in the order of the gallery."""
    text: dict[int, Embeddings]
    """Index of the first caption of a chunk of rows -> embeddings of the chunk."""
    tokenizer: Tokenizer
    tokens: list[Tokens]
    """Of every caption, as long as it is."""

    def tile(self, rows: slice, columns: slice) -> Float[Tensor, "t c"]:
        """Computes the similarity of a chunk of captions with a chunk of clips; see `waver.evaluation.ranking.Tile`."""
        return similarity_in_blocks(self.student, self.text[rows.start], self._videos(columns))

    def tile_of(self, texts: Sequence[str]) -> Tile:
        """Returns a function that computes tiles of the similarity of other texts (chunks of rows) with the gallery."""

        token_ids, mask = tokenize_texts(texts, self.config, self.tokenizer)

        @lru_cache(maxsize=1)
        def embed(start: int, stop: int) -> Embeddings:
            return embed_tokens(self.student, token_ids[start:stop], mask[start:stop], self.config)

        return lambda rows, columns: similarity_in_blocks(
            self.student, embed(rows.start, rows.stop), self._videos(columns)
        )

    def _videos(self, columns: slice) -> Embeddings:
        return self.video.map(lambda tensor: tensor[self.row_of_clip[columns]])


def embed_split(
    student: Student,
    queries: Gallery,
    available: Bool[Tensor, " clips"],
    store: ClipStore | EmbeddedClips,
    config: ExperimentConfig,
    *,
    knowledge: Knowledge | None,
    workers: Workers,
    on_progress: Callable[[int, int], None],
) -> EmbeddedSplit:
    """Embeds the clips of a split, shared by the workers, and this worker's share of its captions.

    Args:
        student: the model, in evaluation mode.
        queries: the split.
        available: which of its clips have frames in the store.
        store: frames of the clips, or their embeddings and those of captions (`EmbeddedClips`).
        config: configuration of the experiment.
        knowledge: phrases of the clips, for informed videos; None for plain ones.
        workers: this worker among all.
        on_progress: called with (batches of clips embedded, batches to embed) of this worker.
    """
    clip_ids = [clip for clip, is_available in zip(queries.clip_ids, available.tolist(), strict=True) if is_available]
    video = embed_clips(student, clip_ids, store, config, knowledge, on_progress)
    rows = row_chunks(queries.clip_of_text, config.evaluate.chunk_size)[workers.worker :: workers.num_workers]
    tokenizer = build_tokenizer(config)
    tokens = tokenizer.encode(queries.texts, prompt=config.text.prompt)
    token_ids, mask = tokenizer.cut_padding(*tokenizer.pad(tokens, max_words=config.text.max_words))
    stored = store if isinstance(store, EmbeddedClips) and store.has_tokens(queries.texts) else None
    text = {
        row.start: embed_tokens(
            student,
            token_ids[row],
            mask[row],
            config,
            torch.from_numpy(stored.read_tokens(queries.texts[row], mask.shape[1])) if stored else None,
        )
        for row in rows
    }
    return EmbeddedSplit(student, config, (available.cumsum(0) - 1).clamp(min=0), video, text, tokenizer, tokens)


def embed_clips(
    student: Student,
    clip_ids: list[str],
    store: ClipStore | EmbeddedClips,
    config: ExperimentConfig,
    knowledge: Knowledge | None,
    on_progress: Callable[[int, int], None],
) -> Embeddings:
    """Returns the embeddings of all clips on every worker; each worker embeds every world_size-th batch.

    Args:
        student: the model, in evaluation mode.
        clip_ids: clips with frames in the store.
        store: frames of the clips, or their embeddings and those of captions (`EmbeddedClips`).
        config: configuration of the experiment.
        knowledge: phrases of the clips, for informed videos; None for plain ones.
        on_progress: called with (batches embedded, batches to embed) of this worker.
    """
    assert not knowledge or knowledge.control_kind == config.knowledge.control, (
        "knowledge is under the control of the run"
    )
    device = student.logit_scale.device
    phrase_table = knowledge.phrase_embeddings().to(device) if knowledge else None
    num_frames, width = config.video.max_frames, student.backbone.width
    embeddings = Embeddings(
        torch.zeros(len(clip_ids), num_frames, width, device=device),
        torch.zeros(len(clip_ids), num_frames, dtype=torch.bool, device=device),
        torch.zeros(len(clip_ids), num_frames, device=device),
    )
    batches = even_batches(len(clip_ids), config.evaluate.batch_size)
    own = batches[parallel.rank() :: parallel.world_size()]
    asked = [clip_ids[rows] for rows in own]
    read = store.read_batches(asked) if isinstance(store, EmbeddedClips) else read_ahead(store, asked)
    for done, (rows, clips) in enumerate(zip(own, read, strict=True)):
        frames, mask = (tensor.to(device, non_blocking=True) for tensor in frames_to_tensor(*clips))
        phrases = None
        if knowledge is not None and phrase_table is not None:
            phrases = phrase_table[knowledge.phrase_ids(clip_ids[rows], config.knowledge.top_k).to(device)]
        video = embed_batch(student, frames, mask, phrases, config, size=batches[0].stop)
        embeddings.values[rows], embeddings.mask[rows] = video.values, mask
        embeddings.weights[rows] = video.weights
        on_progress(done + 1, len(own))
    # Rows of other workers are 0, so the sum gathers shares of different sizes without rounding.
    values, mask, weights = (
        parallel.all_reduce(t, "sum") for t in (embeddings.values, embeddings.mask.int(), embeddings.weights)
    )
    return Embeddings(values, mask.bool(), weights)


def embed_batch(
    student: Student,
    frames: Tensor,
    mask: Bool[Tensor, "clips F"],
    phrases: Float[Tensor, "clips K D"] | None,
    config: ExperimentConfig,
    *,
    size: int,
) -> Embeddings:
    """Embeds clips in one batch of a given size, filled up with the first clip, so that their bits depend on nothing else.

    Args:
        student: the model, in evaluation mode.
        frames: pixels or embeddings of frames, see `Student.encode_video`, on the device of the model.
        mask: True for valid frames.
        phrases: embeddings of the phrases of each clip, for informed videos; None for plain ones.
        config: configuration of the experiment.
        size: number of clips in the batch, at least that of the clips.
    """
    filled = _fill(len(frames), size).to(frames.device)
    with autocast(config, frames.device):
        video = student.encode_video(frames[filled], mask[filled], None if phrases is None else phrases[filled])
    return video[: len(frames)].full_precision()


def tokenize_texts(
    texts: Sequence[str], config: ExperimentConfig, tokenizer: Tokenizer
) -> tuple[Int[Tensor, "texts T"], Bool[Tensor, "texts N"]]:
    """Returns token ids and mask of some captions as the model reads them, padded to the longest of them."""
    tokens = tokenizer(list(texts), max_words=config.text.max_words, prompt=config.text.prompt)
    return tokenizer.cut_padding(*tokens)


def embed_tokens(
    student: Student,
    token_ids: Int[Tensor, "texts T"],
    mask: Bool[Tensor, "texts N"],
    config: ExperimentConfig,
    values: Float[Tensor, "texts N D"] | None = None,
    *,
    batch_size: int = TEXTS_PER_BATCH,
) -> Embeddings:
    """Returns the embeddings of some captions. Captions that are compared must be padded to the same length.

    Args:
        student: the model, in evaluation mode.
        token_ids: see `Tokenizer.pad`.
        mask: True for valid tokens.
        config: configuration of the experiment.
        values: stored embeddings of the tokens; None to compute them with the text tower.
        batch_size: captions that are embedded at a time. Embeddings of calls with different sizes differ by rounding.
    """
    token_ids, mask = (tensor.to(student.logit_scale.device) for tensor in (token_ids, mask))
    parts = []
    for start in range(0, len(token_ids), batch_size):
        number = min(batch_size, len(token_ids) - start)
        filled = start + _fill(number, batch_size)
        with autocast(config, token_ids.device):
            if values is None:
                text = student.encode_text(token_ids[filled], mask[filled])
            else:
                text = student.weigh_tokens(values[filled].to(mask.device), mask[filled])
        parts.append(text[:number].full_precision())
    return Embeddings.concatenate(parts)


def similarity_in_blocks(student: Student, text: Embeddings, video: Embeddings) -> Float[Tensor, "T V"]:
    """Computes the similarity of every text with every video in blocks of one size."""
    if student.interaction.similarity is wti:
        return token_wise(text, video)
    columns = list(_blocks(video, CLIPS_PER_BLOCK))
    blocks = [[student.similarity(texts, clips) for clips in columns] for texts in _blocks(text, TEXTS_PER_BATCH)]
    return torch.cat([torch.cat(row, dim=1) for row in blocks])[: len(text), : len(video)]


def _blocks(items: Embeddings, size: int) -> Iterator[Embeddings]:
    for start in range(0, len(items), size):
        part = items[start : start + size]
        yield part[_fill(len(part), size)]


def _fill(number: int, size: int) -> Int[Tensor, " size"]:
    """Returns the indices of so many items, filled up to `size` with the first."""
    indices = torch.arange(size)
    return indices.where(indices < number, 0)
