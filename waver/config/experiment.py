"""Everything that may stand in an experiment, section by section."""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, model_validator

from waver.config.model import KnowledgeConfig, ModelConfig, SimilarityConfig, TextConfig, VocabularyConfig
from waver.config.resources import ResourcesConfig, StorageConfig
from waver.config.training import (
    CheckpointConfig,
    EvaluateConfig,
    LossConfig,
    ProfileConfig,
    TrackingConfig,
    TrainConfig,
)
from waver.config.video import IngestConfig, VideoConfig
from waver.data.annotations import AnyData
from waver.tools.section import Section

_CHANGE_NO_FIGURE = {"resources", "evaluate", "storage", "ingest", "checkpoint", "tracking", "profile"}


class ExperimentConfig(Section):
    """One experiment."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Names the folder of the run."""
    seed: int = 0
    data: Annotated[AnyData, Field(discriminator="format")]
    video: VideoConfig = VideoConfig()
    ingest: IngestConfig = IngestConfig()
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
    storage: StorageConfig = Field(
        default_factory=StorageConfig
    )  # in the folder where waver runs, not where it was imported

    @model_validator(mode="after")
    def _fits_together(self) -> "ExperimentConfig":
        loss, knowledge = self.loss, self.knowledge
        if not any((loss.contrastive, loss.knowledge, loss.distill)):
            raise ValueError("loss: every weight is 0, nothing would be learned; set loss.contrastive to 1")
        for term in ("knowledge", "distill"):
            if getattr(loss, term) and not knowledge.top_k:
                raise ValueError(
                    f"loss.{term} = {getattr(loss, term):g} learns from phrases, and knowledge.top_k = 0 gives none: set it "
                    "to 1 or more"
                )
        if loss.distill and knowledge.fusion == "none":
            raise ValueError(
                f"loss.distill = {loss.distill:g} learns from informed videos, and knowledge.fusion = none informs none: "
                "set it to attention"
            )
        if loss.distill and not knowledge.at_inference and not loss.informed:
            raise ValueError(
                f"loss.distill = {loss.distill:g} learns from informed videos, which with loss.informed = 0 would never "
                "learn anything themselves: set it to 1"
            )
        if not loss.contrastive and (not loss.distill or knowledge.at_inference):
            # Parameters would be left without gradient, for which DDP waits.
            raise ValueError(
                "loss.contrastive = 0 leaves the videos that are retrieved without captions to learn from: set it above 0; "
                "only with knowledge.at_inference = false can loss.distill take its place"
            )
        if knowledge.top_k > knowledge.num_matches:
            raise ValueError(
                f"knowledge.top_k = {knowledge.top_k} is more than knowledge.num_matches = {knowledge.num_matches}, which "
                "are kept for each clip: raise the latter"
            )
        if self.uses_knowledge and self.model.weights is None:
            raise ValueError(
                "model.weights = null makes a teacher with random weights, who knows nothing: name a file or a pretrained "
                "tag, or set knowledge.top_k to 0"
            )
        if 0 < (self.resources.gpus_per_worker or 0) < 1 and self.resources.max_workers > 1:
            raise ValueError(
                f"resources.gpus_per_worker = {self.resources.gpus_per_worker:g} would put several workers of a run on one "
                "GPU, which NCCL refuses: take 1 GPU for each worker, or 1 worker"
            )
        if 2 * self.resources.max_workers > self.train.global_batch_size:
            raise ValueError(
                f"resources.workers = {self.resources.max_workers} is more than half of train.global_batch_size = "
                f"{self.train.global_batch_size}: in a small batch some workers would have no pair; lower the former"
            )
        return self

    @property
    def uses_fusion(self) -> bool:
        """Whether frames attend to phrases, at inference or for those who learn from it in training."""
        knowledge = self.knowledge
        attends = knowledge.top_k > 0 and knowledge.fusion == "attention"
        return attends and (knowledge.at_inference or self.loss.distill > 0)

    @property
    def uses_knowledge(self) -> bool:
        """Whether training needs the phrases of clips."""
        return self.uses_fusion or self.loss.knowledge > 0

    @property
    def informed_at_inference(self) -> bool:
        """Whether evaluation needs the phrases of clips."""
        return self.uses_fusion and self.knowledge.at_inference

    @property
    def run_folder(self) -> Path:
        """Where the run keeps its configuration, checkpoints, events and metrics."""
        return self.storage.folder / "runs" / self.name

    @property
    def clip_store(self) -> Path:
        """Clip store of these videos decoded in this way: experiments that agree on both share it."""
        key = {
            "videos": str(self.data.videos),
            "video": self.video.model_dump(),
            "frames": (
                self.ingest.frame_format,
                self.ingest.jpeg_quality if self.ingest.frame_format == "jpeg" else None,
            ),
        }
        if self.data.clip_rule:  # under the id that another data set gives the whole file
            key["clips"] = self.data.clip_rule
        return self.storage.folder / "clips" / f"{self.data.videos.name}-{_digest(key)}"

    @property
    def dictionary(self) -> Path:
        """Dictionary of phrases of these captions."""
        key = {
            "data": self.data.model_dump(mode="json", exclude={"annotations", "videos", "allow_missing_videos"}),
            "annotations": str(self.data.annotations),
            "vocabulary": self.vocabulary.model_dump(mode="json"),
        }
        return self.storage.folder / "dictionaries" / f"{self.data.annotations.stem}-{_digest(key)}"

    @property
    def knowledge_store(self) -> Path:
        """What this teacher knows of these clips in the words of this dictionary."""
        released = [str(path) for path in self.knowledge.released]
        key = {
            "clips": self.clip_store.name,
            "phrases": released or self.dictionary.name,
            "teacher": (self.model.backbone, self.model.weights, self.knowledge.prompt),
            "num_matches": self.knowledge.num_matches,
        }
        return self.storage.folder / "knowledge" / f"{self.data.videos.name}-{_digest(key)}"

    def identity(self) -> dict[str, Any]:
        """The settings that a result depends on, without those that only say where and how fast it is computed."""
        settings = self.model_dump(mode="json", exclude=_CHANGE_NO_FIGURE)
        return settings | {
            "ingest": {"frame_format": self.ingest.frame_format, "jpeg_quality": self.ingest.jpeg_quality}
        }

    def digest(self) -> str:
        """Short hash of `identity`."""
        return _digest(self.identity())

    def to_yaml(self) -> str:
        """The resolved configuration, as `load_config` reads it."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:12]
