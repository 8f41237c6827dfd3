"""What is published of a split: the protocol's name in papers, the number of clips and captions, a digest of the clip ids.

The digests were computed from the list files that public code distributes. They depend neither on the order of a list nor
on its line ends.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PublishedPart:
    """The train, validation or test part of a published split."""

    num_clips: int
    num_captions: int | None
    """None if it depends on the caption files used."""
    digest: str
    """`split_digest` of the clip ids."""


@dataclass(frozen=True, slots=True)
class PublishedSplit:
    """A published division of a data set into train, validation and test."""

    protocol: str
    """Name of the evaluation protocol in papers."""
    parts: Mapping[str, PublishedPart]
    """By name: train, test and, unless it is held out of train, validation."""


def split_digest(clip_ids: Iterable[str]) -> str:
    """Hashes a set of clip ids; their order does not matter."""
    return hashlib.sha256("\n".join(sorted(clip_ids)).encode()).hexdigest()[:16]
