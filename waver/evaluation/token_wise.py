"""The token-wise interaction (`ti`, `wti`) of many captions with many clips, without computing padding.

Equal captions and equal clips get scores that are equal to the last bit, wherever they stand:

- All cosines come from matrix products of one shape: `WORDS_PER_PRODUCT` words with the frames of `_CLIPS` clips. The place
  of a word or a frame in a product has no influence. Captions are sorted by length, and the words of several fill the rows
  of a product.
- Maxima are exact in any order.
- A weighted sum runs over the words of one caption, or over the frames of one clip. Its rounding depends only on the number
  of its terms. That is the length of the caption, or the number of frames, which is the same for all clips. The other
  captions of a product have no influence.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from waver.model.embeddings import Embeddings
from waver.model.interaction import repeat_valid

WORDS_PER_PRODUCT, _CLIPS = 256, 64
"""Words and clips of one matrix product."""


_Clips = tuple[Float[Tensor, "D FV"], Float[Tensor, "F V"]]
"""Unit vectors of the frames of V clips as columns, sorted by frame and then by clip, and the weights of the frames."""


@dataclass(frozen=True)
class PreparedClips:
    """Clips in the form in which captions are compared with them; it can be kept for later captions."""

    blocks: list[_Clips]
    """The clips in blocks of one size; the last is filled up with zeros."""
    num_clips: int


def prepare_clips(video: Embeddings) -> PreparedClips:
    """Normalises the frames of clips, and arranges them for `token_wise`."""
    return PreparedClips(list(_clip_blocks(video)), len(video))


def token_wise(
    text: Embeddings, video: Embeddings | PreparedClips, num_rows: int = WORDS_PER_PRODUCT
) -> Float[Tensor, "T V"]:
    """Computes `waver.model.interaction.wti`, without gradients.

    Args:
        text: embeddings of the captions; valid tokens come first.
        video: embeddings of the clips, prepared or not.
        num_rows: words of one matrix product; fewer are faster if there are few captions. Scores of calls with different
            numbers differ by rounding.
    """
    num_words = text.mask.sum(dim=1).tolist()
    order = sorted(range(len(text)), key=num_words.__getitem__)
    clips = video if isinstance(video, PreparedClips) else prepare_clips(video)
    rows = [
        torch.cat([_compare(words, weights, [num_words[i] for i in some], block) for block in clips.blocks], dim=1)
        for some, words, weights in _packed_words(text, num_words, order, num_rows)
    ]
    result = torch.empty(len(text), clips.num_clips, dtype=rows[0].dtype, device=rows[0].device)
    result[torch.tensor(order, device=result.device)] = torch.cat(rows)[:, : clips.num_clips]
    return result


def _clip_blocks(video: Embeddings) -> Iterator[_Clips]:
    """Yields the clips in blocks of one size; the last is filled up with zeros."""
    for start in range(0, len(video), _CLIPS):
        part = video[start : start + _CLIPS]
        missing = _CLIPS - len(part)
        frames = F.normalize(F.pad(repeat_valid(part), (0, 0, 0, 0, 0, missing)), dim=-1)
        yield frames.transpose(0, 1).flatten(0, 1).T, F.pad(part.weights, (0, 0, 0, missing)).T.contiguous()


def _packed_words(
    text: Embeddings, num_words: list[int], order: list[int], num_rows: int
) -> Iterator[tuple[list[int], Float[Tensor, "R D"], Float[Tensor, " R"]]]:
    """Yields captions whose words together fill the rows of a product: (captions, unit vectors of words, their weights)."""
    num_rows = max(num_rows, text.mask.shape[1])
    start = 0
    while start < len(order):
        stop, filled = start, 0
        while stop < len(order) and filled + num_words[order[stop]] <= num_rows:
            filled += num_words[order[stop]]
            stop += 1
        part = text[torch.tensor(order[start:stop], device=text.mask.device)]
        words = F.pad(part.values[part.mask], (0, 0, 0, num_rows - filled))
        yield order[start:stop], F.normalize(words, dim=-1), F.pad(part.weights[part.mask], (0, num_rows - filled))
        start = stop


def _compare(
    words: Float[Tensor, "R D"], weights: Float[Tensor, " R"], num_words: list[int], clips: _Clips
) -> Float[Tensor, "t V"]:
    """Compares the t captions of one product, sorted by their number of words, with a block of clips."""
    frames, frame_weights = clips
    cosines = (words @ frames).view(len(words), *frame_weights.shape)
    best_frame = cosines.amax(dim=1) * weights[:, None]
    by_words, best_word = [], []
    start = 0
    for length, group in groupby(num_words):
        number = len(list(group))
        some = slice(start, start + number * length)
        by_words.append(best_frame[some].view(number, length, -1).sum(dim=1))
        best_word.append(cosines[some].view(number, length, *frame_weights.shape).amax(dim=1))
        start = some.stop
    return (torch.cat(by_words) + (torch.cat(best_word) * frame_weights).sum(dim=1)) / 2
