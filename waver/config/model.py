"""model."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from waver.tools.section import AnyPath, Count, Section


class TextConfig(Section):
    """How a caption becomes tokens."""

    max_words: Annotated[int, Field(ge=3, le=77)] = 32
    """Tokens of a caption, start and end among them."""
    prompt: str | None = "This is a video about {}."
    """Sentence into which every caption is put; null for none."""

    @field_validator("prompt")
    @classmethod
    def _prompt_has_a_place(cls, prompt: str | None) -> str | None:
        return prompt if prompt is None else _with_a_place(prompt)


class ModelConfig(Section):
    """The student."""

    backbone: str | dict[str, Any] = "ViT-B-32-quickgelu"
    """A name that open_clip knows, or the mapping that its own model files hold (embed_dim, vision_cfg, text_cfg)."""
    weights: str | None = "openai"
    """A file (OpenAI .pt, .safetensors, state dict), a pretrained tag of open_clip, or null for random weights."""
    temporal: Literal["none", "seqTransf", "seqLSTM"] = (
        "seqTransf"  # names of waver.model.temporal.TEMPORAL_AGGREGATORS
    )
    temporal_layers: Count = 4

    @field_validator("weights")
    @classmethod
    def _file_is_found_from_everywhere(cls, weights: str | None) -> str | None:
        path = Path(weights or "").expanduser()
        return str(path.absolute()) if path.is_file() else weights


class SimilarityConfig(Section):
    """How a text meets a video."""

    kind: Literal["dp", "ti", "wti", "xti"] = "wti"  # names of waver.model.interaction.INTERACTIONS
    wti_layers: Literal[1, 2, 3] = 2


class VocabularyConfig(Section):
    """The dictionary of phrases, made of captions by `waver vocabulary`."""

    parser: str = "en_core_web_sm"
    """Name of an installed spaCy model."""
    splits: Annotated[tuple[Literal["train", "validation", "test"], ...], Field(min_length=1)] = ("train",)
    """Whose captions are read. Any split but train makes the dictionary, and every result it touches, `leaky`."""
    min_count: Count = 1
    """Phrases that occur less often are left out."""


class KnowledgeConfig(Section):
    """What the frozen teacher knows of a clip: the phrases that describe it; and how the student learns it."""

    top_k: Annotated[int, Field(ge=0)] = 0
    """Phrases of a clip that the student is given, best first; 0 for no knowledge."""
    fusion: Literal["none", "attention"] = "attention"
    """attention: frames attend to the phrases of their clip. none: frames stay as they are."""
    at_inference: bool = True
    """true: clips are informed by their phrases in evaluation too. false: phrases teach in training, and inference runs on
    vision alone."""
    num_matches: Count = 30
    """Phrases that `waver match` keeps for each clip; top_k can be anything up to it."""
    prompt: str = "This is a video about {}."
    """Sentence into which the teacher puts a phrase."""
    released: tuple[AnyPath, ...] = ()
    """Files of matched phrases as the authors released them (JSON), to be imported in place of matching; they are leaky."""

    @field_validator("prompt")
    @classmethod
    def _prompt_has_a_place(cls, prompt: str) -> str:
        return _with_a_place(prompt)


def _with_a_place(prompt: str) -> str:
    if prompt.count("{}") != 1:
        raise ValueError("it must contain {} exactly once, where the text goes")
    return prompt
