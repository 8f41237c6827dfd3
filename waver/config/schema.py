"""Everything that may stand in an experiment, section by section."""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, field_validator, model_validator

from waver.config.data import AnyData
from waver.config.section import AnyPath, AnyPlace, Count, Fraction, NodeLabels, NotNegative, Positive, Section
from waver.objects import is_url, local_copy


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
    temporal: Literal["none", "seqTransf", "seqLSTM"] = "seqTransf"
    temporal_layers: Count = 4

    @field_validator("weights")
    @classmethod
    def _file_is_found_from_everywhere(cls, weights: str | None) -> str | None:
        path = Path(weights or "").expanduser()
        return str(path.absolute()) if path.is_file() else weights


class SimilarityConfig(Section):
    """How a text meets a video."""

    kind: Literal["dp", "ti", "wti", "xti"] = "wti"
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


class WorkersRange(Section):
    """As many workers as there is room for, within limits."""

    min: Count
    max: Count

    @model_validator(mode="after")
    def _is_in_order(self) -> "WorkersRange":
        if self.min > self.max:
            raise ValueError(f"min = {self.min} is more than max = {self.max}")
        return self


class ResourcesConfig(Section):
    """What a run asks of the cluster."""

    workers: Count | WorkersRange = 1
    """A number, or {min: 2, max: 8}: training takes what there is room for, goes on with fewer when a node is lost and with
    more when one comes. The global batch stays the same."""
    resize_every_s: Positive = 60.0
    """How often training looks whether there is room for more workers; it saves itself and starts again with them. Others
    that wait for room may be faster then."""
    cpus_per_worker: Positive = 1.0
    gpus_per_worker: NotNegative | None = None
    """By default 1 where the cluster has GPUs, else 0."""
    loaders_per_worker: Annotated[int, Field(ge=0)] = 2
    """Processes that read batches from the clip store ahead, for each worker; 0: a thread of the worker reads one ahead."""
    wait_s: NotNegative = 0.0
    """How long to wait for a cluster that is still growing before saying that it is too small. What others use of one that
    is large enough is waited for until they leave."""
    max_failures: Annotated[int, Field(ge=0)] = 3
    """How often training goes on from its last checkpoint after a worker was lost."""
    timeout_s: Positive = 1800.0
    """How long workers wait for one another in an exchange before the silent one counts as lost."""
    node_labels: Annotated[NodeLabels, Field(default_factory=dict)]
    """Labels of the nodes that match, train and evaluate; {} for all nodes."""

    @property
    def is_elastic(self) -> bool:
        """Whether the number of workers may change while they work."""
        return isinstance(self.workers, WorkersRange)

    @property
    def min_workers(self) -> int:
        """Without so many nothing starts."""
        return self.workers.min if isinstance(self.workers, WorkersRange) else self.workers

    @property
    def max_workers(self) -> int:
        """More are never taken."""
        return self.workers.max if isinstance(self.workers, WorkersRange) else self.workers


class StorageConfig(Section):
    """Where everything is kept."""

    path: Annotated[AnyPlace, Field(validate_default=True)] = "storage"
    """Folder that every node of the cluster sees, or one in an object store, s3://bucket/folder (also gs:// and abfs://):
    `clips/`, `dictionaries/`, `knowledge/` and `runs/`."""
    cache: AnyPath | None = None
    """Folder on the disk of each node for copies of what it uses of an object store; by default ~/.cache."""

    @property
    def folder(self) -> Path:
        """The folder to work in: that of the path, or the local copy of that of the URL."""
        return local_copy(self.path, self.cache) if is_url(self.path) else Path(self.path)


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
        if self.data.format == "didemo":
            key["clips"] = "first 31 seconds"  # under the id that another data set gives the whole file
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


def _with_a_place(prompt: str) -> str:
    if prompt.count("{}") != 1:
        raise ValueError("it must contain {} exactly once, where the text goes")
    return prompt


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:12]
