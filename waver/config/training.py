"""The sections `loss`, `train`, `evaluate`, `tracking`, `profile` and `checkpoint`."""

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from waver.tools.section import AnyPath, Count, Fraction, NotNegative, Positive, Section

# Names of waver.training.objective.LOSS_TERMS.
LOSS_TERM_NAMES = ("contrastive", "distill", "informed", "knowledge", "phrases_video", "phrases_text", "keep")
PHRASE_TERMS = ("phrases_video", "phrases_text")
"""Terms that compare clips or captions with the phrases of a batch."""


class LossConfig(Section):
    """The kind of the loss, and the weights of its terms; a weight of 0 switches a term off."""

    kind: Literal["softmax", "sigmoid"] = "softmax"
    """How the terms contrastive, knowledge and informed contrast positive with negative pairs. softmax (CLIP): each positive
    pair with all pairs of its text or its video. sigmoid (SigLIP): each pair on its own, with a learned bias."""
    contrastive: NotNegative = 1.0
    """Weight of the contrastive loss between captions and videos (with fused phrases if knowledge.at_inference is true)."""
    knowledge: NotNegative = 0.0
    """Weight of the contrastive loss between the phrases of a clip and its video without fused phrases. Like all terms but
    contrastive, which is the one loss of the released code of WAVER, it is an extension of waver."""
    distill: NotNegative = 0.0
    """Weight of the distillation loss: similarities of videos without fused phrases learn from those with fused phrases."""
    informed: NotNegative = 1.0
    """Weight of the contrastive loss between captions and videos with fused phrases, which trains the target of `distill`.
    Only used if distill is above 0 and knowledge.at_inference is false."""
    phrases_video: NotNegative = 0.0
    """Weight of the loss by which each video, from its frames alone, learns the frozen teacher's distribution over the
    phrases of the batch."""
    phrases_text: NotNegative = 0.0
    """Weight of the loss by which each caption learns the frozen teacher's distribution over the phrases of the batch."""
    phrases_text_target: Literal["caption", "clip"] = "caption"
    """What the teacher reads for `phrases_text`. caption: the caption itself, so that the text tower keeps the words that
    other writers use. clip: its clip, so that captions of a clip by different writers learn one description."""
    keep: NotNegative = 0.0
    """Weight of the loss that keeps the similarities of the captions and videos of a batch near those of the frozen teacher
    (learning without forgetting). It needs no phrases."""
    temperature: Positive = 8.0
    """Temperature of both distributions in `distill` and `keep`; higher is softer. At CLIP's scale of 100, similarities at
    temperature 1 are nearly hard labels. TensorBoard shows how many candidates the targets have (`distill/candidates`)."""
    distill_warmup: Fraction = 0.1
    """Fraction of all steps in which the weight of the distillation loss rises linearly to `distill`, since its teacher
    learns too; 0 for the whole weight from the start."""
    knowledge_temperature: Positive | None = 0.01
    """Temperature of the loss `knowledge`: its logits are cosines divided by it, and it trains neither logit scale nor bias.
    0.01 is that of CLIP's published weights. null: it shares the learned scale and trains it, as in earlier versions."""
    shared_captions: Literal["negative", "ignored"] = "negative"
    """How the contrastive, informed and knowledge losses count a caption and another clip of the batch that has an equal
    caption. negative: as a negative pair, as published. ignored: neither as a positive nor as a negative pair."""

    @property
    def weights(self) -> dict[str, float]:
        """Term -> weight."""
        return {term: getattr(self, term) for term in LOSS_TERM_NAMES}


class TrainConfig(Section):
    """How the student is optimised."""

    epochs: Count = 5
    """Number of epochs."""
    global_batch_size: Annotated[int, Field(ge=2)] = 128
    """Number of caption-clip pairs per optimizer step, summed over all workers."""
    captions_per_clip: Count | None = None
    """Number of visits of each clip per epoch, each with the next of its captions. null or all: an epoch visits each caption
    once, also where clips have different numbers of captions."""
    lr: Positive = 1e-4
    """Peak learning rate of all parameters outside of the backbone."""
    backbone_lr_scale: NotNegative = 1e-3
    """Factor of the backbone's learning rate: it is lr times this; 0 freezes the backbone."""
    freeze: tuple[str, ...] = ()
    """Parts of the backbone that are not trained: vision or text for a whole tower; vision.4 or text.6 for its first 4 or 6
    blocks and all that is computed before them. Frozen parts need no memory for activations."""
    weight_decay: NotNegative = 0.2
    """Weight decay of AdamW, for all parameters but biases, layer norms and the logit scale."""
    warmup_fraction: Fraction = 0.1
    """Fraction of all steps with linear warm-up of the learning rate; cosine decay follows."""
    clip_grad_norm: Positive = 1.0
    """Maximal norm of the gradient; larger gradients are scaled down to it."""
    grad_checkpointing: bool = False
    """Whether the towers recompute the activations of their blocks in the backward pass, instead of keeping them: it takes
    less memory and more time, with the same gradient."""
    micro_batch_size: Count | None = None
    """Number of pairs that each worker embeds at a time, null for all: a smaller number takes less memory for activations,
    with the same gradient of the global batch. Each pair then passes the towers forward twice."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """bf16: bfloat16 autocast. fp32: single precision. auto: bf16 on GPUs, fp32 on CPUs, also where a CPU
    computes bf16 natively."""
    start_from: AnyPath | None = None
    """Folder of a run, whose best checkpoint is taken, or of a checkpoint: training starts from its weights, with a new
    optimizer and schedule. null: the backbone starts from model.weights, and all other parts at random."""

    @field_validator("captions_per_clip", mode="before")
    @classmethod
    def _all_is_no_number(cls, number: Any) -> Any:
        return None if number == "all" else number

    @field_validator("freeze")
    @classmethod
    def _parts_are_known(cls, parts: tuple[str, ...]) -> tuple[str, ...]:
        for part in parts:
            if not re.fullmatch(r"(vision|text)(\.[1-9]\d*)?", part):
                raise ValueError(
                    f"{part!r} is no part of the backbone: write vision, text, or a number of their first blocks, as in "
                    "vision.4 or text.6"
                )
        towers = [part.partition(".")[0] for part in parts]
        if len(set(towers)) < len(towers):
            raise ValueError("name each tower once")
        return parts


class EvaluateConfig(Section):
    """How metrics are computed. These settings change memory, speed and additional metrics, never the plain metrics."""

    batch_size: Count = 64
    """Number of clips, or of captions, to embed at a time."""
    chunk_size: Count = 128
    """Number of captions and of clips per tile of the similarity matrix; smaller tiles need less memory."""
    dsl: bool = False
    """Whether `waver evaluate` also reports metrics after dual softmax (DSL), which uses all queries of a split."""
    dsl_temperature: Positive = 1.0
    """Temperature of the dual softmax; 1 as published for inference."""
    qb_norm: bool = False
    """Whether `waver evaluate` also reports text-to-video metrics after QB-Norm with a query bank of training captions."""
    qb_norm_beta: Positive = 20.0
    """Inverse temperature of QB-Norm; 20 as published."""
    qb_norm_top_k: Count = 1
    """QB-Norm's activation set has the clips among the top k of any caption in the query bank; k is 1 as published."""
    qb_norm_queries: Count | None = None
    """Size of the query bank, evenly spaced training captions; null for all training captions, as published."""


MAX_PROFILED_STEPS = 50


class TrackingConfig(Section):
    """What a run writes for TensorBoard. Metrics do not depend on it."""

    images: bool = True
    """Whether to write pictures of retrieved clips and of attention, and embeddings, after each evaluation."""


class ProfileConfig(Section):
    """Profiling of training steps."""

    steps: tuple[Count, Count] | None = None
    """First and last optimizer step to profile; the first worker writes the trace to profile/ in the folder of the run.
    null: no profiling."""

    @field_validator("steps")
    @classmethod
    def _steps_are_in_order(cls, steps: tuple[int, int] | None) -> tuple[int, int] | None:
        if steps and not steps[0] <= steps[1] < steps[0] + MAX_PROFILED_STEPS:
            raise ValueError(
                f"the first step must not be after the last, and at most {MAX_PROFILED_STEPS} steps can be profiled: "
                "viewers cannot open longer traces"
            )
        return steps


class CheckpointConfig(Section):
    """When a run saves checkpoints, from which it can be resumed. Metrics do not depend on it."""

    every_steps: Count | None = None
    """Number of optimizer steps between checkpoints within an epoch; null to save only at the end of each epoch."""
