"""The sections `text`, `model`, `similarity`, `vocabulary` and `knowledge`."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from waver.config.downloads import BackboneName, WeightsName, with_own_weights
from waver.config.teacher import TeacherConfig
from waver.tools.section import AnyPath, Count, Positive, Section


class TextConfig(Section):
    """How a caption becomes tokens."""

    max_words: Annotated[int, Field(ge=3, le=77)] = 32
    """Maximal number of tokens per caption, including start and end token; longer captions are truncated."""
    prompt: str | None = "This is a video about {}."
    """Prompt template of captions, with {} for the caption; null for the caption alone."""

    @field_validator("prompt")
    @classmethod
    def _prompt_has_placeholder(cls, prompt: str | None) -> str | None:
        return prompt if prompt is None else _check_placeholder(prompt)


class LoraConfig(Section):
    """LoRA: freezes the pre-trained weights of both towers, and trains low-rank additions to their attention."""

    rank: Count = 8
    """Rank of the addition to each weight of attention (query, key, value, output)."""
    alpha: Positive = 16.0
    """Each addition is multiplied by alpha / rank."""
    where: Literal["vision", "text", "both"] = "both"
    """The tower that gets additions: vision, text or both."""


class ModelConfig(Section):
    """The student model."""

    backbone: BackboneName = "ViT-B-32-quickgelu"
    """Name of an open_clip model; hf-hub:owner/name or the folder of a downloaded model, from which the weights also come
    if model.weights is not set; or a model configuration of open_clip as a mapping (embed_dim, vision_cfg, text_cfg)."""
    weights: WeightsName | None = "openai"
    """Weights of the backbone: a file (OpenAI .pt, .safetensors, state dict), hf-hub:owner/name or the folder of a
    downloaded model, a pretrained tag of open_clip, or null for random weights."""
    pixel_mean: tuple[float, float, float] | None = None
    """Mean of red, green and blue (pixels between 0 and 1) for the normalisation of frames; null for that of the training
    of the weights."""
    pixel_std: tuple[Positive, Positive, Positive] | None = None
    """Standard deviation of red, green and blue for the same; null for that of the training of the weights."""
    frame_norm: Literal["none", "layer"] = "none"
    """layer: applies a layer norm to the embeddings of frames, before fusion and temporal aggregator. none: keeps the norm
    that the backbone gives them, which differs between backbones."""
    # Names of waver.model.temporal.TEMPORAL_AGGREGATORS.
    temporal: Literal["none", "seqTransf", "seqLSTM"] = "seqTransf"
    """Temporal aggregator of the frame embeddings: none, seqTransf (transformer) or seqLSTM."""
    temporal_layers: Count = 4
    """Number of layers of the temporal aggregator."""
    initialisation: Literal["torch", "published"] = "torch"
    """Initial weights of the heads of wti and of the fusion. torch: the heads have torch's usual weights of linear layers,
    the fusion those of its kind. published: both have weights from a normal distribution with standard deviation 0.02 and
    zero biases, as in the released code."""
    lora: LoraConfig | None = None
    """LoRA (rank, alpha, where): train low-rank additions to the frozen towers, with learning rate train.lr; null to train
    the towers. Checkpoints with LoRA do not contain the pre-trained weights: keep the file or tag of model.weights."""

    @model_validator(mode="before")
    @classmethod
    def _a_downloaded_model_has_its_own_weights(cls, section: Any) -> Any:
        return with_own_weights(section)


class SimilarityConfig(Section):
    """How the similarity of a text and a video is computed from their embeddings."""

    # Names of waver.model.interaction.INTERACTIONS.
    kind: Literal["dp", "ti", "wti", "xclip", "xti"] = "wti"
    """dp: dot product of the sentence and the mean frame. ti: token-wise interaction of words and frames. wti: the same with
    learned weights. xclip: mean of four similarities, of sentence or words with video or frames. xti: a transformer over
    each pair of text and video, much slower than the others."""
    wti_layers: Literal[1, 2, 3] = 2
    """Number of layers that compute the weights of wti."""


class VocabularyConfig(Section):
    """How `waver vocabulary` builds the dictionary of phrases from captions."""

    parser: str = "en_core_web_sm"
    """Name of the installed spaCy model that parses captions."""
    splits: Annotated[tuple[Literal["train", "validation", "test"], ...], Field(min_length=1)] = ("train",)
    """Splits whose captions are used. With validation or test, the dictionary and all results that use it are marked as
    leaky."""
    min_count: Count = 1
    """Minimal number of occurrences of a phrase; rarer phrases are dropped."""
    file: AnyPath | None = None
    """Text file with a phrase on each line, which is the dictionary in place of phrases from captions; null for captions."""
    leaky: bool = False
    """Whether the phrases of `file` may come from captions of validation or test: results are then marked as leaky."""


class KnowledgeConfig(Section):
    """Phrases that the frozen teacher matches to each clip, and how the student uses them."""

    top_k: Annotated[int, Field(ge=0)] = 0
    """Number of best-matching phrases per clip that the student uses; 0 to use no phrases."""
    fusion: Literal["none", "gated", "published"] = "gated"
    """How frames attend to the phrases of their clip. gated: by a block that changes nothing at first, and keeps the norm of
    the frames. published: by the block of the released code, which ends in a layer norm; `attention` is an old name of it.
    none: phrases do not change the frames."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout of the fusion in training: of its attention, and of what both of its layers add to the frames; 0.1 in the
    released code. What is dropped depends on seed, step and pair, not on the number of workers."""
    at_inference: bool = True
    """true: phrases are fused into the videos in evaluation and search too. false: only in training; inference uses frames
    alone."""
    # Kinds of waver.knowledge.control.
    control: Literal["none", "shuffled", "constant"] = "none"
    """Control experiment, in training, evaluation and search alike. none: clips get their own phrases. shuffled: each clip
    gets the phrases of another clip of its split, drawn with `seed`. constant: all clips get those of one training clip."""
    effective_phrases: Annotated[float, Field(gt=1)] = 10.0
    """Number of phrases that share the probability in the frozen teacher's distributions: exp(entropy), the mean over
    training clips and that over training captions. The temperatures of `loss.phrases_video` and `loss.phrases_text` follow
    from it."""
    num_matches: Count = 30
    """Number of phrases per clip that `waver match` stores; top_k must not exceed it."""
    teacher: TeacherConfig | None = None
    """The frozen teacher (backbone, weights, frames), which matches phrases and whose distributions are learned; its width
    may be another than the student's. null: the student's own backbone on the same frames, as published."""
    matching: Literal["cosine", "centred"] = "cosine"
    """What decides which phrases are a clip's best. cosine: the teacher's cosines, as published. centred: these
    cosines less each phrase's mean over the training clips, so that a phrase that is near everything (a hub) is not the best
    of many clips."""
    prompt: str = "This is a video about {}."
    """Prompt template of phrases for the teacher, with {} for the phrase."""
    released: tuple[AnyPath, ...] = ()
    """JSON files with the matched phrases that the authors released, to import instead of running the teacher. They also
    come from test captions, so results are marked as leaky."""

    @field_validator("fusion", mode="before")
    @classmethod
    def _attention_was_the_published_block(cls, fusion: Any) -> Any:
        return "published" if fusion == "attention" else fusion

    @field_validator("prompt")
    @classmethod
    def _prompt_has_placeholder(cls, prompt: str) -> str:
        return _check_placeholder(prompt)


def _check_placeholder(prompt: str) -> str:
    if prompt.count("{}") != 1:
        raise ValueError("it must contain {} exactly once, in place of the text")
    return prompt
