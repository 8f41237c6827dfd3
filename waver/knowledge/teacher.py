"""The frozen teacher: the pre-trained backbone, which matches the phrases of a dictionary with clips.

Its embeddings of all phrases are computed once and kept as a table; training looks them up and never runs the teacher.

The matches of a clip do not depend on the other clips that are matched with it. A matrix product of another shape rounds
differently; within one shape the place of a row has no influence. So frames pass the backbone in batches of one size, and
clips are compared with phrases in blocks of one size; the last batch and the last block are filled up. Earlier versions
matched one clip at a time. Their knowledge stays valid: only the last bits of scores differ, so that phrases whose scores
differ by less than that can be in another order.

Source: WAVER (arXiv 2312.09507), which matches the phrases of its video content dictionary in this way.
"""

import hashlib

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from waver.model.backbone import Backbone
from waver.model.frozen import embed_frames
from waver.model.interaction import last_token
from waver.model.tokenizer import Tokenizer

CLIPS_PER_BLOCK = 64
"""Number of clips that are compared with all phrases at once."""
_PHRASES_PER_PRODUCT = 8192
_PHRASES_PER_GROUP = 64


class Teacher:
    """Embeds phrases and clips in the common embedding space, without gradients.

    Args:
        backbone: the pre-trained backbone; it is frozen in place.
        tokenizer: of the backbone.
        prompt: template with {} in place of a phrase.
    """

    def __init__(self, backbone: Backbone, tokenizer: Tokenizer, prompt: str):
        self._backbone = backbone.eval().requires_grad_(False)
        self._tokenizer, self._prompt = tokenizer, prompt

    @property
    def backbone(self) -> Backbone:
        """The pre-trained backbone."""
        return self._backbone

    @property
    def device(self) -> torch.device:
        """Device of the teacher."""
        return self._backbone.pixel_mean.device

    @torch.no_grad()
    def embed_phrases(self, phrases: list[str]) -> Float[Tensor, "P D"]:
        """Embeds each phrase, put into the prompt, by its end token. The embeddings are not normalised."""
        tokens = self._tokenizer(phrases, max_words=self._backbone.num_positions, prompt=self._prompt)
        ids, mask = (tensor.to(self.device) for tensor in self._tokenizer.cut_padding(*tokens))
        return last_token(self._backbone.encode_tokens(ids, mask), mask)

    def embed_clips(
        self, frames: UInt8[np.ndarray, "N F H W 3"], num_frames: Int[np.ndarray, " N"]
    ) -> Float[Tensor, "N D"]:
        """Embeds clips from their pixels, as `ClipStore.read` returns them; see `mean_frames`."""
        valid = (torch.arange(frames.shape[1]) < torch.as_tensor(num_frames)[:, None]).numpy()
        values = np.zeros((*frames.shape[:2], self._backbone.width), np.float32)
        values[valid] = embed_frames(self._backbone, frames[valid])
        return mean_frames(values, num_frames)

    def digest(self) -> str:
        """Returns a short hash of the weights."""
        sha = hashlib.sha256()
        for name, tensor in sorted(self._backbone.state_dict().items()):
            sha.update(name.encode())
            sha.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return sha.hexdigest()[:16]


def mean_frames(frames: Float[np.ndarray, "N F D"], num_frames: Int[np.ndarray, " N"]) -> Float[Tensor, "N D"]:
    """Returns the embedding of each clip: the mean of the normalised embeddings of its valid frames."""
    clips = zip(torch.as_tensor(frames), num_frames.tolist(), strict=True)
    return torch.stack([F.normalize(of_clip[:number], dim=-1).mean(dim=0) for of_clip, number in clips])


def match_clips(
    clips: Float[Tensor, "N D"],
    phrases: Float[Tensor, "P D"],
    num_matches: int,
    *,
    mean: Float[Tensor, " D"] | None = None,
) -> tuple[Int[Tensor, "N K"], Float[Tensor, "N K"]]:
    """Finds the phrases nearest to each of any number of clips, in blocks of `CLIPS_PER_BLOCK`.

    Args:
        clips: embeddings of the clips, see `mean_frames`.
        phrases: normalised embeddings of all phrases of the dictionary.
        num_matches: as in `best_phrases`.
        mean: the mean training clip, which is subtracted from each clip. Scores are products, so this subtracts from each
            phrase its mean score over the training clips. None for cosines.

    Returns:
        (ids, scores), as `best_phrases`. The scores of a clip have the same bits whatever other clips there are.
    """
    if mean is not None:
        clips = clips - mean
    filled = F.pad(clips, (0, 0, 0, -len(clips) % CLIPS_PER_BLOCK))
    starts = range(0, len(filled), CLIPS_PER_BLOCK)
    blocks = [best_phrases(filled[start : start + CLIPS_PER_BLOCK], phrases, num_matches) for start in starts]
    ids, scores = (torch.cat(parts)[: len(clips)] for parts in zip(*blocks, strict=True))
    return ids, scores


@torch.no_grad()
def best_phrases(
    clips: Float[Tensor, "B D"], phrases: Float[Tensor, "P D"], num_matches: int
) -> tuple[Int[Tensor, "B K"], Float[Tensor, "B K"]]:
    """Returns the phrases nearest to each clip of a block, (ids, scores), best first; ties are sorted by id.

    The last bits of scores depend on the size of the block, see `match_clips`. Equal phrases have equal scores.

    Phrases are divided into groups of neighbours. The K groups with the highest maxima hold the K best phrases of a clip, if
    the first are taken among groups with equal maxima. The reason: each of these K groups has a phrase that precedes all
    phrases of the other groups, because its score is higher, or equal with a lower id.

    Args:
        clips: embeddings of B clips.
        phrases: normalised embeddings of all phrases of the dictionary; finite.
        num_matches: K; fewer are returned if there are fewer phrases.
    """
    num_phrases, num_matches = len(phrases), min(num_matches, len(phrases))
    scores = _score(phrases, clips)
    scores[num_phrases:] = -torch.inf
    highest = scores.view(-1, _PHRASES_PER_GROUP, len(clips)).amax(dim=1)
    groups = _highest(highest.T, min(num_matches, len(highest)))
    members = torch.arange(_PHRASES_PER_GROUP, device=scores.device)
    ids = (groups[:, :, None] * _PHRASES_PER_GROUP + members).flatten(1)
    candidates = scores.T.gather(1, ids)
    chosen = _highest(candidates, num_matches)
    best, order = candidates.gather(1, chosen).sort(dim=1, descending=True, stable=True)
    return ids.gather(1, chosen.gather(1, order)), best


def _score(phrases: Float[Tensor, "P D"], clips: Float[Tensor, "B D"]) -> Float[Tensor, "S B"]:
    """Computes the product of all phrases with a block of clips; rows after the first P are arbitrary.

    All products have one shape, so that equal phrases have equal scores wherever they stand. Phrases are the
    rows, because the matrix product then reads them as they lie in memory.
    """
    starts = range(0, len(phrases), _PHRASES_PER_PRODUCT)
    scores = phrases.new_empty(len(starts) * _PHRASES_PER_PRODUCT, len(clips))
    columns = clips.T.contiguous()
    for start in starts:
        part = phrases[start : start + _PHRASES_PER_PRODUCT]
        if missing := _PHRASES_PER_PRODUCT - len(part):
            part = F.pad(part, (0, 0, 0, missing))
        torch.mm(part, columns, out=scores[start : start + _PHRASES_PER_PRODUCT])
    return scores


def _highest(values: Float[Tensor, "B n"], number: int) -> Int[Tensor, "B k"]:
    """Returns the columns of the highest values of each row, ascending; among equal values the first columns.

    `topk` chooses arbitrarily among equal values, so that only the lowest value that it returns is used.
    """
    lowest = values.topk(number, dim=1).values[:, -1:]
    higher, equal = values > lowest, values == lowest
    chosen = higher | (equal & (equal.cumsum(dim=1) <= number - higher.sum(dim=1, keepdim=True)))
    return chosen.nonzero()[:, 1].view(len(values), number)
