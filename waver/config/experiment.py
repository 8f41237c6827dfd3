"""The configuration of an experiment, and the folders and hashes that follow from it."""

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, model_validator

from waver.config.contradictions import contradictions
from waver.config.earlier import hashed_fusion, hashed_loss, without_settings_before
from waver.config.model import KnowledgeConfig, ModelConfig, SimilarityConfig, TextConfig, VocabularyConfig
from waver.config.preprocessing import Preprocessing, PreprocessingError, find_preprocessing
from waver.config.resources import EmbeddingsConfig, ResourcesConfig, StorageConfig
from waver.config.teacher import experiment_of_teacher
from waver.config.training import (
    PHRASE_TERMS,
    CheckpointConfig,
    EvaluateConfig,
    LossConfig,
    ProfileConfig,
    TrackingConfig,
    TrainConfig,
)
from waver.config.video import IngestConfig, VideoConfig
from waver.data.annotations import AnyData
from waver.data.annotations.captions import USUAL_FRACTION
from waver.tools.hub import HubError
from waver.tools.section import Section

_WITHOUT_EFFECT_ON_METRICS = {
    "resources",
    "evaluate",
    "storage",
    "ingest",
    "embeddings",
    "checkpoint",
    "tracking",
    "profile",
}
_TRAIN_WITHOUT_EFFECT_ON_METRICS = ("micro_batch_size", "grad_checkpointing")
"""Settings of the section `train` that change only memory and time: a run may continue with other values."""
_TOWERS: tuple[Literal["vision"], Literal["text"]] = ("vision", "text")
ALLOW_CONTRADICTIONS = {"allow_contradictions": True}
"""Context of pydantic's validation in which settings need not fit together."""
STORED = {"stored": True}
"""Context of pydantic's validation for the file of a run, which may be older than a check of a setting without effect."""


class ExperimentConfig(Section):
    """One experiment."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Name of the experiment and of the folder of its run: letters, digits, dots, dashes and underscores, no slash."""
    seed: int = 0
    """Seed of training: initialisation and order of the data."""
    data: Annotated[AnyData, Field(discriminator="format")]
    video: VideoConfig = VideoConfig()
    ingest: IngestConfig = IngestConfig()
    embeddings: EmbeddingsConfig = EmbeddingsConfig()
    text: TextConfig = TextConfig()
    model: ModelConfig = ModelConfig()
    similarity: SimilarityConfig = SimilarityConfig()
    vocabulary: VocabularyConfig = VocabularyConfig()
    knowledge: KnowledgeConfig = KnowledgeConfig()
    loss: LossConfig = LossConfig()
    train: TrainConfig = TrainConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    tracking: TrackingConfig = TrackingConfig()
    profile: ProfileConfig = ProfileConfig()
    resources: ResourcesConfig = ResourcesConfig()
    # A factory: the default path is relative to the working folder of the command, not of the import.
    storage: StorageConfig = Field(default_factory=StorageConfig)

    @model_validator(mode="after")
    def _fits_together(self, info: Any) -> "ExperimentConfig":
        if info.context != ALLOW_CONTRADICTIONS and (
            found := list(contradictions(self, stored=info.context == STORED))
        ):
            raise ValueError("\n".join(found))
        return self

    @property
    def preprocessing(self) -> Preprocessing:
        """How frames become the input of the backbone: as its weights were trained, unless a setting says otherwise.

        Raises:
            PreprocessingError: see `find_preprocessing`.
        """
        model, video = self.model, self.video
        asked = {
            "size": video.size,
            "resize": video.resize,
            "interpolation": video.interpolation,
            "mean": model.pixel_mean,
            "std": model.pixel_std,
        }
        asked = {name: value for name, value in asked.items() if value is not None}
        if len(asked) == 5:
            return Preprocessing(**asked, source="the values of the configuration")
        found = find_preprocessing(model.backbone, model.weights, asked)
        return replace(found, **asked)

    @property
    def fusion_kind(self) -> Literal["none", "gated", "published"]:
        """How frames attend to phrases: `knowledge.fusion`, or none where nothing reads informed videos."""
        knowledge = self.knowledge
        is_read = knowledge.top_k > 0 and (knowledge.at_inference or self.loss.distill > 0)
        return knowledge.fusion if is_read else "none"

    @property
    def uses_fusion(self) -> bool:
        """Whether frames attend to phrases, at inference or as the target of distillation."""
        return self.fusion_kind != "none"

    @property
    def uses_knowledge(self) -> bool:
        """Whether training needs the phrases of clips."""
        return self.uses_fusion or self.loss.knowledge > 0 or self.uses_soft_targets

    @property
    def uses_soft_targets(self) -> bool:
        """Whether training compares clips or captions with phrases as the frozen teacher does."""
        return any(self.loss.weights[term] > 0 for term in PHRASE_TERMS)

    @property
    def uses_teacher(self) -> bool:
        """Whether training reads the frozen teacher's embeddings of clips and captions."""
        return self.uses_soft_targets or self.loss.keep > 0

    @property
    def teacher(self) -> "ExperimentConfig":
        """The experiment in which the frozen teacher embeds clips and captions, see `experiment_of_teacher`."""
        return experiment_of_teacher(self)

    @property
    def has_other_teacher(self) -> bool:
        """Whether the frozen teacher is another than the student's own backbone on the same frames."""
        return self.teacher is not self

    @property
    def informed_at_inference(self) -> bool:
        """Whether evaluation needs the phrases of clips."""
        return self.uses_fusion and self.knowledge.at_inference

    @property
    def frozen_towers(self) -> tuple[Literal["vision", "text"], ...]:
        """The towers of the backbone that training does not change."""
        if self.model.lora:
            adapted = self.model.lora.where
            return tuple(tower for tower in _TOWERS if adapted not in (tower, "both"))
        if self.train.backbone_lr_scale == 0:
            return _TOWERS
        return tuple(tower for tower in _TOWERS if tower in self.train.freeze)

    @property
    def run_folder(self) -> Path:
        """Folder of the run: configuration, checkpoints, events and metrics."""
        return self.storage.folder / "runs" / self.name

    @property
    def clip_store(self) -> Path:
        """Folder of the clip store, which experiments with the same videos and decoding settings share."""
        key = {
            "videos": str(self.data.videos),
            "video": _without_usual(self.video.model_dump() | _of_frames(asdict(self.preprocessing))),
            "frames": (
                self.ingest.frame_format,
                self.ingest.jpeg_quality if self.ingest.frame_format == "jpeg" else None,
            ),
        }
        if self.data.clip_rule:  # the same clip id may be the whole file in another data set
            key["clips"] = self.data.clip_rule
        return self.storage.folder / "clips" / f"{self.data.videos.name}-{_short_hash(key)}"

    @property
    def frame_embeddings(self) -> Path:
        """Folder of the embeddings of frames, which experiments with the same clips and backbone share."""
        key = {"clips": self.clip_store.name, "precision": self.embeddings.precision} | self._tower_key()
        key["pixels"] = (self.preprocessing.mean, self.preprocessing.std)
        return self.storage.folder / "embeddings" / f"{self.data.videos.name}-{_short_hash(key)}"

    @property
    def token_embeddings(self) -> Path:
        """Folder of the embeddings of captions, which experiments with the same backbone and section `text` share."""
        key = {"text": self.text.model_dump(), "precision": self.embeddings.precision} | self._tower_key()
        return self.storage.folder / "embeddings" / f"captions-{_short_hash(key)}"

    def _tower_key(self) -> dict[str, Any]:
        """Returns what the weights of the towers depend on: random ones depend on the seed."""
        weights = self.seed if self.model.weights is None else self.model.weights
        return {"backbone": self.model.backbone, "weights": weights, "size": self.preprocessing.size}

    @property
    def dictionary(self) -> Path:
        """Folder of the dictionary, which experiments with the same captions and vocabulary settings share."""
        key = {
            "data": _hashed(
                self.data.model_dump(mode="json", exclude={"annotations", "videos", "allow_missing_videos"})
            ),
            "annotations": str(self.data.annotations),
            "vocabulary": without_settings_before("vocabulary", self.vocabulary.model_dump(mode="json")),
        }
        return self.storage.folder / "dictionaries" / f"{self.data.annotations.stem}-{_short_hash(key)}"

    @property
    def knowledge_store(self) -> Path:
        """Folder of the knowledge, which experiments with the same clips, dictionary and teacher share."""
        released = [str(path) for path in self.knowledge.released]
        key = {
            "clips": self.clip_store.name,
            "phrases": released or self.dictionary.name,
            "teacher": (self.model.backbone, self.model.weights, self.knowledge.prompt),
            "num_matches": self.knowledge.num_matches,
        }
        statistics = (self.preprocessing.mean, self.preprocessing.std)
        if statistics != (Preprocessing.mean, Preprocessing.std):  # earlier versions knew CLIP's only
            key["pixels"] = statistics
        if self.knowledge.matching != "cosine":
            key["matching"] = self.knowledge.matching
        if self.has_other_teacher:
            key["matched_by"] = self.teacher.knowledge_store.name
        return self.storage.folder / "knowledge" / f"{self.data.videos.name}-{_short_hash(key)}"

    def identity(self) -> dict[str, Any]:
        """Returns the settings that metrics depend on, without those of resources, storage and output.

        If a repository of the hub decides a setting and the hub cannot be reached, the setting stays null, so that two
        experiments can be compared without network.
        """
        settings = self.model_dump(mode="json", exclude=_WITHOUT_EFFECT_ON_METRICS)
        try:
            frames = asdict(self.preprocessing)
        except (HubError, PreprocessingError):
            frames = {}
        statistics = {f"pixel_{name}": list(frames[name]) for name in ("mean", "std") if name in frames}
        if (self.frozen_towers or self.uses_teacher) and self.embeddings.use != "never":  # else runs read pixels alone
            settings["embeddings"] = {"precision": self.embeddings.precision}
        return settings | {
            "data": _hashed(settings["data"]),
            "video": _without_usual(settings["video"] | _of_frames(frames)),
            "model": _without_usual(without_settings_before("model", settings["model"]) | statistics),
            "vocabulary": without_settings_before("vocabulary", settings["vocabulary"]),
            "knowledge": without_settings_before("knowledge", settings["knowledge"])
            | {"fusion": hashed_fusion(self.knowledge.fusion, is_used=self.uses_fusion)},
            "loss": hashed_loss(settings["loss"]),
            "train": {
                name: value
                for name, value in settings["train"].items()
                if name not in _TRAIN_WITHOUT_EFFECT_ON_METRICS
                and (name, value) != ("start_from", None)  # earlier versions did not have it
            },
            "ingest": {"frame_format": self.ingest.frame_format, "jpeg_quality": self.ingest.jpeg_quality},
        }

    def digest(self) -> str:
        """Returns a short hash of `identity`."""
        return _short_hash(self.identity())

    def to_yaml(self) -> str:
        """Returns the resolved configuration as YAML that `load_config` can read."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _hashed(data: dict[str, Any]) -> dict[str, Any]:
    """Returns the section `data` as it is hashed: what is as in earlier versions of waver has their hash.

    They wrote the fraction of a large data set down, and trained on all styles.
    """
    usual = data.get("validation_fraction", 0.0) is None
    data = {key: value for key, value in data.items() if (key, value) != ("train_styles", None)}
    return data | {"validation_fraction": USUAL_FRACTION} if usual else data


_USUAL = {
    "resize": Preprocessing.resize,
    "interpolation": Preprocessing.interpolation,
    "pixel_mean": list(Preprocessing.mean),
    "pixel_std": list(Preprocessing.std),
}
"""Settings that earlier versions of waver did not have -> the value that these versions used; this value is not hashed, so
that hashes stay the same."""


def _of_frames(preprocessing: dict[str, Any]) -> dict[str, Any]:
    """Returns the values of a preprocessing that are also settings of the section `video`."""
    return {name: preprocessing[name] for name in ("size", "resize", "interpolation") if name in preprocessing}


def _without_usual(section: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in section.items() if key not in _USUAL or value != _USUAL[key]}


def _short_hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:12]
