"""Finds duplicate captions, rows and videos of a data set, within a split and between splits.

If a query's caption also describes another clip, it has two correct answers, but the metrics accept only one. If a test
video is also in train under another id, the model may have memorised it. `find_duplicates` counts both; `excused_pairs`
lists the answers that count as wrong only because of duplicates.

What counts as a duplicate:

- *Same caption*: equal after `normalise`.
- *Near caption*: the same set of words without articles and forms of *to be* (`content_words`), such as "A man is playing
  the guitar" and "a man playing guitar". This is an equivalence relation, so one pass groups the captions; a threshold on
  the overlap of words is not, and would find quadratically many pairs among short captions.
- *Same video*: byte-identical files, or clips with identical decoded frames. A re-encoded video is not found.
"""

import hashlib
import itertools
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Int

from waver.data.clip_store import ClipStore
from waver.tools.object_store import fetch_once

Progress = Callable[[int, int], None]
_Key = TypeVar("_Key", bound=Hashable)
_Item = TypeVar("_Item")
# English, as the published captions are. In other languages near captions are only those in another word order.
_STOP_WORDS = frozenset(["a", "an", "the", "is", "are", "was", "were", "be", "been", "being"])
_PART_BYTES = 1 << 20


@dataclass(frozen=True)
class CaptionGroup:
    """Captions that are duplicates of each other."""

    caption: str
    """The first of them."""
    clip_ids: tuple[str, ...]
    """Their clips without repetition, in the order of the table."""
    num_captions: int
    """Number of captions (rows of the table, queries)."""


@dataclass(frozen=True)
class Duplicates:
    """The duplicates of one split."""

    split: str
    num_captions: int
    num_clips: int
    same_captions: tuple[CaptionGroup, ...]
    """Groups of the same caption on several clips of the split."""
    near_captions: tuple[CaptionGroup, ...]
    """Groups of near captions on several clips of the split, of which at least two are not the same caption."""
    repeated_rows: tuple[CaptionGroup, ...]
    """Groups of the same caption in several rows of one clip; each row counts as a query."""
    captions_in_train: tuple[str, ...]
    """The caption of each row of the split whose caption is also in train; empty for train itself."""
    same_videos: tuple[tuple[str, str], ...]
    """Pairs of clips of the split that are the same video."""
    same_videos_elsewhere: tuple[tuple[str, str], ...]
    """(clip of the split, clip of another split) that are the same video."""
    shared_sources: tuple[str, ...]
    """Source videos (`video_id`) with clips in the split and in another split."""

    @property
    def counts(self) -> dict[str, int]:
        """The number of duplicates of each kind."""
        return {
            "captions": self.num_captions,
            "clips": self.num_clips,
            "same_captions": len(self.same_captions),
            "queries_with_same_caption": sum(group.num_captions for group in self.same_captions),
            "near_captions": len(self.near_captions),
            "queries_with_near_caption": sum(group.num_captions for group in self.near_captions),
            "surplus_rows": sum(group.num_captions - 1 for group in self.repeated_rows),
            "queries_in_train": len(self.captions_in_train),
            "same_videos": len(self.same_videos),
            "same_videos_elsewhere": len(self.same_videos_elsewhere),
            "shared_sources": len(self.shared_sources),
        }

    def as_json(self) -> dict[str, Any]:
        """Returns the counts and lists, for a JSON file."""
        return {"counts": self.counts} | asdict(self)


def normalise(caption: str) -> str:
    """Normalises a caption: Unicode NFC, casefolded; other characters than letters, marks and digits become one space.

    `A dog's ear.` becomes `a dog s ear`, as some data sets write it. A caption without letters and digits only loses its
    spaces.
    """
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", caption).casefold())
    kept = "".join(char if unicodedata.category(char)[0] in "LMN" else " " for char in folded)
    return " ".join(kept.split()) or "".join(folded.split())


def content_words(caption: str) -> frozenset[str]:
    """Returns the set of words of a normalised caption, without articles and forms of *to be* unless it has no others."""
    words = frozenset(normalise(caption).split())
    return words - _STOP_WORDS or words


def find_duplicates(captions: pa.Table, split: str, equivalent: Iterable[tuple[str, str]] = ()) -> Duplicates:
    """Finds the duplicates of one split.

    Args:
        captions: caption table with all splits.
        split: train, validation or test.
        equivalent: pairs of clips that are the same video, see `equivalent_clips`.
    """
    rows = captions.filter(pc.equal(captions["split"], split))
    texts, clip_ids = rows["caption"].to_pylist(), rows["clip_id"].to_pylist()
    keys = [normalise(text) for text in texts]
    places = list(zip(texts, clip_ids, strict=True))
    same = _group_by_key(keys, places)
    near = _group_by_key(map(content_words, texts), zip(keys, places, strict=True))
    repeated = _group_by_key(zip(clip_ids, keys, strict=True), places)
    train = captions.filter(pc.equal(captions["split"], "train"))
    train_keys = set() if split == "train" else {normalise(text) for text in train["caption"].to_pylist()}
    own = set(clip_ids)
    pairs = sorted(pair if pair[0] in own else pair[::-1] for pair in equivalent if own.intersection(pair))
    elsewhere = captions.filter(pc.not_equal(captions["split"], split))["video_id"]
    return Duplicates(
        split=split,
        num_captions=len(texts),
        num_clips=len(own),
        same_captions=_on_several_clips(same.values()),
        near_captions=_on_several_clips(
            [place for _, place in group] for group in near.values() if len({key for key, _ in group}) > 1
        ),
        repeated_rows=tuple(_as_caption_group(group) for group in repeated.values() if len(group) > 1),
        captions_in_train=tuple(text for text, key in zip(texts, keys, strict=True) if key in train_keys),
        same_videos=tuple(pair for pair in pairs if pair[1] in own),
        same_videos_elsewhere=tuple(pair for pair in pairs if pair[1] not in own),
        shared_sources=tuple(sorted(set(rows["video_id"].to_pylist()) & set(elsewhere.to_pylist()))),
    )


def describe_counts(counts: Mapping[str, int]) -> list[str]:
    """Describes `Duplicates.counts`: one line for each kind with a count above 0."""
    lines = {
        "queries_with_same_caption": f"queries whose caption is also that of another clip "
        f"({counts['same_captions']} captions)",
        "queries_with_near_caption": "queries whose caption differs from another clip's only in word order, articles or "
        f"forms of to be ({counts['near_captions']} captions)",
        "surplus_rows": "rows that repeat a caption of their clip and count as queries",
        "queries_in_train": "queries whose caption is also in train",
        "same_videos": "pairs of clips that are the same video",
        "same_videos_elsewhere": "pairs of a clip and a clip of another split that are the same video",
        "shared_sources": "source videos with clips in another split",
    }
    return [f"{counts[name]:6d} {line}" for name, line in lines.items() if counts[name]]


def equivalent_clips(
    captions: pa.Table, store: ClipStore | None = None, *, progress: Progress = lambda done, total: None
) -> list[tuple[str, str]]:
    """Finds all pairs of clips that are the same (segment of a) video under two ids.

    Args:
        captions: caption table.
        store: clip store whose decoded frames are compared too; None to compare files only.
        progress: called with (files read, files to read).

    Returns:
        Sorted pairs of clip ids.
    """
    same = same_files(captions, progress=progress)
    if store:
        same += same_frames(store, captions["clip_id"].unique().to_pylist())
    return _all_pairs(same)


def same_files(captions: pa.Table, *, progress: Progress = lambda done, total: None) -> list[tuple[str, str]]:
    """Finds clips that are the same segment of byte-identical files.

    Only files of equal size are read. Empty and missing files are no duplicates.

    Returns:
        Pairs of clip ids; for more than two equal clips, the first paired with each other one.
    """
    clips = captions.select(["clip_id", "path", "start_s", "end_s"]).group_by(["clip_id"], use_threads=False)
    clips = clips.aggregate([(name, "first") for name in ("path", "start_s", "end_s")]).to_pylist()
    paths = dict.fromkeys(clip["path_first"] for clip in clips)
    sizes = {path: size for path in paths if (size := _file_size(Path(path)))}
    alike = [group for group in _group_by_key(sizes.values(), sizes).values() if len(group) > 1]
    content: dict[str, bytes] = {}
    total = sum(map(len, alike))
    for path in itertools.chain.from_iterable(alike):
        if digest := _file_digest(Path(path)):
            content[path] = digest
        progress(len(content), total)
    # A file with unique content is identified by its path.
    keys = [(content.get(c["path_first"], c["path_first"]), c["start_s_first"], c["end_s_first"]) for c in clips]
    there = [(key, clip["clip_id"]) for key, clip in zip(keys, clips, strict=True) if clip["path_first"] in sizes]
    return _pair_with_first(_group_by_key((key for key, _ in there), (clip_id for _, clip_id in there)).values())


def same_frames(store: ClipStore, clip_ids: Iterable[str]) -> list[tuple[str, str]]:
    """Finds clips of a store with identical frames.

    Frames are compared only if their number and times, and the size and frame rate of the source, agree.

    Returns:
        Pairs of clip ids; for more than two equal clips, the first paired with each other one.
    """
    wanted = set(clip_ids)
    ok = store.ledger.filter(pc.equal(store.ledger["status"], "ok"))
    rows_of_block: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for clip_id, block, row in zip(*(ok[name].to_pylist() for name in ("clip_id", "block", "row")), strict=True):
        if clip_id in wanted:
            rows_of_block[block].append((row, clip_id))
    clips_by_metadata: dict[tuple, list[tuple[str, int, str]]] = defaultdict(list)
    for block, rows in rows_of_block.items():
        with pq.ParquetFile(fetch_once(store.path / "clips" / block), memory_map=True) as file:
            table = file.read(["num_frames", "frame_times_s", "height", "width", "source_fps"]).to_pylist()
        for row, clip_id in rows:
            key = tuple(tuple(v) if isinstance(v, list) else v for v in table[row].values())
            clips_by_metadata[key].append((block, row, clip_id))
    alike = sorted(place for group in clips_by_metadata.values() if len(group) > 1 for place in group)
    digests = []
    for block, places in itertools.groupby(alike, key=lambda place: place[0]):
        with pq.ParquetFile(fetch_once(store.path / "clips" / block), memory_map=True) as file:
            digests += [(_frames_digest(file, row), clip_id) for _, row, clip_id in places]
    return _pair_with_first(
        _group_by_key((digest for digest, _ in digests), (clip_id for _, clip_id in digests)).values()
    )


def excused_pairs(
    texts: Sequence[str],
    clip_of_text: Int[np.ndarray, " texts"],
    clip_ids: Sequence[str],
    equivalent: Iterable[tuple[str, str]] = (),
) -> tuple[Int[np.ndarray, " pairs"], Int[np.ndarray, " pairs"]]:
    """Finds the clips that answer a caption as well as its own clip: the same video, or a clip with the same caption.

    Args:
        texts: captions of the queries.
        clip_of_text: for each caption, the number of its clip.
        clip_ids: clips of the gallery, by number.
        equivalent: pairs of clips that are the same video; pairs with clips outside the gallery are ignored.

    Returns:
        (text numbers, clip numbers) of the pairs, sorted by text, then by clip; a text is never paired with its own clip.
    """
    number = {clip_id: i for i, clip_id in enumerate(clip_ids)}
    inside = [(number[a], number[b]) for a, b in equivalent if a in number and b in number]
    video = _connected_components(inside, len(clip_ids))
    clips_of_video = _group_by_key(video, range(len(clip_ids)))
    keys = [normalise(text) for text in texts]
    videos_of_key: dict[str, set[int]] = defaultdict(set)
    for key, clip in zip(keys, clip_of_text.tolist(), strict=True):
        videos_of_key[key].add(video[clip])
    clips_of_key = {key: sorted(c for v in videos for c in clips_of_video[v]) for key, videos in videos_of_key.items()}
    pairs = [
        (text, clip)
        for text, (key, own) in enumerate(zip(keys, clip_of_text.tolist(), strict=True))
        for clip in clips_of_key[key]
        if clip != own
    ]
    both = np.array(pairs, np.int64).reshape(-1, 2)
    return both[:, 0].copy(), both[:, 1].copy()


def _group_by_key(keys: Iterable[_Key], items: Iterable[_Item]) -> dict[_Key, list[_Item]]:
    groups: dict[_Key, list[_Item]] = {}
    for key, item in zip(keys, items, strict=True):
        groups.setdefault(key, []).append(item)
    return groups


def _on_several_clips(groups: Iterable[list[tuple[str, str]]]) -> tuple[CaptionGroup, ...]:
    return tuple(group for group in map(_as_caption_group, groups) if len(group.clip_ids) > 1)


def _as_caption_group(group: list[tuple[str, str]]) -> CaptionGroup:
    return CaptionGroup(group[0][0], tuple(dict.fromkeys(clip_id for _, clip_id in group)), len(group))


def _pair_with_first(groups: Iterable[Sequence[str]]) -> list[tuple[str, str]]:
    return [(group[0], other) for group in groups for other in group[1:]]


def _all_pairs(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Returns the transitive closure of pairs, sorted: with (a, b) and (b, c) also (a, c)."""
    pairs = list(pairs)
    clip_ids = sorted({clip_id for pair in pairs for clip_id in pair})
    number = {clip_id: i for i, clip_id in enumerate(clip_ids)}
    classes = _connected_components([(number[a], number[b]) for a, b in pairs], len(clip_ids))
    groups = _group_by_key(classes, clip_ids).values()
    return sorted(pair for group in groups for pair in itertools.combinations(group, 2))


def _connected_components(pairs: Iterable[tuple[int, int]], num_items: int) -> list[int]:
    """Returns, for each of 0 ... num_items - 1, the smallest item of its connected component."""
    parent = list(range(num_items))

    def root(item: int) -> int:
        while parent[item] != item:
            parent[item] = item = parent[parent[item]]
        return item

    for one, other in pairs:
        low, high = sorted((root(one), root(other)))
        parent[high] = low
    return [root(item) for item in range(num_items)]


def _file_size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _file_digest(path: Path) -> bytes | None:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while part := file.read(_PART_BYTES):
                digest.update(part)
    except OSError:
        return None
    return digest.digest()


def _frames_digest(file: pq.ParquetFile, row: int) -> bytes:
    """Hashes the stored frames of a clip; JPEGs of the same pixels have the same bytes."""
    values = file.read_row_group(row, columns=["frames"], use_threads=False)["frames"].chunk(0).flatten()
    digest = hashlib.sha256()
    for value in values:
        digest.update(value.as_buffer())
    return digest.digest()
