"""Decodes videos into a clip store with Ray Data.

Each actor has a decoder, decodes the clips of a block and writes the block to the store; only the ledger of the block is
sent back. No frame passes through the object store or this process, so memory does not grow with the data set.
"""

import logging
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from ray.exceptions import RayError

from waver.config import ExperimentConfig
from waver.config.video import IngestConfig
from waver.data.annotations.captions import unique_clips
from waver.data.clip_store import StoreSettings
from waver.data.clip_store_writer import create_store, write_manifest
from waver.data.ledger import describe_failures, describe_parts, group_failures, read_ledger, replaced_videos
from waver.data.segments import describe_segments
from waver.on_ray.cluster.blocks import ActorPool, BlockError, map_blocks
from waver.on_ray.cluster.capacity import WorkerResources, count_cpus
from waver.on_ray.cluster.connection import connect
from waver.on_ray.stages.ingest_worker import BlockDecoder
from waver.on_ray.stages.start import open_inputs
from waver.runs.inputs import store_settings
from waver.tools.errors import WaverError
from waver.tools.lock import hold_lock
from waver.tools.object_store import display_path
from waver.tools.progress import track_progress

logger = logging.getLogger(__name__)

_CLIPS_PER_BLOCK_HERE = 8


class IngestError(WaverError):
    """Too many clips failed, or the store cannot be written; clips that were decoded are kept."""


class IngestInterrupted(KeyboardInterrupt):
    """The user stopped an ingest; the message says what is kept and how to continue."""


@dataclass(frozen=True)
class IngestReport:
    """Outcome of an ingest, over all clips of the captions."""

    counts: dict[str, int]
    """Status -> number of clips, the most frequent first."""
    failures: dict[str, list[str]]
    """`status: error` -> the clips that failed so, the most frequent first."""
    num_decoded: int
    """Clips that this run decoded or tried to decode."""
    num_skipped: int
    """Clips that earlier runs had finished."""
    seconds: float
    """Duration of this run."""
    remarks: tuple[str, ...] = ()
    """Sentences on segments that lie outside their videos, and on videos that can be read in part only."""

    @property
    def reasons(self) -> dict[str, int]:
        """`status: error` -> number of failed clips."""
        return {reason: len(clips) for reason, clips in self.failures.items()}

    @property
    def clips_per_s(self) -> float:
        """Clips per second of this run, including its start."""
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
    """Decodes every clip of the captions that is not in the store yet, see `decode_clips`.

    Args:
        captions: caption table (CAPTIONS_SCHEMA).
        store: folder of the clip store; created if it does not exist.
        settings: settings of the store.
        section: section `ingest` of the configuration: number of decoders, labels of their nodes, time limit per clip, and
            the fraction of clips that may fail.
        wait_s: seconds to wait for a node with these labels.
        progress: whether to show progress on standard error.

    Raises:
        IngestError: if more clips failed than allowed, after all were tried; or if the store cannot be written.
        WaverError: see `decode_clips`.
    """
    clips, store = unique_clips(captions), store.absolute()
    report = decode_clips(clips, store, settings, section, wait_s=wait_s, progress=progress)
    _check_failures(report, len(clips), store, section)
    return report


def decode_clips(
    clips: pa.Table,
    store: Path,
    settings: StoreSettings,
    section: IngestConfig,
    *,
    wait_s: float = 0.0,
    in_process: bool = False,
    progress: bool = True,
) -> IngestReport:
    """Decodes clips that are not in a store yet; any number of them may fail.

    A clip is decoded again if its video was replaced by another file of the same name. A clip that failed is tried again
    also if it failed by a timeout or because its decoder was killed.

    Args:
        clips: clip_id, path, start_s, end_s of each clip; ids are unique.
        store: absolute path of the clip store; created if it does not exist.
        settings: settings of the store.
        section: section `ingest` of the configuration.
        wait_s: seconds to wait for a node with the labels of the section.
        in_process: whether this process decodes, one clip after the other, in place of Ray Data.
        progress: whether to show progress on standard error.

    Raises:
        IngestError: if the store cannot be written.
        IngestInterrupted: on Ctrl-C.
        StoreError: if the store has other settings.
        ClusterTooSmallError: if no node with these labels has a CPU.
    """
    started = time.monotonic()
    try:
        create_store(store, settings)
        ledger = read_ledger(store)
        todo = _unfinished(clips, store, ledger)
        if len(todo):
            _announce_retries(todo, ledger, section.timeout_s)
            write_manifest(store, settings, complete=False)
            if in_process:
                _show_progress(_decode_here(todo, store, settings, section), len(todo), progress)
            else:
                with connect(), closing(_decode(todo, store, settings, section, wait_s=wait_s)) as ledgers:
                    _show_progress(ledgers, len(todo), progress)
        write_manifest(store, settings, complete=True)
    except KeyboardInterrupt:
        num_left = len(_unfinished(clips, store, read_ledger(store)))
        raise IngestInterrupted(
            f"stopped. {len(clips) - num_left} of {len(clips)} clips are done and kept in {display_path(store)}; "
            "run the same command again to decode the rest"
        ) from None
    except (BlockError, OSError, RayError) as error:
        raise IngestError(
            f"the clips could not be decoded into {display_path(store)}: {error}. Clips that were decoded are kept; "
            "resolve this, then run the same command again"
        ) from error
    return _report(clips, store, len(todo), time.monotonic() - started)


def _check_failures(report: IngestReport, num_clips: int, store: Path, section: IngestConfig) -> None:
    """Raises IngestError if more clips failed than the section `ingest` allows, or all."""
    num_failed, allowed = sum(report.reasons.values()), section.allowed_failures(num_clips)
    if num_failed <= allowed and num_failed < num_clips:
        return
    causes = "\n".join([*(f"  {line}" for line in describe_failures(report.failures)), *report.remarks])
    raise IngestError(
        f"{num_failed} of {num_clips} clips could not be decoded; allowed are {allowed} (ingest.max_failed = "
        f"{section.max_failed}, ingest.max_failed_fraction = {section.max_failed_fraction:g}):\n{causes}\n"
        f"Each is listed in {display_path(store / 'ledger')}. Replace the files and run the same command again, or allow "
        f"more with --set ingest.max_failed={num_failed}: evaluation counts them as misses"
    )


def _unfinished(clips: pa.Table, store: Path, ledger: pa.Table) -> pa.Table:
    """Selects the clips that have no final outcome in the ledger."""
    known = {row["clip_id"]: row for row in ledger.drop_columns("row").to_pylist()}
    replaced = replaced_videos(ledger, clips["path"])
    wanted = zip(clips["clip_id"].to_pylist(), clips["path"].to_pylist(), strict=True)
    unfinished = [
        clip_id not in known or path in replaced or _try_again(known[clip_id], path, store) for clip_id, path in wanted
    ]
    return clips.filter(pa.array(unfinished, pa.bool_()))


def _announce_retries(todo: pa.Table, ledger: pa.Table, timeout_s: float) -> None:
    """Logs how many clips failed by a timeout before, and what trying them again may cost."""
    timed_out = ledger["clip_id"].filter(pc.equal(ledger["status"], "timeout"))
    if num_retries := pc.sum(pc.is_in(todo["clip_id"], value_set=timed_out.combine_chunks())).as_py():
        logger.warning(
            f"{num_retries} clips that timed out before are tried again, for up to {timeout_s:g} s each "
            "(ingest.timeout_s)"
        )


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


def _decode_here(clips: pa.Table, store: Path, settings: StoreSettings, section: IngestConfig) -> Iterator[pa.Table]:
    """Decodes clips in this process; yields the ledger of each block."""
    with closing(BlockDecoder(store, settings, section.timeout_s)) as decode:
        for first in range(0, len(clips), _CLIPS_PER_BLOCK_HERE):
            yield decode(clips.slice(first, _CLIPS_PER_BLOCK_HERE))


def _decode(
    clips: pa.Table,
    store: Path,
    settings: StoreSettings,
    section: IngestConfig,
    *,
    wait_s: float,
) -> Iterator[pa.Table]:
    """Decodes clips on the connected Ray cluster; yields the ledger of each block as soon as the block is written."""
    decoder = WorkerResources(1.0, labels=section.node_labels)
    decoders = section.decoders or count_cpus(section.node_labels, wait_s=wait_s)
    pool = ActorPool(
        decoders,
        section.decoders or len(clips),  # nodes that join later decode as well
        decoder,
        wait_s=wait_s,
        # If every clip of a block hangs, the block takes this long, and Ray Data must not give it up.
        patience_s=section.clips_per_block * section.timeout_s,
    )
    # The last blocks should keep all decoders busy.
    rows = max(1, min(section.clips_per_block, len(clips) // (2 * decoders)))
    blocks = [clips.slice(first, rows) for first in range(0, len(clips), rows)]
    return map_blocks(BlockDecoder, (store, settings, section.timeout_s), blocks, pool)


def _show_progress(ledgers: Iterator[pa.Table], num_clips: int, progress: bool) -> None:
    """Consumes the ledgers of all blocks, and shows how many clips are done and how many failed."""
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
    requested = set(clips["clip_id"].to_pylist())
    table = read_ledger(store)
    ledger = [row for row in table.to_pylist() if row["clip_id"] in requested]
    assert len(ledger) == len(requested), "the ledger has one row per requested clip"
    return IngestReport(
        counts=dict(Counter(row["status"] for row in ledger).most_common()),
        failures=group_failures(
            (row["clip_id"], row["status"], row["error"]) for row in ledger if row["status"] != "ok"
        ),
        num_decoded=num_decoded,
        num_skipped=len(clips) - num_decoded,
        seconds=seconds,
        remarks=(*describe_segments(clips, table), *describe_parts(table, requested)),
    )


def run_ingest(config: ExperimentConfig, *, progress: bool = True) -> IngestReport:
    """Decodes the clips of an experiment into its clip store, whose lock it holds; and into that of its teacher.

    The teacher has a clip store of its own if it reads other frames (`knowledge.teacher`). Without the lock two commands
    would lose nothing, but decode every clip twice.

    Args:
        config: configuration of the experiment.
        progress: whether to show progress on standard error.

    Returns:
        The report on the clip store of the experiment; what happened in that of the teacher is logged.

    Raises:
        StartError: with everything that prevents the stage, before Ray starts.
        LockedError: if another process decodes into a store.
        WaverError: see `ingest`.
    """
    captions = open_inputs(config, "ingest").captions
    assert captions is not None, "nothing can be decoded without captions"
    report = _ingest_for(config, captions, "the clips", progress=progress)
    if config.teacher.clip_store != config.clip_store:
        theirs = _ingest_for(
            config.teacher, captions, "the frames that the teacher reads, of the clips", progress=progress
        )
        logger.info(
            f"{theirs.counts.get('ok', 0)} of {sum(theirs.counts.values())} clips are in the teacher's clip store; "
            f"{theirs.num_decoded} were decoded now, in {theirs.seconds:.1f} s, and {theirs.num_skipped} before"
        )
    return report


def _ingest_for(config: ExperimentConfig, captions: pa.Table, what: str, *, progress: bool) -> IngestReport:
    """Decodes the clips of an experiment into its own clip store."""
    logger.info(f"decoding {what} of {len(captions)} captions into {display_path(config.clip_store)}")
    logger.info(f"frames: at most {config.video.max_frames} a clip, {config.preprocessing.describe()}")
    with hold_lock(config.clip_store, "ingest"):
        return ingest(
            captions,
            config.clip_store,
            store_settings(config),
            config.ingest,
            wait_s=config.resources.wait_s,
            progress=progress,
        )
