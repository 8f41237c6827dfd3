"""The settings of a writing-style report."""

from typing import Annotated, Literal

from pydantic import Field

from waver.tools.section import AnyPath, Count, Section


class RobustnessConfig(Section):
    """How `waver robustness` compares retrieval with queries in different writing styles."""

    split: Literal["train", "validation", "test"] = "test"
    """Split whose clips are the gallery."""
    reference: str | None = None
    """Style of the reference caption of each clip; null for its first caption."""
    tracks: Annotated[tuple[Literal["natural", "rules", "imported"], ...], Field(min_length=1)] = (
        "natural",
        "rules",
        "imported",
    )
    """Sources of the other versions of a query. natural: other human captions of the clip. rules: rewriting rules. imported:
    files of rewritten queries."""
    rules: tuple[str, ...] | None = None
    """Names of the rewriting rules; null for all."""
    controls: bool = True
    """Whether to include control queries, whose meaning is changed, so that they should not retrieve the clip."""
    imported: tuple[AnyPath, ...] = ()
    """JSONL files of rewritten queries, for the track imported."""
    parser: str = "en_core_web_sm"
    """Name of the installed spaCy model for the rules that need a parse of the query."""
    seed: int = 0
    """Seed of rules, bootstrap and permutation tests."""
    resamples: Annotated[int, Field(ge=100)] = 2000
    """Number of bootstrap samples of the videos."""
    permutations: Count = 9999
    """Number of permutations of each test that compares two runs."""
