"""The sections `resources`, `storage` and `embeddings`."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from waver.tools.object_store import is_url, local_copy
from waver.tools.section import AnyPath, AnyPlace, Count, NodeLabels, NotNegative, Positive, Section


class WorkersRange(Section):
    """A range of the number of workers, which follows the free resources of the cluster."""

    min: Count
    """Minimal number of workers; training waits until they have resources."""
    max: Count
    """Maximal number of workers."""

    @model_validator(mode="after")
    def _is_in_order(self) -> "WorkersRange":
        if self.min > self.max:
            raise ValueError(f"min = {self.min} is more than max = {self.max}")
        return self


class ResourcesConfig(Section):
    """Resources of the cluster that a run uses."""

    workers: Count | WorkersRange = 1
    """Number of workers, or a range {min: 2, max: 8} for elastic training: it uses as many workers as have resources,
    continues with fewer when a node is lost and with more when one joins. The global batch size stays the same."""
    resize_every_s: Positive = 60.0
    """How often elastic training checks for resources for more workers, seconds. To add workers it saves a checkpoint and
    restarts; other jobs that wait may take the resources first."""
    cpus_per_worker: Positive = 1.0
    """Number of CPUs per worker."""
    gpus_per_worker: NotNegative | None = None
    """Number of GPUs per worker; by default 1 if the cluster has GPUs, else 0."""
    loaders_per_worker: Annotated[int, Field(ge=0)] = 0
    """Number of processes per worker that read batches ahead from the clip store, with Ray Data. 0: threads of the worker
    read one batch ahead, which is usually faster and starts at once. Processes can pay off if threads are too slow and the
    node has idle CPUs, for example with JPEG frames or with a clip store in an object store."""
    wait_s: NotNegative = 0.0
    """How long to wait for a growing cluster to become large enough, seconds; then the command fails. If it is large enough
    but in use, the command waits without limit."""
    max_failures: Annotated[int, Field(ge=0)] = 3
    """How often training resumes from its last checkpoint after it lost a worker."""
    timeout_s: Positive = 1800.0
    """Time limit of communication between workers, seconds; a worker that does not answer in time counts as lost."""
    node_labels: Annotated[NodeLabels, Field(default_factory=dict)]
    """Labels, as given to `ray start --labels`, of the nodes that match phrases, train and evaluate; {} for all nodes."""

    @property
    def is_elastic(self) -> bool:
        """Whether the number of workers may change during training."""
        return isinstance(self.workers, WorkersRange)

    @property
    def min_workers(self) -> int:
        """Smallest number of workers that training starts with."""
        return self.workers.min if isinstance(self.workers, WorkersRange) else self.workers

    @property
    def max_workers(self) -> int:
        """Largest number of workers."""
        return self.workers.max if isinstance(self.workers, WorkersRange) else self.workers


class StorageConfig(Section):
    """Where inputs and results of all stages are stored."""

    path: Annotated[AnyPlace, Field(validate_default=True)] = "storage"
    """Folder that every node of the cluster can read and write, or a folder in an object store: s3://bucket/folder (also
    gs:// and abfs://). It contains `clips/`, `embeddings/`, `dictionaries/`, `knowledge/` and `runs/`."""
    cache: AnyPath | None = None
    """Folder on the local disk of each node for copies of files in an object store; by default ~/.cache."""

    @property
    def folder(self) -> Path:
        """The local folder: `path` itself or, for a URL, its local copy."""
        return local_copy(self.path, self.cache) if is_url(self.path) else Path(self.path)


class EmbeddingsConfig(Section):
    """Embeddings of frames and captions by frozen towers, computed once and read in place of pixels and words."""

    use: Literal["auto", "never"] = "auto"
    """auto: matching, zero-shot evaluation, and runs with a frozen tower read embeddings, and compute those that are missing
    (of captions: see `captions`). never: every stage sends pixels and words through the towers."""
    precision: Literal["fp16", "bf16", "fp32"] = "fp16"
    """Precision of the stored values, which are computed in fp32. fp32 takes twice the space of fp16; training
    that computes in fp32 (`train.precision`) then gives the same metrics as from pixels."""
    captions: Literal["auto"] | bool = "auto"
    """Whether embeddings of the tokens of captions are stored too, for runs whose text tower is frozen: some 20 KB a caption
    (ViT-B/32, fp16). auto: `waver embed` and runs that read each caption more than once on average compute them; other
    stages read them if none is missing. true: every stage computes those that are missing. false: no stage reads them."""
