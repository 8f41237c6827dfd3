"""Clips and captions whose embeddings by frozen towers are read in place of pixels and words."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from waver.data.batch import ReadClips, read_ahead
from waver.data.clip_store import ClipStore
from waver.data.embedding_store import EmbeddingStore


@dataclass(frozen=True)
class EmbeddedClips:
    """A clip store together with the stores of embeddings by frozen towers: of its frames, of captions, or of both.

    A model reads it in place of a `ClipStore`: embeddings where there is a store of them, otherwise pixels or words.
    """

    clips: ClipStore
    frames: EmbeddingStore | None = None
    """Embeddings of frames; None to read pixels."""
    tokens: EmbeddingStore | None = None
    """Embeddings of the tokens of captions; None to read words."""

    @property
    def path(self) -> Path:
        """Folder of the clip store."""
        return self.clips.path

    def ok_clip_ids(self) -> list[str]:
        """Returns the clips that have frames, sorted."""
        return self.clips.ok_clip_ids()

    def read(self, clip_ids: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Reads clips, in the given order.

        Returns:
            Embeddings of the frames, float32 (B, max_frames, D), or pixels as `ClipStore.read` returns them; num_frames,
            int32 (B,).

        Raises:
            StoreError: if a clip has no frames.
            EmbeddingError: if an embedding is missing or damaged.
        """
        if self.frames is None:
            return self.clips.read(clip_ids)
        sources = self.clips.blocks_of(clip_ids)
        return self.frames.read([(clip, sources[clip]) for clip in clip_ids], self.clips.settings.max_frames)

    def read_batches(
        self, batches: list[list[str]], read_pixels: ReadClips = read_ahead
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields what `read` returns for each batch of clip ids.

        Args:
            batches: clip ids of each batch.
            read_pixels: reads the batches if frames are not stored. Embeddings are read when they are taken.
        """
        return read_pixels(self.clips, batches) if self.frames is None else map(self.read, batches)

    def has_tokens(self, captions: Sequence[str]) -> bool:
        """Returns whether the tokens of all these captions are stored; if not, the text tower must run."""
        return self.tokens is not None and not self.tokens.missing(dict.fromkeys(captions, ""))

    def read_tokens(self, captions: Sequence[str], num_tokens: int) -> Float32[np.ndarray, "B N D"]:
        """Reads the token embeddings of captions, in the given order; they are 0 after the last token of each caption.

        Some towers give only one embedding of a whole text: it is repeated at each of the N = `num_tokens` positions.

        Raises:
            EmbeddingError: if one of them is missing or damaged.
        """
        assert self.tokens is not None, "the captions are not stored"
        values, lengths = self.tokens.read([(caption, "") for caption in captions], num_tokens)
        return np.where((lengths == 1)[:, None, None], values[:, :1], values)


@dataclass(frozen=True)
class EmbeddingPaths:
    """Folders of embedding stores, as they are sent to workers. None: pixels or words are read instead."""

    frames: Path | None = None
    tokens: Path | None = None

    def open(self, clips: ClipStore) -> ClipStore | EmbeddedClips:
        """Opens the stores beside a clip store; returns the clip store alone if both are None."""
        if self.frames is None and self.tokens is None:
            return clips
        return EmbeddedClips(
            clips,
            EmbeddingStore(self.frames) if self.frames else None,
            EmbeddingStore(self.tokens) if self.tokens else None,
        )

    @classmethod
    def of(cls, clips: ClipStore | EmbeddedClips) -> "EmbeddingPaths":
        """Returns the folders of the embedding stores of `clips`; none for a clip store alone."""
        if not isinstance(clips, EmbeddedClips):
            return cls()
        return cls(clips.frames and clips.frames.path, clips.tokens and clips.tokens.path)
