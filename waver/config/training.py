"""training."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from waver.tools.section import Count, Fraction, NotNegative, Positive, Section


class LossConfig(Section):
    """Weights of the loss terms; 0 switches a term off."""

    contrastive: NotNegative = 1.0
    """Captions against the videos that the student retrieves: informed ones with knowledge.at_inference, else plain ones."""
    knowledge: NotNegative = 0.0
    """The phrases of each clip against plain videos."""
    distill: NotNegative = 0.0
    """Plain videos learn to answer captions as informed videos do."""
    informed: NotNegative = 1.0
    """Captions against informed videos, where retrieval is by plain ones and `distill` needs somebody to learn from."""
    temperature: Positive = 1.0
    """Softens both sides of `distill`."""

    @property
    def weights(self) -> dict[str, float]:
        """Term -> weight."""
        return self.model_dump(exclude={"temperature"})


class TrainConfig(Section):
    """The optimisation."""

    epochs: Count = 5
    global_batch_size: Annotated[int, Field(ge=2)] = 128
    """Pairs in a step, summed over all workers."""
    captions_per_clip: Count = 1
    """Times an epoch visits each clip, with another caption each time."""
    lr: Positive = 1e-4
    backbone_lr_scale: NotNegative = 1e-3
    """The backbone learns with `lr` times this."""
    weight_decay: NotNegative = 0.2
    warmup_fraction: Fraction = 0.1
    """Share of all steps in which the learning rate rises from 0; then it falls as a cosine."""
    clip_grad_norm: Positive = 1.0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 autocast on GPUs, fp32 on CPUs."""


class EvaluateConfig(Section):
    """Computing the metrics. No setting here changes a figure: some change memory and speed, some add figures beside."""

    batch_size: Count = 64
    """Clips, or captions, embedded at a time."""
    chunk_size: Count = 128
    """Side of the tiles in which the similarity is computed."""
    dsl: bool = False
    """`waver evaluate` also tells figures after dual softmax, which looks at all queries of the split at once."""
    dsl_temperature: Positive = 1.0
    """Divides the logits in that softmax; 1 is what its authors use for inference."""
    qb_norm: bool = False
    """`waver evaluate` also tells figures, from text to video, after QB-Norm with a bank of training captions."""
    qb_norm_beta: Positive = 20.0
    """Inverse temperature of QB-Norm, on similarities; 20 as published."""
    qb_norm_top_k: Count = 1
    """Clips that are among the first so many of some caption in the bank are in the activation set; 1 as published."""
    qb_norm_queries: Count | None = None
    """Captions in the bank, evenly spaced among those of train; null for all of them, as published."""


MAX_PROFILED_STEPS = 50


class TrackingConfig(Section):
    """What a run shows of itself in TensorBoard. No figure depends on it."""

    images: bool = True
    """Whether to draw, after each evaluation, what the model finds and attends to, and to write points for the projector."""


class ProfileConfig(Section):
    """Where the time of some steps goes."""

    steps: tuple[Count, Count] | None = None
    """First and last optimizer step of a torch profiler trace, which the first worker writes to profile/ in the run."""

    @field_validator("steps")
    @classmethod
    def _steps_are_in_order(cls, steps: tuple[int, int] | None) -> tuple[int, int] | None:
        if steps and not steps[0] <= steps[1] < steps[0] + MAX_PROFILED_STEPS:
            raise ValueError(
                f"the first step must not be after the last, and at most {MAX_PROFILED_STEPS} are recorded: no viewer opens "
                "a trace of more"
            )
        return steps


class CheckpointConfig(Section):
    """When a run is saved, so that it can go on from there. No figure depends on it."""

    every_steps: Count | None = None
    """Optimizer steps between checkpoints within an epoch; null for none but those at the end of each epoch."""
