"""A baseline in the conventional way of research code, with which `waver bench` compares.

It does the work of waver in the way that is usual: a data set opens the video for each caption with decord, resizes with PIL
and normalises in float64; captions are padded to the full length; a second, frozen text encoder embeds the phrases in every
step; masks are applied to whole tensors of cosines; each process computes the full similarity matrix; evaluation compares in
blocks of 32 x 32 and sorts with numpy; phrases are matched clip by clip with a full sort. On equal weights all numbers are
equal to those of waver (tests/test_benchmarks.py).

Nothing of waver is imported. The modules with the weights are handed over: a student and a frozen text encoder.
"""

import math
from collections.abc import Sequence
from typing import Any

import decord
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

BLOCK = 32
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def load_clip(path: str, frames_per_second: float, max_frames: int, size: int) -> np.ndarray:
    """Opens a video and returns its sampled frames, uint8 (F, size, size, 3)."""
    reader = decord.VideoReader(path, num_threads=1)
    positions = list(range(0, len(reader), max(1, round(reader.get_avg_fps() / frames_per_second))))
    if len(positions) > max_frames:
        positions = [positions[i] for i in np.linspace(0, len(positions) - 1, max_frames, dtype=int)]
    frames = []
    for frame in reader.get_batch(positions).asnumpy():
        image = Image.fromarray(frame)
        short = min(image.size)
        width, height = int(size * image.width / short), int(size * image.height / short)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = round((width - size) / 2), round((height - size) / 2)
        frames.append(np.asarray(image.crop((left, top, left + size, top + size))))
    return np.stack(frames)


class CaptionedVideos(Dataset):
    """One item for each caption: normalised frames, their mask, token ids and their mask.

    Args:
        paths: the video of each caption.
        token_ids: int64 (captions, N), padded.
        token_mask: bool (captions, N).
        frames_per_second: sampling rate.
        max_frames: F, the number of frames of an item; shorter clips are padded.
        size: height and width of the frames, pixels.
    """

    def __init__(
        self,
        paths: Sequence[str],
        token_ids: Tensor,
        token_mask: Tensor,
        *,
        frames_per_second: float,
        max_frames: int,
        size: int,
    ):
        self.paths, self.token_ids, self.token_mask = paths, token_ids, token_mask
        self.sampling = (frames_per_second, max_frames, size)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        _, max_frames, size = self.sampling
        clip = load_clip(self.paths[index], *self.sampling)
        frames = np.zeros((max_frames, 3, size, size), np.float32)
        frames[: len(clip)] = normalise(clip)
        mask = torch.arange(max_frames) < len(clip)
        return torch.from_numpy(frames), mask, self.token_ids[index], self.token_mask[index]


def normalise(clip: np.ndarray) -> np.ndarray:
    """Returns uint8 frames (F, H, W, 3) as normalised float32 (F, 3, H, W)."""
    return ((clip / 255 - np.array(MEAN)) / np.array(STD)).transpose(0, 3, 1, 2).astype(np.float32)


def make_loader(data: CaptionedVideos, batch_size: int, *, num_workers: int = 0) -> DataLoader:
    """Returns a loader over the items in their order; worker processes stay between epochs."""
    context = "spawn" if num_workers else None
    return DataLoader(
        data, batch_size, num_workers=num_workers, persistent_workers=num_workers > 0, multiprocessing_context=context
    )


class Model(nn.Module):
    """Captions and videos informed by phrases, compared by the weighted token-wise interaction (WAVER as released).

    Args:
        student: the modules with the weights: `backbone.clip`, `fusion`, `temporal`, `text_weights`, `video_weights`.
        text_encoder: a second model of CLIP, frozen, for the phrases.
    """

    def __init__(self, student: Any, text_encoder: Any):
        super().__init__()
        self.student, self.text_encoder = student, text_encoder

    def forward(
        self, frames: Tensor, frame_mask: Tensor, token_ids: Tensor, token_mask: Tensor, phrase_ids: Tensor
    ) -> Tensor:
        """Returns the loss of a batch.

        Args:
            frames: normalised, (B, F, 3, H, W); padding is computed too.
            frame_mask: bool (B, F).
            token_ids: (B, N), padded to the full length.
            token_mask: bool (B, N).
            phrase_ids: token ids of the phrases of each clip, (B, K, T).
        """
        clip = self.student.backbone.clip
        words = encode_words(clip, token_ids)
        video = clip.encode_image(frames.flatten(0, 1)).view(*frame_mask.shape, -1)
        with torch.no_grad():
            phrases = self.text_encoder.encode_text(phrase_ids.flatten(0, 1)).view(*phrase_ids.shape[:2], -1)
        video = self._order(self._fuse(video, phrases), frame_mask)
        similarity = compare(
            (words, token_mask, self._weights(self.student.text_weights, words, token_mask)),
            (video, frame_mask, self._weights(self.student.video_weights, video, frame_mask)),
        )
        logits = clip.logit_scale.exp() * similarity
        target = torch.arange(len(logits))
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

    def _fuse(self, frames: Tensor, phrases: Tensor) -> Tensor:
        """Lets frames attend to the phrases of their clip, head by head."""
        fusion = self.student.fusion
        query, key, value = fusion.query(frames), fusion.key(phrases), fusion.value(phrases)
        parts = [part.chunk(fusion.num_heads, dim=-1) for part in (query, key, value)]
        attended = []
        for q, k, v in zip(*parts, strict=True):
            attended.append((q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])).softmax(dim=-1) @ v)
        frames = fusion.attended_norm(frames + fusion.attended(torch.cat(attended, dim=-1)))
        return fusion.output_norm(frames + fusion.output(F.gelu(fusion.hidden(frames))))

    def _order(self, frames: Tensor, mask: Tensor) -> Tensor:
        """Lets frames attend to the frames of their clip; residual."""
        temporal = self.student.temporal
        bias = ((1 - mask.float()) * -1e6)[:, None, None].expand(-1, temporal.num_heads, mask.shape[1], -1)
        ordered = frames + temporal.position_embedding[: frames.shape[1]]
        return frames + temporal.transformer(ordered, attn_mask=bias.flatten(0, 1))

    @staticmethod
    def _weights(head: nn.Module, values: Tensor, mask: Tensor) -> Tensor:
        return head(values).squeeze(-1).masked_fill(~mask, -torch.inf).softmax(dim=-1)


def encode_words(clip: Any, token_ids: Tensor) -> Tensor:
    """Embeds every position of the captions, padding too."""
    length = token_ids.shape[1]
    values = clip.token_embedding(token_ids) + clip.positional_embedding[:length]
    values = clip.transformer(values, attn_mask=clip.attn_mask[:length, :length])
    return clip.ln_final(values) @ clip.text_projection


def compare(text: tuple[Tensor, Tensor, Tensor], video: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Compares every text with every video, (T, V), from (values, mask, weights) of both."""
    (words, word_mask, word_weights), (frames, frame_mask, frame_weights) = text, video
    words, frames = words / words.norm(dim=-1, keepdim=True), frames / frames.norm(dim=-1, keepdim=True)
    cosines = torch.einsum("tnd,vfd->tvnf", words, frames)
    cosines = cosines.masked_fill(~word_mask[:, None, :, None], -torch.inf)
    cosines = cosines.masked_fill(~frame_mask[None, :, None, :], -torch.inf)
    by_word = cosines.max(dim=-1).values.masked_fill(~word_mask[:, None], 0)
    by_frame = cosines.max(dim=-2).values.masked_fill(~frame_mask[None], 0)
    return (torch.einsum("tvn,tn->tv", by_word, word_weights) + torch.einsum("tvf,vf->tv", by_frame, frame_weights)) / 2


def train_step(model: Model, optimizer: torch.optim.Optimizer, batch: Sequence[Tensor], max_norm: float = 1.0) -> float:
    """Takes one step and returns the loss before it."""
    loss = model(*batch)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.student.parameters(), max_norm)
    optimizer.step()
    with torch.no_grad():
        model.student.backbone.clip.logit_scale.clamp_(max=math.log(100))
    return loss.item()


@torch.no_grad()
def compare_in_blocks(
    text: tuple[Tensor, Tensor, Tensor], video: tuple[Tensor, Tensor, Tensor], block: int = BLOCK
) -> np.ndarray:
    """Returns the whole similarity matrix, float64 (T, V), computed in blocks of `block` x `block`."""
    rows = []
    for first in range(0, len(text[0]), block):
        texts = tuple(part[first : first + block] for part in text)
        row = []
        for start in range(0, len(video[0]), block):
            row.append(compare(texts, tuple(part[start : start + block] for part in video)).numpy())
        rows.append(np.concatenate(row, axis=1))
    return np.concatenate(rows).astype(np.float64)


def ranks(similarity: np.ndarray) -> np.ndarray:
    """Returns the rank of the right column of each row, from 1; row i belongs to column i."""
    order = np.argsort(-similarity, axis=1, kind="stable")
    return np.where(order == np.arange(len(similarity))[:, None])[1] + 1


def match(clips: np.ndarray, phrases: np.ndarray, number: int) -> np.ndarray:
    """Returns the `number` phrases nearest to each clip, best first, int64 (N, number).

    Args:
        clips: embeddings of the clips, (N, D).
        phrases: normalised embeddings of the phrases, (P, D).
        number: K.
    """
    return np.stack([np.argsort(-(phrases @ clip), kind="stable")[:number] for clip in clips])
