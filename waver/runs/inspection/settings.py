"""What an inspection reads and how much it draws."""

from dataclasses import dataclass


@dataclass(frozen=True)
class InspectionSettings:
    """How the subset is embedded, and how much of it is drawn. What is drawn is cut from the front of the same subset."""

    max_words: int
    """Tokens of a caption, at most."""
    prompt: str | None
    """Sentence around a caption, or None."""
    top_k: int = 0
    """Phrases of a clip; 0 without knowledge."""
    informed: bool = False
    """Whether clips are embedded with their phrases."""
    seed: int = 0
    """Of the choice of the subset."""
    num_clips: int = 64
    """In the similarity matrix, the distributions and the projector."""
    captions_per_clip: int = 4
    """In the projector; elsewhere one caption represents a clip."""
    num_queries: int = 6
    """Strips in each direction."""
    num_worst: int = 4
    """Strips of the worst failures in each direction."""
    num_maps: int = 4
    """Heat maps of tokens and frames, and of phrases and frames."""
