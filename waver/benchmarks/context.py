"""What every benchmark is given: sizes, number of turns, a folder, and the conventional baseline."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from waver.model.architecture import find_architecture


@dataclass(frozen=True)
class Sizes:
    """Sizes of the work that is measured. The defaults are those of the table in experiments/RESULTS.md."""

    backbone: str | dict[str, Any] = "ViT-B-32-quickgelu"
    image_size: int = 224
    max_frames: int = 12
    max_words: int = 32
    frozen_pairs: int = 16
    """Pairs in a step with a frozen backbone."""
    trained_pairs: int = 4
    """Pairs in a step that trains the backbone."""
    matmul: int = 2048
    """Side of the square matrices whose product gives the speed limit."""
    phrases: int = 100_000
    matched_clips: int = 256
    input_clips: int = 256
    input_batch: int = 32
    decoded_clips: int = 32
    """Clips that the conventional input decodes in a turn."""
    decoders: int = 2
    """Worker processes of the conventional input; 0 to decode in this process."""
    loaders: int = 2
    """Processes of Ray Data that read input; 0 to leave them out, and Ray."""
    ranked: int = 1000
    """Captions, and clips, that are ranked."""
    epoch_clips: int = 9000
    epoch_captions: int = 18_000
    """Captions of the synthetic MSR-VTT; 180,000 at full size, which take 3.3 GB on the disk."""
    epoch_pairs: int = 128
    gpu_pairs: int = 128
    scaling_clips: tuple[int, ...] = (1_000, 10_000, 100_000)
    scaling_phrases: tuple[int, ...] = (1_000, 10_000, 100_000)
    scaling_workers: tuple[int, ...] = (1, 2, 4, 8)
    scaling_pairs: int = 128
    search_windows: int = 100_000
    """Windows that are searched; a million take 13 GB on the disk."""

    @property
    def width(self) -> int:
        """D, the width of the embeddings of the backbone."""
        return find_architecture(self.backbone)["embed_dim"]


@dataclass(frozen=True)
class Context:
    """Arguments of a benchmark."""

    folder: Path
    """An empty folder for everything that is written."""
    repeats: int = 5
    sizes: Sizes = field(default_factory=Sizes)
    conventional: Any = None
    """Module of the conventional baseline; None if there is none."""
    why_not: str = ""
    """Why there is no conventional baseline."""
