"""video."""

from typing import Annotated, Literal

from pydantic import Field

from waver.tools.section import Count, Fraction, NodeLabels, Positive, Section


class VideoConfig(Section):
    """Which frames of a video, and how large."""

    frames_per_second: Positive = 1.0
    max_frames: Count = 12
    """More are thinned out evenly."""
    size: Count = 224
    """Short side and centre crop, pixels."""


class IngestConfig(Section):
    """Decoding videos into the clip store."""

    frame_format: Literal["raw", "jpeg"] = "raw"
    jpeg_quality: Annotated[int, Field(ge=1, le=100)] = 90
    decoders: Count | None = None
    """Clips decoded at the same time; by default one for every CPU of the cluster, also of nodes that join while it runs."""
    clips_per_block: Count = 32
    """Clips in one file of the store: what a killed run repeats at most, and the unit of memory."""
    timeout_s: Positive = 60.0
    """A clip that takes longer is given up."""
    max_failed_fraction: Fraction = 0.01
    """More failures than this and the command fails, after writing the ledger."""
    node_labels: Annotated[NodeLabels, Field(default_factory=dict)]
    """Labels, as given to `ray start --labels`, of the nodes that decode and parse captions; {} for all nodes."""
