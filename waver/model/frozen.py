"""Frozen towers: the hash of a tower, and its embeddings of frames and captions.

Items pass a tower in batches of one shape, which copies fill up, so that the bits of an embedding do not depend on the other
items of its batch. Embeddings are computed in fp32, without autocast.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from waver.model.backbone import Backbone
from waver.model.tokenizer import Tokenizer
from waver.model.towers import Tower

_FRAMES, _TEXTS = 32, 32
"""Number of items in a batch."""
_LENGTH_STEP = 8
"""Texts are padded to a multiple of this number of tokens, so that their padding does not depend on other texts."""


def tower_digest(backbone: Backbone, tower: Tower) -> str:
    """Returns a hash of the architecture and the weights of a tower; for vision, also of the normalisation of pixels."""
    digest = hashlib.blake2b(json.dumps(backbone.architecture, sort_keys=True, default=str).encode(), digest_size=8)
    module: Any = backbone.clip.visual if tower == "vision" else backbone.text
    state: dict[str, Tensor] = dict(module.state_dict())
    if tower == "vision":
        state |= {"pixel_mean": backbone.pixel_mean, "pixel_std": backbone.pixel_std}
    else:  # open_clip may keep the text tower beside the vision tower
        state = {name: value for name, value in state.items() if not name.startswith(("visual.", "logit_"))}
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


@torch.no_grad()
def embed_frames(backbone: Backbone, frames: UInt8[np.ndarray, "M H W 3"]) -> Float32[np.ndarray, "M D"]:
    """Embeds frames independently of each other.

    Args:
        backbone: in evaluation mode.
        frames: pixels of M frames, of any clips.
    """
    device = backbone.pixel_mean.device
    embedded = np.empty((len(frames), backbone.width), np.float32)
    for rows in _batches(len(frames), _FRAMES):
        pixels = torch.from_numpy(frames[_filled(rows, _FRAMES)]).to(device).permute(0, 3, 1, 2)
        mask = torch.ones(1, _FRAMES, dtype=torch.bool, device=device)
        values = backbone.encode_frames(backbone.pixels(pixels)[None], mask)[0]
        embedded[rows] = values[: len(rows)].float().cpu().numpy()
    return embedded


@torch.no_grad()
def embed_texts(
    backbone: Backbone, tokenizer: Tokenizer, texts: Sequence[str], *, max_words: int, prompt: str | None
) -> list[Float32[np.ndarray, "_ D"]]:
    """Embeds every token of texts, which do not influence each other.

    Args:
        backbone: in evaluation mode.
        tokenizer: of the backbone.
        texts: the texts.
        max_words: largest number of tokens of a text, start and end token included.
        prompt: template with {} in place of the text; None for none.

    Returns:
        For each text, (n, D) embeddings of its n valid tokens. If the tower does not embed tokens, n is 1: the embedding of
        the whole text.
    """
    device = backbone.pixel_mean.device
    token_ids, mask = tokenizer(list(texts), max_words=max_words, prompt=prompt)
    lengths = mask.sum(dim=1).numpy()
    padded = np.minimum(-(-lengths // _LENGTH_STEP) * _LENGTH_STEP, max_words)
    embedded: list[np.ndarray] = [np.empty(0)] * len(texts)
    for size in np.unique(padded).tolist():
        alike = np.flatnonzero(padded == size)
        for part in _batches(len(alike), _TEXTS):
            rows = torch.from_numpy(alike[_filled(part, _TEXTS)])
            ids = token_ids[rows] if tokenizer.fills_context else token_ids[rows, :size]
            values = backbone.encode_tokens(ids.to(device), mask[rows, :size].to(device)).float().cpu().numpy()
            for place, row in enumerate(alike[part].tolist()):
                embedded[row] = values[place, : lengths[row] if backbone.embeds_tokens else 1].copy()
    return embedded


def _batches(number: int, size: int) -> Iterator[np.ndarray]:
    for start in range(0, number, size):
        yield np.arange(start, min(start + size, number))


def _filled(rows: np.ndarray, size: int) -> np.ndarray:
    """Returns the rows of a batch, filled up to its size with copies of the first."""
    return np.concatenate([rows, np.full(size - len(rows), rows[0])])
