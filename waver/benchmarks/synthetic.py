"""Synthetic experiments at the sizes of MSR-VTT: captions, clips, embeddings and phrases, drawn from a seed.

The cost of what is measured does not depend on the values, so nothing is downloaded and weights are random.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from waver.config import ExperimentConfig
from waver.config.experiment import ALLOW_CONTRADICTIONS
from waver.data.annotations import CAPTIONS_SCHEMA
from waver.data.clip import Clip
from waver.data.clip_store import ClipStore, StoreSettings
from waver.data.clip_store_writer import create_store, write_block, write_manifest
from waver.data.embedding_store import (
    EmbeddingSettings,
    EmbeddingStore,
    create_embeddings,
    mark_complete,
    write_items,
)
from waver.data.ledger import DecodedClip
from waver.knowledge.phrases import VOCABULARY_SCHEMA
from waver.knowledge.store import Knowledge, build_dictionary, create_knowledge, write_embeddings, write_matches
from waver.knowledge.store import mark_complete as mark_knowledge_complete
from waver.model.tokenizer import find_tokenizer

PROMPT = "This is a video about {}."
LENGTHS: Mapping[int, int] = {
    11: 3, 12: 54, 13: 72, 14: 127, 15: 99, 16: 114, 17: 104, 18: 81, 19: 76, 20: 67, 21: 51, 22: 34, 23: 22, 24: 21,
    25: 16, 26: 14, 27: 11, 28: 9, 29: 6, 30: 6, 31: 6, 32: 7,
}  # fmt: skip
"""Number of tokens -> how many of the 1,000 test captions of MSR-VTT 1k-A have it, in `PROMPT` and cut at 32 tokens."""
_PROMPT_TOKENS = 8
"""Tokens of `PROMPT`, with start and end token."""
_WORDS = (
    "man", "woman", "dog", "cat", "boy", "girl", "person", "people", "car", "horse", "ball", "water", "song",
    "video", "game", "food", "street", "road", "room", "table", "chair", "tree", "house", "door", "band", "team",
    "player", "runs", "walks", "sings", "plays", "cooks", "talks", "rides", "jumps", "dances", "drives", "eats",
    "makes", "cuts", "shows", "holds", "red", "blue", "green", "white", "black", "small", "big", "old", "young",
    "fast", "slow", "happy", "loud", "with", "near", "behind", "under", "about", "while", "and",
)  # fmt: skip
"""Words that are one token each."""
_CLIPS_PER_BLOCK, _ITEMS_PER_BLOCK = 256, 1024
_VIDEO = (320, 240, 25)
"""Width, height and frames per second of a video of MSR-VTT."""


def experiment(folder: Path, settings: Mapping[str, Mapping[str, Any]]) -> ExperimentConfig:
    """Returns WAVER's experiment on MSR-VTT as released, with random weights and without dropout.

    Knowledge with random weights is meaningless, which configuration files may not ask for; its cost is the same. Without
    dropout, a step gives the numbers of the baseline in the conventional way.

    Args:
        folder: folder of everything that is written.
        settings: section -> settings that differ.
    """
    raw: dict[str, Any] = {
        "name": "bench",
        "data": {"format": "table", "annotations": str(folder / "none.jsonl"), "videos": str(folder)},
        "video": {"frames_per_second": 1, "max_frames": 12},
        "text": {"max_words": 32, "prompt": PROMPT},
        "model": {
            "backbone": "ViT-B-32-quickgelu",
            "weights": None,
            "temporal": "seqTransf",
            "temporal_layers": 4,
            "initialisation": "published",
        },
        "similarity": {"kind": "wti", "wti_layers": 2},
        "knowledge": {"top_k": 1, "fusion": "published", "at_inference": True},
        "train": {"precision": "fp32"},
        "storage": {"path": str(folder)},
    }
    for section, values in settings.items():
        raw[section] = raw.get(section, {}) | dict(values)
    return ExperimentConfig.model_validate(raw, context=ALLOW_CONTRADICTIONS)


def draw_lengths(number: int, *, max_words: int, seed: int = 0) -> np.ndarray:
    """Draws numbers of tokens as captions of MSR-VTT have them."""
    lengths, weights = np.array([*LENGTHS]), np.array([*LENGTHS.values()], float)
    return np.minimum(np.random.default_rng([seed, 1]).choice(lengths, number, p=weights / weights.sum()), max_words)


def make_captions(num_clips: int, captions_per_clip: int, *, max_words: int, seed: int = 0) -> pa.Table:
    """Makes captions of the lengths of MSR-VTT's, all of the train split; captions of a clip are adjacent."""
    number = num_clips * captions_per_clip
    num_words = np.maximum(1, draw_lengths(number, max_words=max_words, seed=seed) - _PROMPT_TOKENS)
    words = np.random.default_rng([seed, 2]).choice(_WORDS, (number, num_words.max()))
    texts = [" ".join(row[:length]) for row, length in zip(words, num_words, strict=True)]
    clip_ids = [clip_name(row // captions_per_clip) for row in range(number)]
    nulls = pa.nulls(number)
    columns = {
        "video_id": clip_ids,
        "clip_id": clip_ids,
        "path": [f"{clip_id}.mp4" for clip_id in clip_ids],
        "start_s": nulls,
        "end_s": nulls,
        "caption": texts,
        "caption_index": [row % captions_per_clip for row in range(number)],
        "split": ["train"] * number,
        "style": nulls,
    }
    return pa.table(columns).cast(CAPTIONS_SCHEMA)


def clip_name(number: int) -> str:
    """Returns the id of a clip; ids sort by number."""
    return f"clip{number:08}"


def make_clips(path: Path, num_clips: int, *, size: int, max_frames: int, frame_format: str = "raw") -> ClipStore:
    """Writes a clip store of smooth random pictures that move."""
    settings = StoreSettings(1.0, max_frames, size, "jpeg" if frame_format == "jpeg" else "raw")
    create_store(path, settings)
    rng = np.random.default_rng(0)

    def clip(number: int) -> DecodedClip:
        coarse = Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8))
        side = size + 8 * max_frames
        picture = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC))
        frames = np.stack([picture[8 * i : 8 * i + size, 8 * i : 8 * i + size] for i in range(max_frames)])
        times_s = tuple(float(i) for i in range(max_frames))
        decoded = Clip(frames, times_s, 25.0, size, size, "none")
        return DecodedClip(clip_name(number), f"{clip_name(number)}.mp4", 0.0, decoded)

    for first in range(0, num_clips, _CLIPS_PER_BLOCK):
        write_block(path, settings, map(clip, range(first, min(first + _CLIPS_PER_BLOCK, num_clips))))
    write_manifest(path, settings, complete=True)
    return ClipStore(path)


def embed_clips(path: Path, clips: ClipStore, width: int, *, seed: int = 0) -> EmbeddingStore:
    """Writes random embeddings of the frames of all clips, in the default precision of the embedding store."""
    settings = EmbeddingSettings("frames", width, "fp16", "random", clips.settings.key)
    rng, clip_ids = np.random.default_rng([seed, 3]), clips.ok_clip_ids()
    sources, shape = clips.blocks_of(clip_ids), (clips.settings.max_frames, width)
    items = ((clip_id, sources[clip_id], rng.standard_normal(shape, np.float32)) for clip_id in clip_ids)
    return _write_store(path, settings, items, len(clip_ids))


def embed_captions(
    path: Path, captions: pa.Table, backbone: str | dict[str, Any], width: int, *, max_words: int, seed: int = 0
) -> EmbeddingStore:
    """Writes random embeddings of the tokens of all captions, each of as many tokens as it has."""
    settings = EmbeddingSettings("tokens", width, "fp16", "random", {"max_words": max_words, "prompt": PROMPT})
    texts = list(dict.fromkeys(captions["caption"].to_pylist()))
    tokenizer, rng = find_tokenizer(backbone), np.random.default_rng([seed, 4])

    def items() -> Iterator[tuple[str, str, np.ndarray]]:
        for first in range(0, len(texts), _ITEMS_PER_BLOCK):
            some = texts[first : first + _ITEMS_PER_BLOCK]
            lengths = tokenizer(some, max_words=max_words, prompt=PROMPT)[1].sum(dim=1).tolist()
            for text, length in zip(some, lengths, strict=True):
                yield text, "", rng.standard_normal((length, width), np.float32)

    return _write_store(path, settings, items(), len(texts))


def _write_store(
    path: Path, settings: EmbeddingSettings, items: Iterator[tuple[str, str, np.ndarray]], number: int
) -> EmbeddingStore:
    create_embeddings(path, settings)
    for first in range(0, number, _ITEMS_PER_BLOCK):
        write_items(path, settings, [next(items) for _ in range(min(_ITEMS_PER_BLOCK, number - first))])
    mark_complete(path)
    return EmbeddingStore(path)


def make_knowledge(path: Path, clip_ids: list[str], width: int, *, num_phrases: int, num_matches: int) -> Knowledge:
    """Writes phrases with random embeddings, and draws the phrases of each clip."""
    names = [f"{_WORDS[i % len(_WORDS)]} {_WORDS[i // len(_WORDS) % len(_WORDS)]} {i}" for i in range(num_phrases)]
    columns = [range(num_phrases), names, [1] * num_phrases]
    phrases = pa.table(columns, names=VOCABULARY_SCHEMA.names).cast(VOCABULARY_SCHEMA)
    dictionary = build_dictionary(phrases, leaky=False)
    create_knowledge(path, dictionary, source="matched", teacher="random", num_matches=num_matches)
    write_embeddings(path, 0, random_vectors(num_phrases, width, seed=5))
    rng = np.random.default_rng(6)
    rows = [
        {
            "clip_id": clip_id,
            "phrase_ids": rng.permutation(num_phrases)[:num_matches].tolist(),
            "scores": [0.5] * num_matches,
        }
        for clip_id in clip_ids
    ]
    write_matches(path, pa.Table.from_pylist(rows))
    return mark_knowledge_complete(path)


def random_vectors(number: int, width: int, *, seed: int) -> Float[Tensor, "N D"]:
    """Draws unit vectors."""
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(number, width, generator=generator), dim=-1)


def make_video(path: Path, *, seconds: float = 15.0) -> Path:
    """Writes an H.264 video of the size, frame rate and (by default) mean length of those of MSR-VTT."""
    width, height, rate = _VIDEO
    coarse = np.random.default_rng(7).integers(0, 256, (30, 40, 3), np.uint8)
    picture = Image.fromarray(coarse).resize((2 * width, height), Image.Resampling.BICUBIC)
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"preset": "veryfast", "crf": "23"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(round(seconds * rate)):
            left = number * width // round(seconds * rate)
            frame = av.VideoFrame.from_image(picture.crop((left, 0, left + width, height)))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path
