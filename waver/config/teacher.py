"""The section `knowledge.teacher`: a frozen teacher other than the student's own backbone."""

from typing import TYPE_CHECKING, Any

from pydantic import model_validator

from waver.config.downloads import BackboneName, WeightsName, with_own_weights
from waver.tools.section import Count, Section

if TYPE_CHECKING:
    from waver.config.experiment import ExperimentConfig


class TeacherConfig(Section):
    """A frozen teacher of any width. A setting that is null is that of the student."""

    backbone: BackboneName | None = None
    """As model.backbone. Another backbone reads frames in the size, and with the pixel statistics, of its own training; with
    the same one, the settings of `video` and `model` hold."""
    weights: WeightsName | None = None
    """As model.weights. Another backbone needs its own."""
    frames: Count | None = None
    """As video.max_frames: the teacher may see more of a clip than the student."""

    @model_validator(mode="before")
    @classmethod
    def _a_downloaded_model_has_its_own_weights(cls, section: Any) -> Any:
        return with_own_weights(section)


def experiment_of_teacher(config: "ExperimentConfig") -> "ExperimentConfig":
    """Returns the experiment whose clip store and embeddings are those of the frozen teacher.

    It has the teacher in place of `model` and `video.max_frames`, and no `knowledge.teacher`. If the teacher is the
    student's own backbone on the same frames, it is the given experiment itself.
    """
    asked, model, video = config.knowledge.teacher or TeacherConfig(), config.model, config.video
    teacher = {
        "backbone": asked.backbone or model.backbone,
        "weights": asked.weights or model.weights,
        "pixel_mean": model.pixel_mean,
        "pixel_std": model.pixel_std,
    }
    frames = {"max_frames": asked.frames or video.max_frames}
    if (
        all(value == getattr(model, name) for name, value in teacher.items())
        and frames["max_frames"] == video.max_frames
    ):
        return config
    if teacher["backbone"] != model.backbone:
        teacher |= {"pixel_mean": None, "pixel_std": None}
        frames |= {"size": None, "resize": None, "interpolation": None}
    sections = {"model": model.model_copy(update=teacher), "video": video.model_copy(update=frames)}
    return config.model_copy(update=sections | {"knowledge": config.knowledge.model_copy(update={"teacher": None})})
