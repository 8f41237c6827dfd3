"""Settings of an inspection."""

from dataclasses import dataclass

from waver.model.tokenizer import Tokenizer


@dataclass(frozen=True)
class InspectionSettings:
    """How the subset is embedded, and how much of it is drawn; each drawing takes the first items of the same subset."""

    tokenizer: Tokenizer
    max_words: int
    """Maximum number of tokens of a caption."""
    prompt: str | None
    """Template around a caption, with {} in its place; or None."""
    top_k: int = 0
    """Number of phrases of a clip; 0 without knowledge."""
    informed: bool = False
    """Whether clips are embedded with their phrases."""
    seed: int = 0
    """Seed of the choice of the subset."""
    num_clips: int = 64
    """Number of clips in the similarity matrix, the distributions and the projector."""
    captions_per_clip: int = 4
    """Captions of a clip in the projector; elsewhere each clip has one caption."""
    num_queries: int = 6
    """Number of strips in each direction."""
    num_worst: int = 4
    """Number of strips of the worst-ranked queries in each direction."""
    num_maps: int = 4
    """Number of heat maps of tokens and frames, and of phrases and frames."""
