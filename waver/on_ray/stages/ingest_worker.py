"""The part of `ingest` that runs in each decoder process, which imports no torch: it starts fast and stays small."""

import time
from pathlib import Path

import pyarrow as pa

from waver.data.clip import ClipError
from waver.data.clip_store import StoreSettings
from waver.data.clip_store_writer import write_block
from waver.data.ledger import DecodedClip, FileStamp
from waver.data.video.decoder import Decoder


class BlockDecoder:
    """Decodes the clips of a block and writes them to the store; returns the ledger of the block.

    Args:
        store: folder of the clip store.
        settings: of the store.
        timeout_s: after which a clip is given up.
    """

    def __init__(self, store: Path, settings: StoreSettings, timeout_s: float):
        self._store, self._settings = store, settings
        self._decoder = Decoder(timeout_s)

    def __call__(self, clips: pa.Table) -> pa.Table:
        """Returns the ledger of these clips, which have clip_id, path, start_s and end_s."""
        return write_block(self._store, self._settings, map(self._decode, clips.to_pylist()))

    def close(self) -> None:
        """Ends the process that decodes."""
        self._decoder.close()

    def _decode(self, clip: dict) -> DecodedClip:
        started, file = time.perf_counter(), FileStamp.of(clip["path"])
        try:
            outcome = self._decoder.read_clip(
                clip["path"],
                start_s=clip["start_s"],
                end_s=clip["end_s"],
                frames_per_second=self._settings.frames_per_second,
                max_frames=self._settings.max_frames,
                target=self._settings.target,
            )
        except ClipError as error:
            outcome = error
        return DecodedClip(clip["clip_id"], clip["path"], time.perf_counter() - started, outcome, file)
