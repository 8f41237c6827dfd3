"""Builds the queries of a report: the reference caption of every clip, and its versions by other writers and by rules."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from waver.tools.errors import WaverError

Track = Literal["reference", "natural", "rules", "imported", "control"]
TRACKS: Mapping[str, str] = {
    "natural": "other human captions of the same clip",
    "rules": "the reference caption rewritten by deterministic rules",
    "imported": "captions rewritten by people or models, read from a file",
}
"""Track -> description of its queries, which keep the meaning of a caption; queries of `control` do not."""
_TRACK_ORDER = ("reference", *TRACKS, "control")
UNKNOWN_STYLE = "another caption"
"""Style of human captions if the data set names no styles."""


class RobustnessError(WaverError):
    """Raised if the report cannot be made with these runs and settings."""


@dataclass(frozen=True)
class Query:
    """One query: a text and the clip that it should retrieve."""

    clip_id: str
    text: str
    track: Track
    style: str
    """A style of the data set, the name of a rule, or the style given in the imported file."""
    original: int
    """`caption_index` of the caption that it is a version of."""


@dataclass(frozen=True)
class Queries:
    """The queries of a report, sorted by clip; the first query of a clip is its reference caption."""

    rows: tuple[Query, ...]
    clip_ids: tuple[str, ...]
    """Clips of the gallery, sorted."""
    clip: np.ndarray
    """(Q,) gallery index of the clip of each query."""
    video: np.ndarray
    """(Q,) index of the video that the clip of each query is a segment of."""
    reference: np.ndarray
    """(Q,) index of the query that each is a version of; a reference has its own index."""

    def __len__(self) -> int:
        return len(self.rows)

    def of_track(self, *tracks: str) -> np.ndarray:
        """Returns the indices of the queries of some tracks, in order."""
        return np.array([i for i, row in enumerate(self.rows) if row.track in tracks], dtype=np.int64)

    def of_style(self, track: str, style: str) -> np.ndarray:
        """Returns the indices of the queries of a track in one style."""
        return np.array([i for i, row in enumerate(self.rows) if (row.track, row.style) == (track, style)], np.int64)

    def styles(self, *tracks: str) -> list[tuple[str, str]]:
        """Returns the (track, style) pairs of some tracks, sorted by track and style."""
        found = {(row.track, row.style) for row in self.rows if row.track in tracks}
        return sorted(found, key=lambda pair: (tracks.index(pair[0]), pair[1]))


def reference_rows(captions: pa.Table, split: str, style: str | None) -> pa.Table:
    """Selects the reference caption of each clip: its first caption, or its first caption in a style.

    Args:
        captions: caption table.
        split: split of the clips.
        style: style of the reference captions; None for any.

    Returns:
        Rows of the table, sorted by clip.

    Raises:
        RobustnessError: if the split is empty, or a clip has no caption in that style.
    """
    chosen = captions.filter(pc.equal(captions["split"], split))
    if chosen.num_rows == 0:
        available = ", ".join(sorted(set(captions["split"].to_pylist())))
        raise RobustnessError(f"split: the data set has no captions of {split}; choose one of {available}")
    chosen = chosen.sort_by([("clip_id", "ascending"), ("caption_index", "ascending")])
    clips = set(chosen["clip_id"].to_pylist())
    if style is not None:
        styles = sorted(set(chosen["style"].drop_null().to_pylist()))
        chosen = chosen.filter(pc.equal(chosen["style"], style))
        if absent := sorted(clips - set(chosen["clip_id"].to_pylist())):
            raise RobustnessError(
                f"reference: {len(absent)} of {len(clips)} clips of {split} have no caption in the style {style!r} "
                f"({', '.join(absent[:3])}{', ...' if len(absent) > 3 else ''}); available styles: "
                f"{', '.join(styles) or '(none)'}. Without `reference` the first caption of each clip is used"
            )
    ids = chosen["clip_id"].to_pylist()
    return chosen.take([row for row in range(len(ids)) if row == 0 or ids[row] != ids[row - 1]])


def build_queries(
    captions: pa.Table,
    references: pa.Table,
    *,
    natural: bool,
    rules: Mapping[str, Sequence[str | None]],
    imported: Sequence[Query],
    controls: Mapping[str, Sequence[str | None]],
) -> Queries:
    """Builds all queries of a report.

    Args:
        captions: caption table.
        references: reference captions from `reference_rows`.
        natural: whether to add the other human captions of the clips.
        rules: name of a rule -> its rewrite of each reference caption, in order; None if the rule does not apply.
        imported: rewrites of any captions of these clips.
        controls: like `rules`, for rewrites that change the meaning.
    """
    first = references.to_pylist()
    clips = {row["clip_id"]: number for number, row in enumerate(first)}
    reference_index = {row["clip_id"]: row["caption_index"] for row in first}
    rows = [Query(row["clip_id"], row["caption"], "reference", "reference", row["caption_index"]) for row in first]
    split = captions.filter(pc.equal(captions["split"], first[0]["split"])).to_pylist()
    if natural:
        rows += [
            Query(
                row["clip_id"],
                row["caption"],
                "natural",
                row["style"] or UNKNOWN_STYLE,
                reference_index[row["clip_id"]],
            )
            for row in split
            if row["caption_index"] != reference_index[row["clip_id"]]
        ]
    rows += [*_rewritten(first, rules, "rules"), *imported, *_rewritten(first, controls, "control")]
    # An imported version of a caption that is not the reference is compared with that caption, which becomes a query too.
    originals = {(row.clip_id, row.original) for row in imported} - set(reference_index.items())
    text_of = {(row["clip_id"], row["caption_index"]): row["caption"] for row in split}
    rows += [Query(clip, text_of[clip, index], "reference", "reference", index) for clip, index in sorted(originals)]

    def sort_key(row: Query) -> tuple:
        is_other = row.track == "reference" and row.original != reference_index[row.clip_id]
        return clips[row.clip_id], _TRACK_ORDER.index(row.track), is_other, row.original, row.style, row.text

    rows.sort(key=sort_key)
    position = {(row.clip_id, row.original): i for i, row in enumerate(rows) if row.track == "reference"}
    _, video_of_clip = np.unique([row["video_id"] for row in first], return_inverse=True)
    clip = np.array([clips[row.clip_id] for row in rows])
    return Queries(
        rows=tuple(rows),
        clip_ids=tuple(clips),
        clip=clip,
        video=video_of_clip[clip],
        reference=np.array([position[row.clip_id, row.original] for row in rows]),
    )


def _rewritten(
    references: Sequence[Mapping[str, Any]], texts_of: Mapping[str, Sequence[str | None]], track: Track
) -> list[Query]:
    """Queries of one track from the texts of each rule, which are in the order of the references; None gives no query."""
    return [
        Query(row["clip_id"], text, track, name, row["caption_index"])
        for name, texts in texts_of.items()
        for row, text in zip(references, texts, strict=True)
        if text is not None
    ]


def queries_to_captions(queries: Queries, references: pa.Table) -> pa.Table:
    """Makes a caption table of the queries, in the same order, that can be evaluated like any other.

    Args:
        queries: queries of the report.
        references: reference captions that the queries were built from; gives videos, paths and segments.
    """
    table = references.take(queries.clip)
    seen: dict[str, int] = {}
    index = []
    for row in queries.rows:
        index.append(seen.get(row.clip_id, 0))
        seen[row.clip_id] = index[-1] + 1
    columns = {
        "caption": pa.array([row.text for row in queries.rows], pa.string()),
        "caption_index": pa.array(index, pa.int32()),
        "style": pa.array([f"{row.track}/{row.style}" for row in queries.rows], pa.string()),
    }
    for name, values in columns.items():
        table = table.set_column(table.schema.get_field_index(name), name, values)
    return table


def queries_digest(queries: Queries) -> str:
    """Returns a hash of all queries in order; reports with the same hash have the same queries."""
    text = "\n".join(f"{row.clip_id}\t{row.track}\t{row.style}\t{row.original}\t{row.text}" for row in queries.rows)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
