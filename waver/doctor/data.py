"""Annotations, splits, videos: whether they are there, are what was published, decode, and what stands twice."""

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
from waver.data.annotations.captions import SPLITS
from waver.data.annotations.published import split_digest
from waver.data.clip_store import ClipStore
from waver.data.decoder import Decoder
from waver.data.duplicates import describe_counts, equivalent_clips, find_duplicates
from waver.data.video import ClipError
from waver.doctor.findings import Finding, Level, size, some
from waver.runs.inputs import load_captions

logger = logging.getLogger(__name__)

_FILES_PER_KIND = 3
_MOST_FRAMES_BYTES = 8 * 2**30
"""Of decoded frames that are compared; reading more would take minutes."""


def read_captions(config: ExperimentConfig) -> tuple[pa.Table | None, list[Finding]]:
    """The caption table, without regard to videos that are missing; None where it cannot be had, and why."""
    lenient = config.model_copy(update={"data": config.data.model_copy(update={"allow_missing_videos": True})})
    try:
        captions = load_captions(lenient)
    except AnnotationError as error:
        return None, [Finding("error", "annotations", str(error), "mend all of it, and ask again")]
    except OSError as error:
        return None, [Finding("error", "annotations", f"cannot be read: {error}", "data.annotations, data.videos")]
    clips = len(pc.unique(captions["clip_id"]))
    return captions, [
        Finding("ok", "annotations", f"{len(captions)} captions of {clips} clips in {config.data.annotations}")
    ]


def check_splits(config: ExperimentConfig, captions: pa.Table) -> Iterator[Finding]:
    """Counts of each split, beside what is published of it."""
    published = published_split(config.data.format, getattr(config.data, "split", None))
    held_out = validation_source(captions) != "own"
    for split in SPLITS:
        clips, num_captions = _clips_of(captions, [split])
        if not clips:
            needed = split != "test"
            remedy = f"training needs a {split} split" if needed else "`waver evaluate` needs one"
            yield Finding("error" if needed else "info", f"split {split}", "no captions", remedy)
            continue
        per_clip = sorted(Counter(captions["clip_id"].filter(pc.equal(captions["split"], split)).to_pylist()).values())
        found = (
            f"{len(clips)} clips, {num_captions} captions ({per_clip[0]} to {per_clip[-1]} a clip, median "
            f"{median(per_clip):g}), digest {split_digest(clips)}"
        )
        details = {"clips": len(clips), "captions": num_captions, "digest": split_digest(clips)}
        if split == "validation" and held_out:
            found += "; held out of train"
        yield Finding("ok", f"split {split}", found, details=details)
    for split, part in published.parts.items() if published else ():
        parts = ["train", "validation"] if held_out and split == "train" else [split]
        clips, num_captions = _clips_of(captions, parts)
        name = f"split {' and '.join(parts)}"
        differs = []
        if len(clips) != part.num_clips:
            differs.append(f"{len(clips)} clips instead of {part.num_clips}")
        elif split_digest(clips) != part.digest:
            differs.append(f"other clips (digest {split_digest(clips)} instead of {part.digest})")
        if part.num_captions not in (None, num_captions):
            differs.append(f"{num_captions} captions instead of {part.num_captions}")
        if differs:
            yield Finding(
                "warning",
                name,
                f"not as published: {'; '.join(differs)}",
                "figures cannot be compared with published ones; take the original files, or say so beside the figures",
            )
        else:
            yield Finding("ok", name, f"the published clips of {config.data.format}, as many captions")


def check_videos(config: ExperimentConfig, captions: pa.Table) -> Iterator[Finding]:
    """Every video that the annotations name and the disk lacks."""
    paths = pc.unique(captions["path"]).to_pylist()
    missing = [path for path in sorted(paths) if not Path(path).is_file()]
    if not missing:
        yield Finding("ok", "videos", f"all {len(paths)} are there, {size(sum(Path(p).stat().st_size for p in paths))}")
        return
    allowed = config.data.allow_missing_videos
    split_of = dict(zip(captions["path"].to_pylist(), captions["split"].to_pylist(), strict=True))
    by_split = ", ".join(f"{n} of {split}" for split, n in Counter(split_of[path] for path in missing).items())
    names = [
        Path(p).relative_to(config.data.videos) if Path(p).is_relative_to(config.data.videos) else p for p in missing
    ]
    if allowed and len(missing) > config.ingest.max_failed_fraction * len(paths):
        remedy = f"more than ingest.max_failed_fraction = {config.ingest.max_failed_fraction:g} allows: raise it"
    elif allowed:
        remedy = "they count as misses, as data.allow_missing_videos asks"
    else:
        remedy = f"put them into {config.data.videos}, or set data.allow_missing_videos and they count as misses"
    yield Finding(
        "warning" if allowed else "error",
        "videos",
        f"{len(missing)} of {len(paths)} videos that the annotations name are missing ({by_split}): "
        + some(map(str, names)),
        remedy,
        details=missing,
    )


def check_decoding(config: ExperimentConfig, captions: pa.Table, *, level: Level) -> Iterator[Finding]:
    """Decodes a few clips of every kind of file, as ingest would.

    Args:
        config: of the experiment.
        captions: its caption table.
        level: of a kind of file of which no clip decodes, if there are more of them than may fail.
    """
    clips = captions.select(["path", "start_s", "end_s"]).to_pylist()
    one_of_file = {clip["path"]: clip for clip in reversed(clips)}
    kinds: dict[str, list[dict]] = {}
    for path in sorted(one_of_file):
        if Path(path).is_file():
            kinds.setdefault(Path(path).suffix.lower(), []).append(one_of_file[path])
    video = config.video
    with Decoder(config.ingest.timeout_s) as decoder:
        for suffix, files in sorted(kinds.items()):
            chosen = random.Random(0).sample(files, min(_FILES_PER_KIND, len(files)))
            results: dict[str, str] = {}
            failed = []
            for clip in chosen:
                try:
                    done = decoder.read_clip(
                        **clip, frames_per_second=video.frames_per_second, max_frames=video.max_frames, size=video.size
                    )
                    results[clip["path"]] = f"{len(done.frames)} frames of {done.width}x{done.height} by {done.decoder}"
                except ClipError as error:
                    results[clip["path"]] = f"{error.status}: {error.reason}"
                    failed.append(f"{Path(clip['path']).name} ({error.status}: {error.reason})")
            name = f"decoding {suffix or 'files without ending'}"
            of_all = f"{len(chosen)} of {len(files)} files tried"
            if failed:
                # One bad file of its kind among many good ones does not stop an ingest.
                many = len(files) > config.ingest.max_failed_fraction * sum(map(len, kinds.values()))
                yield Finding(
                    level if many and len(failed) == len(chosen) else "warning",
                    name,
                    f"{of_all}, {len(failed)} cannot be decoded: {'; '.join(failed)}",
                    "replace them; ingest goes on if not more fail than ingest.max_failed_fraction = "
                    f"{config.ingest.max_failed_fraction:g}, and they count as misses",
                    details=results,
                )
            else:
                yield Finding("ok", name, f"{of_all}, all decode", details=results)


def check_duplicates(captions: pa.Table, store: ClipStore | None) -> Iterator[Finding]:
    """What stands twice in the splits that are evaluated, see `waver.data.duplicates`."""
    what = "files"
    if store:
        what = "files and decoded frames"
        settings = store.settings
        if len(store.ledger) * settings.max_frames * settings.size**2 * 3 > _MOST_FRAMES_BYTES:
            store, what = None, "files, as decoded frames are too many,"
    pairs = equivalent_clips(captions, store, progress=_every_so_often())
    for split in ("validation", "test"):
        duplicates = find_duplicates(captions, split, pairs)
        if not duplicates.num_captions:
            continue
        counts = duplicates.counts
        there = describe_counts(counts)
        name = f"duplicates in {split}"
        if not there:
            yield Finding(
                "ok", name, f"none among {counts['captions']} captions; {what} compared", details=duplicates.as_json()
            )
            continue
        yield Finding(
            "warning",
            name,
            f"of {counts['captions']} captions and {counts['clips']} clips ({what} compared):\n" + "\n".join(there),
            "the report lists them; a query with several right answers costs recall that no model can reach"
            + (
                "; take what also stands in another split out of one of them" if counts["same_videos_elsewhere"] else ""
            ),
            details=duplicates.as_json(),
        )


def _clips_of(captions: pa.Table, splits: list[str]) -> tuple[list[str], int]:
    """(different clips, number of captions)."""
    chosen = captions["clip_id"].filter(pc.is_in(captions["split"], value_set=pa.array(splits)))
    return pc.unique(chosen).to_pylist(), len(chosen)


def _every_so_often() -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        if done % 500 == 0:
            logger.info(f"  {done} of {total} files of equal size read")

    return progress
