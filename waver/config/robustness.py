"""Everything that may stand in the settings of a writing-style report."""

from typing import Annotated, Literal

from pydantic import Field

from waver.tools.section import AnyPath, Count, Section


class RobustnessConfig(Section):
    """How the report on the style of queries is made."""

    split: Literal["train", "validation", "test"] = "test"
    """Whose clips are the gallery."""
    reference: str | None = None
    """Style of each clip's reference caption; null: its first caption."""
    tracks: Annotated[tuple[Literal["natural", "rules", "imported"], ...], Field(min_length=1)] = (
        "natural",
        "rules",
        "imported",
    )
    """Whose versions: other human captions, rules, files of rewritten queries."""
    rules: tuple[str, ...] | None = None
    """Names of the rules; null for all."""
    controls: bool = True
    """Whether to ask queries too that mean something else, which should not find the clip."""
    imported: tuple[AnyPath, ...] = ()
    """JSONL files of rewritten queries."""
    parser: str = "en_core_web_sm"
    """Name of an installed spaCy model, for the rules that need to know what is a verb."""
    seed: int = 0
    """Of rules, bootstrap and tests."""
    resamples: Annotated[int, Field(ge=100)] = 2000
    """Of the bootstrap over videos."""
    permutations: Count = 9999
    """Of each test between two runs."""
