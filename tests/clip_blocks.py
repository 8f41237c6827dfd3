"""Small clips, and clip stores made of them."""

from pathlib import Path

import numpy as np

from waver.data.clip import Clip, ClipError
from waver.data.clip_store import StoreSettings
from waver.data.clip_store_writer import create_store, write_block
from waver.data.ledger import DecodedClip

RAW = StoreSettings(frames_per_second=1.0, max_frames=5, size=16)
JPEG = StoreSettings(frames_per_second=1.0, max_frames=5, size=16, frame_format="jpeg", jpeg_quality=95)


def clip(seed: int, num_frames: int = 3) -> Clip:
    """A slope of colour, which JPEG keeps nearly as it is."""
    slope = np.linspace(0, 200, 16 * 16 * 3).reshape(16, 16, 3)
    frames = np.stack([slope + 3 * i + seed for i in range(num_frames)]).astype(np.uint8)
    return Clip(frames, tuple(float(i) for i in range(num_frames)), 25.0, 240, 320, "decord")


def done(clip_id: str, outcome: Clip | ClipError) -> DecodedClip:
    return DecodedClip(clip_id, f"/videos/{clip_id}.mp4", 0.5, outcome)


def make(folder: Path, *blocks: list[DecodedClip], settings: StoreSettings = RAW) -> Path:
    create_store(folder, settings)
    for block in blocks:
        write_block(folder, settings, block)
    return folder
