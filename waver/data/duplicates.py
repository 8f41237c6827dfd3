"""What stands twice in a data set: captions, rows, videos; within a split, and between splits.

A query whose caption also describes another clip has two right answers, of which the metrics know one; a test video that is
a training video under another id is remembered, not retrieved. Here both are found and counted; `excused_pairs` gives the
answers that are wrong by the annotations alone.

What is compared:

- *Same caption*: equal after `normalise`.
- *Near caption*: the same set of words, whatever their order, without articles and forms of *to be* (`content_words`):
  "A man is playing the guitar" and "a man playing guitar". It is an equivalence, so captions fall into groups, found in
  one pass. A threshold on the overlap of words is none, and finds quadratically many pairs among captions so short.
- *Same video*: files that are equal byte by byte, or clips whose decoded frames are. A video that was encoded again is
  neither, and is not found.
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
# English, as the captions of the published data sets are; in other languages near captions differ in order alone.
_FUNCTION_WORDS = frozenset(["a", "an", "the", "is", "are", "was", "were", "be", "been", "being"])
_PART_BYTES = 1 << 20


@dataclass(frozen=True)
class SameCaption:
    """Captions that count as one."""

    caption: str
    """As it is written at its first place."""
    clip_ids: tuple[str, ...]
    """Different ones, in the order of the table."""
    num_captions: int
    """Rows of the table, so many queries."""


@dataclass(frozen=True)
class Duplicates:
    """What stands twice, seen from one split."""

    split: str
    num_captions: int
    num_clips: int
    same_captions: tuple[SameCaption, ...]
    """On several clips of the split."""
    near_captions: tuple[SameCaption, ...]
    """On several clips of the split, and not all of them the same caption."""
    repeated_rows: tuple[SameCaption, ...]
    """The same caption of one clip in several rows: each is a query, and counts."""
    captions_in_train: tuple[str, ...]
    """Rows of the split whose caption stands in train as well; empty for train itself."""
    same_videos: tuple[tuple[str, str], ...]
    """Pairs of clips of the split that are the same video."""
    same_videos_elsewhere: tuple[tuple[str, str], ...]
    """(clip of the split, clip of another split) that are the same video."""
    shared_sources: tuple[str, ...]
    """Source videos (`video_id`) of which the split has a clip, and another split one too."""

    @property
    def counts(self) -> dict[str, int]:
        """All in figures."""
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
        """Counts and lists, for a JSON file."""
        return {"counts": self.counts} | asdict(self)


def normalise(caption: str) -> str:
    """What makes captions the same: Unicode NFC, casefolded, and all but letters, marks and digits is one space.

    So `A dog's ear.` is `a dog s ear`, as some data sets write it. Of a caption without any letter or digit the spaces alone
    are dropped.
    """
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", caption).casefold())
    kept = "".join(char if unicodedata.category(char)[0] in "LMN" else " " for char in folded)
    return " ".join(kept.split()) or "".join(folded.split())


def content_words(caption: str) -> frozenset[str]:
    """What makes captions near: the different words of `normalise`, without articles and *to be* if others remain."""
    words = frozenset(normalise(caption).split())
    return words - _FUNCTION_WORDS or words


def find_duplicates(captions: pa.Table, split: str, equivalent: Iterable[tuple[str, str]] = ()) -> Duplicates:
    """What stands twice, seen from one split.

    Args:
        captions: caption table, of all splits.
        split: train, validation or test.
        equivalent: pairs of clips of the table that are the same video, as `equivalent_clips` finds them.
    """
    rows = captions.filter(pc.equal(captions["split"], split))
    texts, clip_ids = rows["caption"].to_pylist(), rows["clip_id"].to_pylist()
    keys = [normalise(text) for text in texts]
    places = list(zip(texts, clip_ids, strict=True))
    same = _grouped(keys, places)
    near = _grouped(map(content_words, texts), zip(keys, places, strict=True))
    repeated = _grouped(zip(clip_ids, keys, strict=True), places)
    train = captions.filter(pc.equal(captions["split"], "train"))
    trained_on = set() if split == "train" else {normalise(text) for text in train["caption"].to_pylist()}
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
        repeated_rows=tuple(_as_one(group) for group in repeated.values() if len(group) > 1),
        captions_in_train=tuple(text for text, key in zip(texts, keys, strict=True) if key in trained_on),
        same_videos=tuple(pair for pair in pairs if pair[1] in own),
        same_videos_elsewhere=tuple(pair for pair in pairs if pair[1] not in own),
        shared_sources=tuple(sorted(set(rows["video_id"].to_pylist()) & set(elsewhere.to_pylist()))),
    )


def describe_counts(counts: Mapping[str, int]) -> list[str]:
    """`Duplicates.counts` in words, a line for each kind of which there is any."""
    lines = {
        "queries_with_same_caption": f"queries whose caption stands on another clip too "
        f"({counts['same_captions']} captions)",
        "queries_with_near_caption": "queries whose caption differs from another clip's in order, articles or forms of to "
        f"be alone ({counts['near_captions']} captions)",
        "surplus_rows": "rows that repeat a caption of their clip, each of them a query",
        "queries_in_train": "queries that stand in train word for word",
        "same_videos": "pairs of clips that are the same video",
        "same_videos_elsewhere": "pairs with a clip of another split that are the same video",
        "shared_sources": "source videos with clips in another split",
    }
    return [f"{counts[name]:6d} {line}" for name, line in lines.items() if counts[name]]


def equivalent_clips(
    captions: pa.Table, store: ClipStore | None = None, *, progress: Progress = lambda done, total: None
) -> list[tuple[str, str]]:
    """Every pair of clips that are the same video under two ids, the same segment of it included.

    Args:
        captions: caption table.
        store: of its clips, whose decoded frames are compared too; None for the files alone.
        progress: is told (files read, files to read).
    """
    same = same_files(captions, progress=progress)
    if store:
        same += same_frames(store, captions["clip_id"].unique().to_pylist())
    return _all_pairs(same)


def same_files(captions: pa.Table, *, progress: Progress = lambda done, total: None) -> list[tuple[str, str]]:
    """Pairs of clips that show the same segment of files that are equal byte by byte; of more than two, each with the first.

    Only files of equal size are read; empty ones, and those that are not there, are equal to none.
    """
    clips = captions.select(["clip_id", "path", "start_s", "end_s"]).group_by(["clip_id"], use_threads=False)
    clips = clips.aggregate([(name, "first") for name in ("path", "start_s", "end_s")]).to_pylist()
    paths = dict.fromkeys(clip["path_first"] for clip in clips)
    sizes = {path: size for path in paths if (size := _size(Path(path)))}
    alike = [group for group in _grouped(sizes.values(), sizes).values() if len(group) > 1]
    content: dict[str, bytes] = {}
    total = sum(map(len, alike))
    for path in itertools.chain.from_iterable(alike):
        if digest := _file_digest(Path(path)):
            content[path] = digest
        progress(len(content), total)
    # A file that is like no other stands for itself; so do two segments of one file.
    keys = [(content.get(c["path_first"], c["path_first"]), c["start_s_first"], c["end_s_first"]) for c in clips]
    there = [(key, clip["clip_id"]) for key, clip in zip(keys, clips, strict=True) if clip["path_first"] in sizes]
    return _with_first(_grouped((key for key, _ in there), (clip_id for _, clip_id in there)).values())


def same_frames(store: ClipStore, clip_ids: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of clips of a store whose frames are equal pixel by pixel; of more than two, each with the first.

    Frames are read only where number and times of the frames, size and frame rate of the source agree. A clip whose block
    cannot be read is equal to none.
    """
    wanted = set(clip_ids)
    ok = store.ledger.filter(pc.equal(store.ledger["status"], "ok"))
    rows_of_block: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for clip_id, block, row in zip(*(ok[name].to_pylist() for name in ("clip_id", "block", "row")), strict=True):
        if clip_id in wanted:
            rows_of_block[block].append((row, clip_id))
    outside: dict[tuple, list[tuple[str, int, str]]] = defaultdict(list)
    for block, rows in rows_of_block.items():
        with pq.ParquetFile(fetch_once(store.path / "clips" / block), memory_map=True) as file:
            table = file.read(["num_frames", "frame_times_s", "height", "width", "source_fps"]).to_pylist()
        for row, clip_id in rows:
            key = tuple(tuple(v) if isinstance(v, list) else v for v in table[row].values())
            outside[key].append((block, row, clip_id))
    alike = sorted(place for group in outside.values() if len(group) > 1 for place in group)
    digests = []
    for block, places in itertools.groupby(alike, key=lambda place: place[0]):
        with pq.ParquetFile(fetch_once(store.path / "clips" / block), memory_map=True) as file:
            digests += [(_frames_digest(file, row), clip_id) for _, row, clip_id in places]
    return _with_first(_grouped((digest for digest, _ in digests), (clip_id for _, clip_id in digests)).values())


def excused_pairs(
    texts: Sequence[str],
    clip_of_text: Int[np.ndarray, " texts"],
    clip_ids: Sequence[str],
    equivalent: Iterable[tuple[str, str]] = (),
) -> tuple[Int[np.ndarray, " pairs"], Int[np.ndarray, " pairs"]]:
    """Which clips answer a caption as well as its own does: the same video, or one with the same caption, or both.

    Args:
        texts: the captions of a gallery.
        clip_of_text: number of the clip of each.
        clip_ids: of the gallery, by number.
        equivalent: pairs of clips that are the same video; those of clips outside the gallery are left out.

    Returns:
        (number of the text, number of the clip) of each pair, by text, then by clip; never a text with its own clip.
    """
    number = {clip_id: i for i, clip_id in enumerate(clip_ids)}
    inside = [(number[a], number[b]) for a, b in equivalent if a in number and b in number]
    video = _classes(inside, len(clip_ids))
    clips_of_video = _grouped(video, range(len(clip_ids)))
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


def _grouped(keys: Iterable[_Key], items: Iterable[_Item]) -> dict[_Key, list[_Item]]:
    groups: dict[_Key, list[_Item]] = {}
    for key, item in zip(keys, items, strict=True):
        groups.setdefault(key, []).append(item)
    return groups


def _on_several_clips(groups: Iterable[list[tuple[str, str]]]) -> tuple[SameCaption, ...]:
    return tuple(one for one in map(_as_one, groups) if len(one.clip_ids) > 1)


def _as_one(group: list[tuple[str, str]]) -> SameCaption:
    return SameCaption(group[0][0], tuple(dict.fromkeys(clip_id for _, clip_id in group)), len(group))


def _with_first(groups: Iterable[Sequence[str]]) -> list[tuple[str, str]]:
    return [(group[0], other) for group in groups for other in group[1:]]


def _all_pairs(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """The pairs that follow: with (a, b) and (b, c) also (a, c); each once, in order."""
    pairs = list(pairs)
    clip_ids = sorted({clip_id for pair in pairs for clip_id in pair})
    number = {clip_id: i for i, clip_id in enumerate(clip_ids)}
    classes = _classes([(number[a], number[b]) for a, b in pairs], len(clip_ids))
    groups = _grouped(classes, clip_ids).values()
    return sorted(pair for group in groups for pair in itertools.combinations(group, 2))


def _classes(pairs: Iterable[tuple[int, int]], num_items: int) -> list[int]:
    """For each of 0 ... num_items - 1 the smallest number that pairs connect it with."""
    parent = list(range(num_items))

    def root(item: int) -> int:
        while parent[item] != item:
            parent[item] = item = parent[parent[item]]
        return item

    for one, other in pairs:
        low, high = sorted((root(one), root(other)))
        parent[high] = low
    return [root(item) for item in range(num_items)]


def _size(path: Path) -> int:
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
    """Of the frames as they are stored; a JPEG of the same pixels has the same bytes."""
    values = file.read_row_group(row, columns=["frames"], use_threads=False)["frames"].chunk(0).flatten()
    digest = hashlib.sha256()
    for value in values:
        digest.update(value.as_buffer())
    return digest.digest()
