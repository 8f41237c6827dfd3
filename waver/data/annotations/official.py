"""The published splits: how many clips, how many captions, and a hash of the list, so that figures can be compared.

The hashes were taken from the list files that public code distributes. A list with the right hash is the published one,
whatever its order and line ends.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class OfficialSplit:
    """One part of a published split."""

    num_clips: int
    num_captions: int | None
    """None where it depends on the files of captions that one has."""
    digest: str
    """`split_digest` of its clip ids."""


def split_digest(clip_ids: Iterable[str]) -> str:
    """Hash of a set of clips; their order does not matter."""
    return hashlib.sha256("\n".join(sorted(clip_ids)).encode()).hexdigest()[:16]


_TEST_1K_A = OfficialSplit(1000, 1000, "49a09fb68f7ec52b")
_VATEX_TRAIN = OfficialSplit(25_991, 259_910, "abd0450473f9f784")
OFFICIAL: Mapping[tuple[str, str], Mapping[str, OfficialSplit]] = {
    ("msrvtt", "9k"): {"train": OfficialSplit(9000, 180_000, "7dce4e3e1af1eded"), "test": _TEST_1K_A},
    ("msrvtt", "7k"): {"train": OfficialSplit(7010, 140_200, "81ea9208d6c64212"), "test": _TEST_1K_A},
    ("msrvtt", "full"): {
        "train": OfficialSplit(6513, 130_260, "5cac8e8a55a87350"),
        "validation": OfficialSplit(497, 9_940, "be5b1994f643740b"),
        "test": OfficialSplit(2990, 59_800, "916e9b2dd9a45181"),
    },
    ("msvd", "official"): {
        "train": OfficialSplit(1200, 48_774, "223a750f33fcec3c"),
        "validation": OfficialSplit(100, 4_290, "0e6b31c93757d251"),
        "test": OfficialSplit(670, 27_763, "8d2c6c42af984fd0"),
    },
    ("vatex", "hgr"): {
        "train": _VATEX_TRAIN,
        "validation": OfficialSplit(1500, 15_000, "561ef7c7f03a2e6e"),
        "test": OfficialSplit(1500, 15_000, "5c359709225c0551"),
    },
    ("vatex", "1k5"): {
        "train": _VATEX_TRAIN,
        "validation": OfficialSplit(1500, 15_000, "2d92cd2cc777f707"),
        "test": OfficialSplit(1500, 15_000, "df88dab1df5fc178"),
    },
    ("didemo", "official"): {
        "train": OfficialSplit(8392, 8392, "d9b1e3175d28def3"),
        "validation": OfficialSplit(1065, 1065, "c1939b35c9e675a6"),
        "test": OfficialSplit(1004, 1004, "57c0b06b28455cd3"),
    },
}
"""(`data.format`, `data.split`) -> part -> what is published. Where there is no validation here, it is held out of train.

The ids of DiDeMo are its file names without ending. 1k5 is CLIP2Video's test; its validation is the rest of the two halves
that HGR made of the official validation set.
"""
