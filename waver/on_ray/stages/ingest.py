"""Videos -> clip store, through Ray Data.

Each actor holds a decoder, takes the clips of a block and writes the block to the store by itself; only its ledger
travels back. So neither the object store nor this process ever holds a frame, and memory does not grow with the data.
"""

import logging
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from ray.exceptions import RayError

from waver.config import ExperimentConfig
from waver.config.video import IngestConfig
from waver.data.clip_store import StoreSettings, create_store, write_block, write_manifest
from waver.data.decoder import Decoder
from waver.data.ledger import DecodedClip, read_ledger
from waver.data.video import ClipError
from waver.on_ray.cluster.blocks import ActorPool, BlockError, map_blocks
from waver.on_ray.cluster.capacity import WorkerResources, count_cpus
from waver.on_ray.cluster.connection import connect
from waver.runs.inputs import load_captions, store_settings
from waver.tools.errors import WaverError
from waver.tools.object_store import display_path
from waver.tools.progress import track_progress

logger = logging.getLogger(__name__)


class IngestError(WaverError):
    """Too many clips failed, or clips cannot be decoded or written at all; what was decoded is kept."""


class IngestInterrupted(KeyboardInterrupt):
    """The user stopped it; the message says what is kept and how to go on."""


@dataclass(frozen=True)
class IngestReport:
    """What is known of the clips that were asked for, and what this run did."""

    counts: dict[str, int]
    """Clips by status, commonest first."""
    reasons: dict[str, int]
    """Failed clips by `status: reason`, commonest first."""
    num_decoded: int
    """Clips tried by this run."""
    num_skipped: int
    """Clips that needed nothing, from runs before."""
    seconds: float
    """Taken by this run."""

    @property
    def failed_fraction(self) -> float:
        """Share of the clips that have no frames."""
        return 1 - self.counts.get("ok", 0) / sum(self.counts.values())

    @property
    def clips_per_s(self) -> float:
        """Speed of this run, its start included."""
        return self.num_decoded / self.seconds


def ingest(
    captions: pa.Table,
    store: Path,
    settings: StoreSettings,
    section: IngestConfig,
    *,
    wait_s: float = 0.0,
    progress: bool = True,
) -> IngestReport:
    """Decodes every clip of the captions that the store does not have yet.

    A clip that is in the store is not decoded again. One that failed is tried again if its file is another than then (a
    missing one has come, a corrupt one was replaced), or if time ran out or its decoder was killed.

    Args:
        captions: of `CAPTIONS_SCHEMA`; a clip counts once, however many captions it has.
        store: its folder; made where it is not there.
        settings: of the store.
        section: `ingest` of the configuration: decoders, their nodes, time limit, and how many clips may fail.
        wait_s: how long to wait for a node that may decode.
        progress: whether to show progress, on standard error.

    Raises:
        IngestError: if more clips failed than that, after everything was written; or if the store cannot be written.
        IngestInterrupted: on Ctrl-C.
        StoreError: if the store has other settings.
        ClusterTooSmallError: if no such node has a CPU.
    """
    started = time.monotonic()
    clips = _unique_clips(captions)
    store = store.absolute()
    try:
        create_store(store, settings)
        todo = _unfinished(clips, store)
        if len(todo):
            write_manifest(store, settings, complete=False)
            with connect(), closing(_decode(todo, store, settings, section, wait_s=wait_s)) as ledgers:
                _exhaust(ledgers, len(todo), progress)
        write_manifest(store, settings, complete=True)
    except KeyboardInterrupt:
        num_left = len(_unfinished(clips, store))
        raise IngestInterrupted(
            f"stopped. {len(clips) - num_left} of {len(clips)} clips are done and kept in {display_path(store)}; "
            "run the same command again to decode the others"
        ) from None
    except (BlockError, OSError, RayError) as error:
        raise IngestError(
            f"the clips could not be decoded into {display_path(store)}: {error}. What was decoded before is kept; "
            "run the same command again when this is mended"
        ) from error
    report = _report(clips, store, len(todo), time.monotonic() - started)
    if report.failed_fraction > section.max_failed_fraction:
        raise IngestError(
            f"{sum(report.reasons.values())} of {len(clips)} clips could not be decoded, more than "
            f"ingest.max_failed_fraction = {section.max_failed_fraction:g} allows:\n{describe_failures(report)}\n"
            f"Each of them is listed in {display_path(store / 'ledger')}. Replace the files and run the same "
            f"command again, or "
            "allow more failures: they count as misses in evaluation"
        )
    return report


def describe_failures(report: IngestReport, most: int = 5) -> str:
    """The commonest reasons, a line each."""
    lines = [f"  {count} x {reason}" for reason, count in list(report.reasons.items())[:most]]
    if len(report.reasons) > most:
        lines.append(f"  and {len(report.reasons) - most} other reasons")
    return "\n".join(lines)


def _unique_clips(captions: pa.Table) -> pa.Table:
    """clip_id, path, start_s, end_s; a row a clip, in the order of the captions."""
    clips = captions.select(["clip_id", "path", "start_s", "end_s"])
    _, first = np.unique(clips["clip_id"].to_numpy(), return_index=True)
    return clips.take(np.sort(first))


def _unfinished(clips: pa.Table, store: Path) -> pa.Table:
    known = {row["clip_id"]: row for row in read_ledger(store).drop_columns("row").to_pylist()}
    wanted = zip(clips["clip_id"].to_pylist(), clips["path"].to_pylist(), strict=True)
    unfinished = [clip_id not in known or _try_again(known[clip_id], path, store) for clip_id, path in wanted]
    return clips.filter(pa.array(unfinished, pa.bool_()))


def _try_again(known: dict, path: str, store: Path) -> bool:
    """Whether a known clip may end otherwise this time."""
    if known["path"] != path:
        return True
    if known["status"] in ("ok", "timeout", "killed"):
        return known["status"] != "ok"
    try:
        # The inode's time, since a file that replaces another may bring its old time of modification along.
        changed = Path(path).stat().st_ctime
    except OSError:
        return known["status"] != "missing"
    return known["status"] == "missing" or changed > (store / "ledger" / known["block"]).stat().st_mtime


class _BlockWriter:
    """What an actor does: decodes the clips of a block and writes them to the store."""

    def __init__(self, store: Path, settings: StoreSettings, timeout_s: float):
        self._store, self._settings = store, settings
        self._decoder = Decoder(timeout_s)

    def __call__(self, clips: pa.Table) -> pa.Table:
        return write_block(self._store, self._settings, map(self._decode, clips.to_pylist()))

    def _decode(self, clip: dict) -> DecodedClip:
        started = time.perf_counter()
        try:
            outcome = self._decoder.read_clip(
                clip["path"],
                start_s=clip["start_s"],
                end_s=clip["end_s"],
                frames_per_second=self._settings.frames_per_second,
                max_frames=self._settings.max_frames,
                size=self._settings.size,
            )
        except ClipError as error:
            outcome = error
        return DecodedClip(clip["clip_id"], clip["path"], time.perf_counter() - started, outcome)


def _decode(
    clips: pa.Table,
    store: Path,
    settings: StoreSettings,
    section: IngestConfig,
    *,
    wait_s: float,
) -> Iterator[pa.Table]:
    """Yields the ledger of each block as soon as it is written."""
    decoder = WorkerResources(1.0, labels=section.node_labels)
    decoders = section.decoders or count_cpus(section.node_labels, wait_s=wait_s)
    pool = ActorPool(
        decoders,
        section.decoders or len(clips),  # nodes that join later decode as well
        decoder,
        wait_s=wait_s,
        # A block in which every clip hangs takes so long, and Ray Data must not take it for dead.
        patience_s=section.clips_per_block * section.timeout_s,
    )
    # The last blocks should keep all decoders busy.
    rows = max(1, min(section.clips_per_block, len(clips) // (2 * decoders)))
    blocks = [clips.slice(first, rows) for first in range(0, len(clips), rows)]
    return map_blocks(_BlockWriter, (store, settings, section.timeout_s), blocks, pool)


def _exhaust(ledgers: Iterator[pa.Table], num_clips: int, progress: bool) -> None:
    failed = 0

    def note(ledger: pa.Table) -> str:
        nonlocal failed
        failed += len(ledger) - ledger["status"].to_pylist().count("ok")
        return f", {failed} failed"

    for _ in track_progress(
        ledgers, doing="decoding", unit="clips", total=num_clips, size=len, note=note, enabled=progress
    ):
        pass


def _report(clips: pa.Table, store: Path, num_decoded: int, seconds: float) -> IngestReport:
    asked = set(clips["clip_id"].to_pylist())
    ledger = [row for row in read_ledger(store).to_pylist() if row["clip_id"] in asked]
    assert len(ledger) == len(asked), "every clip that was asked for has its row"
    return IngestReport(
        counts=dict(Counter(row["status"] for row in ledger).most_common()),
        reasons=dict(
            Counter(f"{row['status']}: {row['error']}" for row in ledger if row["status"] != "ok").most_common()
        ),
        num_decoded=num_decoded,
        num_skipped=len(clips) - num_decoded,
        seconds=seconds,
    )


def run_ingest(config: ExperimentConfig, *, progress: bool = True) -> IngestReport:
    """Decodes the videos of an experiment into its clip store."""
    captions = load_captions(config)
    logger.info(f"decoding the clips of {len(captions)} captions into {display_path(config.clip_store)}")
    return ingest(
        captions,
        config.clip_store,
        store_settings(config),
        config.ingest,
        wait_s=config.resources.wait_s,
        progress=progress,
    )
