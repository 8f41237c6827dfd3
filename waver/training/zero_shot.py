"""The zero-shot baseline: the pre-trained backbone compares the sentence with the mean of the frames, without training.

The model has no new weights: no temporal aggregator, no fusion with phrases, and `dp` as interaction. It is the model that
CLIP4Clip (arXiv 2104.08860) calls meanP, before training.
"""

from waver.config import ExperimentConfig
from waver.config.model import KnowledgeConfig, ModelConfig, SimilarityConfig
from waver.config.training import LossConfig, TrainConfig
from waver.model.student import Student, StudentParts


def zero_shot_config(config: ExperimentConfig) -> ExperimentConfig:
    """Returns the experiment of the backbone alone on the same data, with the default settings of training."""
    precision, batch_size = config.train.precision, config.train.global_batch_size
    return config.model_copy(
        update={
            "model": ModelConfig(
                backbone=config.model.backbone,
                weights=config.model.weights,
                pixel_mean=config.model.pixel_mean,
                pixel_std=config.model.pixel_std,
                temporal="none",
            ),
            "similarity": SimilarityConfig(kind="dp"),
            "knowledge": KnowledgeConfig(),
            "loss": LossConfig(),
            # One caption per clip was the default of earlier versions: their zero-shot runs are found again.
            "train": TrainConfig(precision=precision, global_batch_size=batch_size, captions_per_clip=1),
        }
    )


def zero_shot_student(student: Student) -> Student:
    """Returns the model of `zero_shot_config`; it shares the backbone of the student."""
    return Student(student.backbone, StudentParts(temporal="none", similarity="dp"))
