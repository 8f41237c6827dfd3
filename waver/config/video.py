"""The sections `video` and `ingest`."""

from typing import Annotated, Literal

from pydantic import Field

from waver.data.video.resizing import Interpolation, ResizeMode
from waver.tools.section import Count, Fraction, NodeLabels, Positive, Section


class VideoConfig(Section):
    """How frames are sampled and resized."""

    frames_per_second: Positive = 1.0
    """Sampling rate of frames."""
    max_frames: Count = 12
    """Maximal number of frames per clip; of more frames, evenly spaced ones are kept."""
    size: Count | None = None
    """Height and width of frames, pixels; null for the size in the training of model.backbone (224 for ViT-B-32)."""
    resize: ResizeMode | None = None
    """shortest: the short side of a frame is resized to size, then the centre is cropped. squash: both sides are resized to
    size. null: as in the training of model.weights (shortest for CLIP)."""
    interpolation: Interpolation | None = None
    """Filter of the resizing; null: as in the training of model.weights (bicubic for CLIP)."""


class IngestConfig(Section):
    """How `waver ingest` decodes videos into the clip store."""

    frame_format: Literal["raw", "jpeg"] = "raw"
    """raw: frames are stored uncompressed, fast to read. jpeg: much smaller, but lossy and slower to read."""
    jpeg_quality: Annotated[int, Field(ge=1, le=100)] = 90
    """Quality of JPEG frames, 1 to 100; ignored with frame_format raw."""
    decoders: Count | None = None
    """Number of clips decoded at the same time; by default one per CPU of the cluster, including nodes that join later."""
    clips_per_block: Count = 32
    """Clips per file of the clip store. An interrupted ingest decodes the clips of unfinished files again."""
    timeout_s: Positive = 60.0
    """Time limit for decoding a clip, seconds. decord gets the first half; PyAV gets the rest, if decord hangs, crashes or
    cannot read the video exactly. A clip that takes longer counts as failed."""
    max_failed_fraction: Fraction = 0.01
    """Largest fraction of clips that may fail to decode. If more than this and more than max_failed fail, the command fails,
    after it has recorded all outcomes."""
    max_failed: Annotated[int, Field(ge=0)] = 2
    """Number of clips that may fail to decode however few there are."""
    node_labels: Annotated[NodeLabels, Field(default_factory=dict)]
    """Labels, as given to `ray start --labels`, of the nodes that decode videos and parse captions; {} for all nodes."""

    def allowed_failures(self, num_clips: int) -> int:
        """Returns how many of so many clips may fail to decode."""
        return max(self.max_failed, int(self.max_failed_fraction * num_clips))
