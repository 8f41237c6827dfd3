"""Checks of annotations, splits (against published ones), videos, decoding and duplicates."""

import logging
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import pyarrow as pa
import pyarrow.compute as pc

from waver.config import ExperimentConfig
from waver.data.annotations import AnnotationError, published_split, validation_source
from waver.data.annotations.captions import SPLITS, describe_left_out, unique_clips
from waver.data.annotations.published import split_digest
from waver.data.annotations.reading import Problems
from waver.data.annotations.videos import describe_similar, index_videos
from waver.data.clip import Clip, ClipError
from waver.data.clip_store import ClipStore
from waver.data.duplicates import describe_counts, equivalent_clips, find_duplicates
from waver.data.ledger import describe_failures, group_failures
from waver.data.segments import describe_segments
from waver.data.video.decoder import Decoder
from waver.doctor.findings import Finding, Level, format_bytes
from waver.evaluation.confidence import beside, find_small_validation
from waver.runs.inputs import load_captions, store_settings
from waver.tools.names import abbreviate

logger = logging.getLogger(__name__)

_FILES_PER_SUFFIX = 3
_LENGTHS = pa.schema([("clip_id", pa.string()), *((name, pa.float64()) for name in ("start_s", "end_s", "video_s"))])
_MAX_COMPARED_BYTES = 8 * 2**30
"""Of decoded frames; comparing more would take minutes."""


def read_captions(config: ExperimentConfig) -> tuple[pa.Table | None, list[Finding]]:
    """Returns the caption table, or None if it cannot be read, and a finding; missing videos are no error here."""
    lenient = config.model_copy(update={"data": config.data.model_copy(update={"allow_missing_videos": True})})
    try:
        captions = load_captions(lenient)
    except AnnotationError as error:
        remedy = "correct the annotations, or set data.annotations and data.videos"
        return None, [Finding("error", "annotations", str(_all_problems(config) or error), remedy)]
    except OSError as error:
        return None, [
            Finding("error", "annotations", f"cannot be read: {error}", "set data.annotations and data.videos")
        ]
    clips = len(pc.unique(captions["clip_id"]))
    return captions, [
        Finding("ok", "annotations", f"{len(captions)} captions of {clips} clips in {config.data.annotations}")
    ]


def _all_problems(config: ExperimentConfig) -> AnnotationError | None:
    """Returns the error with all that is wrong with the annotations, videos that are missing included."""
    try:
        load_captions(config)
    except AnnotationError as error:
        return error
    return None


def check_splits(config: ExperimentConfig, captions: pa.Table) -> Iterator[Finding]:
    """Counts clips and captions of each split, and compares them with the published split of the data set."""
    held_out = validation_source(captions) != "own"
    for split in SPLITS:
        clips, num_captions = _clips_of(captions, [split])
        if not clips:
            needed = split != "test"
            remedy = f"training needs a {split} split" if needed else "`waver evaluate` needs a test split"
            yield Finding("error" if needed else "info", f"split {split}", "no captions", remedy)
            continue
        counts = sorted(Counter(captions["clip_id"].filter(pc.equal(captions["split"], split)).to_pylist()).values())
        found = (
            f"{len(clips)} clips, {num_captions} captions ({counts[0]} to {counts[-1]} per clip, median "
            f"{median(counts):g}), digest {split_digest(clips)}"
        )
        details = {"clips": len(clips), "captions": num_captions, "digest": split_digest(clips)}
        if split == "validation" and held_out:
            found += "; held out of train"
        if split != "train":
            found += f"; R@1: {beside(len(clips))}"
        yield Finding("ok", f"split {split}", found, details=details)
    if left_out := describe_left_out(captions):
        yield Finding("info", "styles of train", left_out)
    if small := find_small_validation(captions):
        yield Finding("warning", "size of validation", *small)
    yield from _compare_with_published(config, captions, held_out=held_out)


def _compare_with_published(config: ExperimentConfig, captions: pa.Table, *, held_out: bool) -> Iterator[Finding]:
    published = published_split(config.data.format, getattr(config.data, "split", None))
    for split, official in published.parts.items() if published else ():
        parts = ["train", "validation"] if held_out and split == "train" else [split]
        clips, num_captions = _clips_of(captions, parts)
        name = f"split {' and '.join(parts)}"
        differences = []
        if len(clips) != official.num_clips:
            differences.append(f"{len(clips)} clips instead of {official.num_clips}")
        elif split_digest(clips) != official.digest:
            differences.append(f"other clips (digest {split_digest(clips)} instead of {official.digest})")
        if official.num_captions not in (None, num_captions):
            differences.append(f"{num_captions} captions instead of {official.num_captions}")
        if differences:
            yield Finding(
                "warning",
                name,
                f"not as published: {'; '.join(differences)}",
                "metrics cannot be compared with published ones: use the original files, or report the difference",
            )
        else:
            yield Finding(
                "ok",
                name,
                f"the clips and the number of captions are those of the published {config.data.format} split",
            )


def check_videos(config: ExperimentConfig, captions: pa.Table, *, decoded: bool = False) -> Iterator[Finding]:
    """Lists every video of the annotations that is not on the disk, or is empty.

    Args:
        config: configuration of the experiment.
        captions: its caption table.
        decoded: whether the clip store is complete: then empty videos are no error, since its ledger has them.
    """
    paths = pc.unique(captions["path"]).to_pylist()
    missing = [path for path in sorted(paths) if not Path(path).is_file()]
    sizes = {path: Path(path).stat().st_size for path in set(paths) - set(missing)}
    if empty := sorted(path for path, num_bytes in sizes.items() if not num_bytes):
        budget = config.ingest.allowed_failures(len(paths))
        remedy = f"replace them; they count as misses, and ingest fails if more than {budget} clips cannot be decoded"
        if len(empty) > budget:
            remedy += f" (--set ingest.max_failed={len(empty)} allows them)"
        yield Finding(
            "warning" if decoded or len(empty) <= budget else "error",
            "empty videos",
            f"{len(empty)} of {len(paths)} videos have 0 bytes: {abbreviate(empty)}",
            remedy,
            details=empty,
        )
    if not missing:
        yield Finding("ok", "videos", f"all {len(paths)} exist, {format_bytes(sum(sizes.values()))}")
        return
    allowed = config.data.allow_missing_videos
    split_of = dict(zip(captions["path"].to_pylist(), captions["split"].to_pylist(), strict=True))
    by_split = ", ".join(f"{n} of {split}" for split, n in Counter(split_of[path] for path in missing).items())
    names = [
        Path(p).relative_to(config.data.videos) if Path(p).is_relative_to(config.data.videos) else p for p in missing
    ]
    if allowed and len(missing) > config.ingest.allowed_failures(len(paths)):
        remedy = f"allow them with --set ingest.max_failed={len(missing)}, or ingest fails"
    elif allowed:
        remedy = "they count as misses, since data.allow_missing_videos is set"
    else:
        remedy = f"put them into {config.data.videos}, or set data.allow_missing_videos=true to count them as misses"
    index = index_videos(config.data.videos, Problems())
    if similar := describe_similar([str(name) for name in names], index):
        remedy = f"correct the names, since {'; '.join(similar)}; others: {remedy}"
    yield Finding(
        "warning" if allowed else "error",
        "videos",
        f"{len(missing)} of {len(paths)} videos that the annotations name are missing ({by_split}): "
        + abbreviate(map(str, names)),
        remedy,
        details=missing,
    )


def check_decoding(config: ExperimentConfig, captions: pa.Table, *, level: Level) -> Iterator[Finding]:
    """Decodes a few clips of each file type (by suffix) with the settings of ingest.

    Args:
        config: configuration of the experiment.
        captions: its caption table.
        level: of the finding if no sample of a type decodes, and the type has more files than may fail in ingest.
    """
    clips = captions.select(["clip_id", "path", "start_s", "end_s"]).to_pylist()
    clip_of_path = {clip["path"]: clip for clip in reversed(clips)}
    lengths: list[dict] = []
    files_of_suffix: dict[str, list[dict]] = {}
    for path in sorted(clip_of_path):
        if Path(path).is_file():
            files_of_suffix.setdefault(Path(path).suffix.lower(), []).append(clip_of_path[path])
    with Decoder(config.ingest.timeout_s) as decoder:
        for suffix, files in sorted(files_of_suffix.items()):
            chosen = random.Random(0).sample(files, min(_FILES_PER_SUFFIX, len(files)))
            results: dict[str, str] = {}
            failed: list[tuple[str, str, str]] = []
            for clip in chosen:
                try:
                    done = _read_clip(decoder, config, clip)
                    lengths.append({**clip, "video_s": done.video_s})
                    results[clip["path"]] = f"{len(done.frames)} frames of {done.width}x{done.height} by {done.decoder}"
                except ClipError as error:
                    lengths.append({**clip, "video_s": error.video_s})
                    results[clip["path"]] = f"{error.status}: {error.reason}"
                    failed.append((Path(clip["path"]).name, error.status, error.reason))
            name = f"decoding {suffix or 'files without suffix'}"
            tried = f"{len(chosen)} of {len(files)} files tried"
            if failed:
                causes = "; ".join(describe_failures(group_failures(sorted(failed))))
                # A few bad files of a rare type do not stop ingest.
                many = len(files) > config.ingest.allowed_failures(len(clip_of_path))
                yield Finding(
                    level if many and len(failed) == len(chosen) else "warning",
                    name,
                    f"{tried}, {len(failed)} cannot be decoded: {causes}",
                    "replace them; otherwise they count as misses, and ingest fails if more than "
                    f"{config.ingest.allowed_failures(len(clip_of_path))} clips fail (ingest.max_failed, "
                    "ingest.max_failed_fraction)",
                    details=results,
                )
            else:
                yield Finding("ok", name, f"{tried}, all decode", details=results)
    tried_clips = pa.Table.from_pylist(lengths, _LENGTHS)
    yield from _compare_lengths(tried_clips, tried_clips, "segments tried")


def _read_clip(decoder: Decoder, config: ExperimentConfig, clip: dict) -> Clip:
    video = config.video
    return decoder.read_clip(
        clip["path"],
        start_s=clip["start_s"],
        end_s=clip["end_s"],
        frames_per_second=video.frames_per_second,
        max_frames=video.max_frames,
        target=store_settings(config).target,
    )


def check_segments(captions: pa.Table, store: ClipStore) -> Iterator[Finding]:
    """Compares the segments of all clips with the lengths of their videos."""
    yield from _compare_lengths(unique_clips(captions), store.ledger, "segments")


def _compare_lengths(clips: pa.Table, lengths: pa.Table, name: str) -> Iterator[Finding]:
    for sentence in describe_segments(clips, lengths):
        yield Finding("warning", name, sentence, "correct start_s and end_s, and run waver ingest again")


def check_duplicates(captions: pa.Table, store: ClipStore | None) -> Iterator[Finding]:
    """Finds duplicate videos and captions of validation and test, see `waver.data.duplicates`."""
    compared = "files"
    if store:
        compared = "files and decoded frames"
        settings = store.settings
        if len(store.ledger) * settings.max_frames * settings.size**2 * 3 > _MAX_COMPARED_BYTES:
            store, compared = None, "files; there are too many decoded frames"
    pairs = equivalent_clips(captions, store, progress=_log_progress())
    for split in ("validation", "test"):
        duplicates = find_duplicates(captions, split, pairs)
        if not duplicates.num_captions:
            continue
        counts = duplicates.counts
        lines = describe_counts(counts)
        name = f"duplicates in {split}"
        if not lines:
            yield Finding(
                "ok",
                name,
                f"none among {counts['captions']} captions; compared: {compared}",
                details=duplicates.as_json(),
            )
            continue
        yield Finding(
            "warning",
            name,
            f"of {counts['captions']} captions and {counts['clips']} clips (compared: {compared}):\n"
            + "\n".join(lines),
            "the report lists them; a query with several correct answers lowers the recall that any model can reach"
            + ("; remove videos that are in two splits from one of them" if counts["same_videos_elsewhere"] else ""),
            details=duplicates.as_json(),
        )


def _clips_of(captions: pa.Table, splits: list[str]) -> tuple[list[str], int]:
    """Returns the ids of the clips of some splits, and the number of their captions."""
    chosen = captions["clip_id"].filter(pc.is_in(captions["split"], value_set=pa.array(splits)))
    return pc.unique(chosen).to_pylist(), len(chosen)


def _log_progress() -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        if done % 500 == 0:
            logger.info(f"  {done} of {total} files of equal size read")

    return progress
