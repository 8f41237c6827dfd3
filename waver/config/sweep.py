"""The configuration of a sweep."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import ConfigDict, Field, field_validator, model_validator

from waver.tools.section import Count, Section

Metric = Literal[
    "t2v/R@1", "t2v/R@5", "t2v/R@10", "t2v/MdR", "t2v/MnR", "v2t/R@1", "v2t/R@5", "v2t/R@10", "v2t/MdR", "v2t/MnR"
]
_NOT_SEARCHABLE = {
    "name": "each trial is named after the sweep and its number",
    "seed": "write repeats: N to train each point with N seeds",
    "storage": "trials share one storage; write it in `set`",
    "resources": "they change no metric; write them in `set`",
    "evaluate": "they change no metric; write them in `set`",
    "tracking": "it changes no metric; write it in `set`",
    "profile": "it changes no metric; write it in `set`",
}
"""Section or key that a sweep cannot vary -> reason and remedy."""


class ParameterConfig(Section):
    """The values to try for one key of the experiment: exactly one of uniform, loguniform, randint, choice, grid."""

    uniform: tuple[float, float] | None = None
    """[low, high]: numbers drawn uniformly from this range."""
    loguniform: tuple[float, float] | None = None
    """[low, high]: numbers whose logarithm is drawn uniformly from this range."""
    randint: tuple[int, int] | None = None
    """[low, high]: integers drawn uniformly from this range, both ends included."""
    choice: Annotated[tuple[Any, ...], Field(min_length=1)] | None = None
    """Values of which one is drawn."""
    grid: Annotated[tuple[Any, ...], Field(min_length=1)] | None = None
    """Values that are all tried, each with every sample of the other keys."""
    when: dict[str, Any] = Field(default_factory=dict)
    """Conditions, key -> value or list of values: this key is varied only in points where the other keys have these values;
    elsewhere it has its value in the base."""

    @model_validator(mode="after")
    def _is_one_kind(self) -> "ParameterConfig":
        kinds = [
            kind for kind in ("uniform", "loguniform", "randint", "choice", "grid") if getattr(self, kind) is not None
        ]
        if len(kinds) != 1:
            raise ValueError(
                f"write exactly one of uniform, loguniform, randint, choice, grid (here: {', '.join(kinds) or 'none'})"
            )
        if self.kind in ("uniform", "loguniform", "randint"):
            low, high = self.values
            if low >= high:
                raise ValueError(f"{self.kind}: [{low:g}, {high:g}]: the first must be less than the second")
            if self.kind == "loguniform" and low <= 0:
                raise ValueError(f"loguniform: [{low:g}, {high:g}]: both must be above 0")
        return self

    @property
    def kind(self) -> Literal["uniform", "loguniform", "randint", "choice", "grid"]:
        """Which of the five is given."""
        return next(
            kind for kind in ("uniform", "loguniform", "randint", "choice", "grid") if getattr(self, kind) is not None
        )

    @property
    def values(self) -> tuple[Any, ...]:
        """The two ends of the range, or the list of values."""
        return getattr(self, self.kind)


class ObjectiveConfig(Section):
    """The metric that ranks trials, of the best checkpoint of each run."""

    metric: Metric = "t2v/R@1"
    """Metric that ranks trials: recalls are maximised, ranks minimised."""
    split: Literal["validation", "test", "train"] = "validation"
    """Split of the metric; only validation is allowed."""

    @field_validator("split")
    @classmethod
    def _only_validation(cls, split: str) -> str:
        if split != "validation":
            raise ValueError(
                f"a sweep that selects trials on {split} would report a biased metric; select on validation, and evaluate "
                "the best trial on test once, after the sweep"
            )
        return split

    @property
    def mode(self) -> Literal["max", "min"]:
        """Whether the metric is maximised (recalls) or minimised (ranks)."""
        return "max" if "/R@" in self.metric else "min"


class SchedulerConfig(Section):
    """Which trials are stopped before their last epoch."""

    kind: Literal["asha", "none"] = "asha"
    """asha: after grace_epochs times 1, r, r^2, ... epochs (r is reduction_factor) only the best 1/r of the trials continue.
    none: all trials train to the end."""
    grace_epochs: Count = 1
    """Number of epochs before a trial can be stopped, counted over all its seeds, which are trained one after the other."""
    reduction_factor: Annotated[float, Field(gt=1)] = 3
    """Factor r of asha: the best 1/r of the trials continue at each step."""


_NOT_IN_THEN = {
    "name": "a fine-tuning is named after the sweep and its trial",
    "seed": "a fine-tuning has the seed of the run that it starts from",
    "train.start_from": "each fine-tuning starts from its trial",
    "model": "a fine-tuning has the model of its trial, whose weights it starts from",
    "similarity": "a fine-tuning has the model of its trial, whose weights it starts from",
    "data": "a fine-tuning is compared with its trial, on the same data",
    "video": "a fine-tuning is compared with its trial, on the same frames",
    "text": "a fine-tuning is compared with its trial, on the same words",
    "vocabulary": "a fine-tuning has the dictionary of its trial",
    "storage": "trials share one storage",
}
"""Section or key that fine-tuning cannot change -> reason."""


class ThenConfig(Section):
    """What happens to the best points after the search: they are trained further, from the weights of their trials.

    All keys but `keep` are dotted keys of the experiment, which the fine-tuning changes in that of its trial.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Any]

    keep: Count = 1
    """Number of best trials that are handed to fine-tuning."""

    @property
    def changes(self) -> dict[str, Any]:
        """Dotted key -> value that the fine-tuning changes in the experiment of its trial."""
        return dict(self.__pydantic_extra__)

    def mistakes(self) -> Iterator[str]:
        """Yields a sentence for each key that cannot stand here."""
        if not self.changes:
            yield (
                "then: changes nothing; write what the fine-tuning changes, such as train.epochs: 1 and "
                "train.backbone_lr_scale: 1e-3"
            )
        for key in self.changes:
            if not re.fullmatch(r"\w+(\.\w+)+", key) and key not in _NOT_IN_THEN:
                yield f"then.{key}: write a dotted key of the experiment, such as train.epochs, or keep"
            elif reason := _NOT_IN_THEN.get(key) or _NOT_IN_THEN.get(key.partition(".")[0]):
                yield f"then.{key}: cannot change: {reason}"


class SweepConfig(Section):
    """One sweep: the base experiment, the keys to vary, the search, and what happens to the best points."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Names the folder of the sweep."""
    base: Path
    """The YAML file of the experiment, relative to this file."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Overrides for all trials, dotted key -> value, as with --set."""
    space: Annotated[dict[str, ParameterConfig], Field(min_length=1)]
    """Search space: dotted key -> the values to try."""
    search: Literal["random", "grid", "optuna"] = "random"
    """grid: all combinations of choice and grid values. random: num_samples draws for each combination of grid values.
    optuna: num_samples points chosen by Optuna's TPE from the results of earlier ones."""
    num_samples: Count = 16
    """Number of points to draw; ignored with search grid."""
    seed: int = 0
    """Seed for drawing points."""
    repeats: Count = 1
    """Number of seeds to train each point with, one after the other; the objective is the mean over them."""
    objective: ObjectiveConfig = ObjectiveConfig()
    scheduler: SchedulerConfig = SchedulerConfig()
    max_concurrent: Count | None = None
    """Maximal number of trials at the same time; by default as many as fit into the cluster."""
    max_failures: Annotated[int, Field(ge=0)] = 1
    """How often a trial whose process was lost resumes from its last checkpoint. A trial that fails with an error is not
    repeated."""
    keep_best: Count = 1
    """Number of best trials whose checkpoints are kept; with `then`, those of the searched ones also until they are
    fine-tuned, and those from which the best fine-tuned ones started."""
    then: ThenConfig | None = None
    """After the search, the `keep` best trials are trained further from their best checkpoints, with the other keys of this
    section changed in their experiment: {keep: 3, train.epochs: 1, train.backbone_lr_scale: 1e-3}. null: they are not."""

    @model_validator(mode="after")
    def _fits_together(self) -> "SweepConfig":
        problems = []
        for key, parameter in self.space.items():
            if not re.fullmatch(r"\w+(\.\w+)*", key):
                problems.append(f"space.{key}: write a dotted key of the experiment, such as loss.distill")
            if remedy := _NOT_SEARCHABLE.get(key.partition(".")[0]):
                problems.append(f"space.{key}: a sweep cannot vary it: {remedy}")
            if key in self.set:
                problems.append(f"space.{key}: is in `set` too; remove it there")
            if self.search == "grid" and parameter.kind not in ("grid", "choice"):
                problems.append(
                    f"space.{key}: {parameter.kind} does not list its values; search: grid needs choice or grid"
                )
            if self.search == "optuna" and parameter.kind == "grid":
                problems.append(f"space.{key}: with search: optuna write choice instead of grid")
        problems += self.then.mistakes() if self.then else []
        if problems:
            raise ValueError("; ".join(problems))
        sort_by_conditions(self.space)
        return self

    def to_yaml(self) -> str:
        """Returns the sweep as YAML that `load_sweep` can read."""
        return yaml.safe_dump(self.model_dump(mode="json", exclude_defaults=True), sort_keys=False, allow_unicode=True)


def sort_by_conditions(space: dict[str, ParameterConfig]) -> list[str]:
    """Sorts the keys of a search space so that each comes after the keys in its `when`.

    Raises:
        ValueError: if conditions are circular.
    """
    done: list[str] = []
    while len(done) < len(space):
        ready = [
            key
            for key, parameter in space.items()
            if key not in done and all(on in done or on not in space for on in parameter.when)
        ]
        if not ready:
            waiting = ", ".join(key for key in space if key not in done)
            raise ValueError(f"space: the conditions of {waiting} are circular; remove one `when`")
        done += ready
    return done
