"""resources."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from waver.tools.object_store import is_url, local_copy
from waver.tools.section import AnyPath, AnyPlace, Count, NodeLabels, NotNegative, Positive, Section


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
