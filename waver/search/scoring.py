"""Computes the similarity of texts and videos with the windows of an index, by the model's own interaction.

Windows are compared in chunks. If all chunks of the index need at most a quarter of the free memory, they stay there, in the
form in which they are compared.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property

import psutil
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from waver.evaluation.embedding import CLIPS_PER_BLOCK, TEXTS_PER_BATCH, similarity_in_blocks
from waver.evaluation.token_wise import WORDS_PER_PRODUCT, PreparedClips, prepare_clips, token_wise
from waver.model.embeddings import Embeddings
from waver.model.interaction import dp, mean_frame, sentence, wti
from waver.search.model import Model
from waver.search.vectors import Vectors

logger = logging.getLogger(__name__)

_CHUNK = 4096
"""Windows that are read and compared at a time."""
CACHED_FRACTION = 0.25
"""The windows of an index are kept in memory if they need at most this share of the available memory."""
_WORDS_STEP = 16
"""A matrix product has a multiple of this number of words, and at most as many as in `waver evaluate`."""

_Prepared = PreparedClips | Tensor | Embeddings
"""Windows as they are compared: `PreparedClips` for `ti` and `wti`, mean frames (V, D) for `dp`, otherwise as they are."""


class WindowScores:
    """Compares texts and videos with the windows of an index.

    Args:
        vectors: embeddings of the windows.
        model: model of the index.
    """

    def __init__(self, vectors: Vectors, model: Model):
        self._vectors, self._model = vectors, model
        self._cache: dict[int, _Prepared] = {}

    @torch.no_grad()
    def embeddings(self, numbers: Sequence[int]) -> Embeddings:
        """Reads the embeddings of some windows, given by their numbers, and computes the weights of their frames."""
        length = self._model.config.video.max_frames
        read = self._vectors.read(numbers, length)
        values, lengths = (torch.from_numpy(array).to(self._model.device) for array in read)
        mask = torch.arange(length, device=lengths.device) < lengths[:, None]
        return self._model.student.weigh_frames(values, mask)

    def all_embeddings(self) -> Iterator[Embeddings]:
        """Yields the embeddings of all windows in chunks; keeps none of them in memory."""
        return map(self.embeddings, self._parts())

    @torch.no_grad()
    def of_texts(self, text: Embeddings, numbers: Sequence[int] | None = None) -> Float[Tensor, "T V"]:
        """Computes the similarity of texts with some windows, given by their numbers; None for all windows."""
        return self._compare(numbers, lambda windows: self._similarity(text, windows))

    @torch.no_grad()
    def of_video(self, video: Embeddings, numbers: Sequence[int] | None = None) -> Float[Tensor, "1 V"]:
        """Computes the similarity of a video with some windows, given by their numbers; None for all windows.

        For `ti` and `wti`, the frames of the video take the place of the words. The other interactions need an embedding of
        a whole sentence, which a video does not have: for them, the similarity is the cosine of the mean frames.
        """
        if self._kind is wti:
            return self._compare(numbers, lambda windows: token_wise(video, windows, _num_rows(video)))
        mean = mean_frame(video)
        return self._compare(numbers, lambda windows: _in_blocks(mean, _means(windows)))

    def _compare(self, numbers: Sequence[int] | None, compare: Callable[[_Prepared], Tensor]) -> Tensor:
        if numbers is None:
            return torch.cat([compare(windows).cpu() for windows in self._chunks()], dim=1)
        return compare(self._prepare(self.embeddings(numbers))).cpu()

    @property
    def _kind(self) -> Callable[[Embeddings, Embeddings], Tensor] | None:
        return self._model.student.interaction.similarity

    def _similarity(self, text: Embeddings, windows: _Prepared) -> Tensor:
        """Computes what `waver.evaluation.embedding.similarity_in_blocks` does; faster if the texts are few."""
        if isinstance(windows, PreparedClips):
            return token_wise(text, windows, _num_rows(text))
        if isinstance(windows, Tensor):
            return _in_blocks(sentence(text), windows)
        return similarity_in_blocks(self._model.student, text, windows)

    def _prepare(self, windows: Embeddings) -> _Prepared:
        if self._kind is wti:
            return prepare_clips(windows)
        return mean_frame(windows) if self._kind is dp else windows

    def _chunks(self) -> Iterator[_Prepared]:
        for numbers in self._parts():
            start = numbers.start
            chunk = self._cache.get(start)
            if chunk is None:
                chunk = self._prepare(self.embeddings(numbers))
                if self._fits_memory:
                    self._cache[start] = chunk
            yield chunk

    def _parts(self) -> Iterator[range]:
        """Yields the numbers of the windows in each chunk."""
        for start in range(0, len(self._vectors), _CHUNK):
            yield range(start, min(start + _CHUNK, len(self._vectors)))

    @cached_property
    def _fits_memory(self) -> bool:
        frames = 1 if self._kind is dp else self._model.config.video.max_frames
        num_bytes = len(self._vectors) * frames * self._vectors.settings.width * 4
        available = psutil.virtual_memory().available
        if num_bytes <= CACHED_FRACTION * available:
            return True
        logger.warning(
            f"the windows need {num_bytes / 2**30:.1f} GiB of memory, more than a quarter of the "
            f"{available / 2**30:.1f} GiB that are free, so each search reads them from disk"
        )
        return False


def _num_rows(text: Embeddings) -> int:
    """Returns the number of rows of the matrix products that compare the words of these texts."""
    num_words = int(text.mask.sum())
    return min(WORDS_PER_PRODUCT, -(-num_words // _WORDS_STEP) * _WORDS_STEP)


def _means(windows: _Prepared) -> Float[Tensor, "V D"]:
    assert not isinstance(windows, PreparedClips), "token-wise interactions compare frames"
    return windows if isinstance(windows, Tensor) else mean_frame(windows)


def _in_blocks(left: Float[Tensor, "T D"], right: Float[Tensor, "V D"]) -> Float[Tensor, "T V"]:
    """Multiplies in blocks of the size that `waver evaluate` uses, so that equal windows get equal scores."""
    rows = F.pad(left, (0, 0, 0, -len(left) % TEXTS_PER_BATCH)).split(TEXTS_PER_BATCH)
    columns = F.pad(right, (0, 0, 0, -len(right) % CLIPS_PER_BLOCK)).split(CLIPS_PER_BLOCK)
    product = torch.cat([torch.cat([row @ column.T for column in columns], dim=1) for row in rows])
    return product[: len(left), : len(right)]
