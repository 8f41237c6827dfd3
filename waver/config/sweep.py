"""Everything that may stand in a sweep."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, field_validator, model_validator

from waver.tools.section import Count, Section

Metric = Literal[
    "t2v/R@1", "t2v/R@5", "t2v/R@10", "t2v/MdR", "t2v/MnR", "v2t/R@1", "v2t/R@5", "v2t/R@10", "v2t/MdR", "v2t/MnR"
]
_NOT_SEARCHED = {
    "name": "each trial is named after the sweep and its number",
    "seed": "write repeats: N, and each point is trained with N seeds",
    "storage": "trials share what they do not change; write it in `set`",
    "resources": "they change no figure; write them in `set`",
    "evaluate": "they change no figure; write them in `set`",
    "tracking": "it changes no figure; write it in `set`",
    "profile": "it changes no figure; write it in `set`",
}
"""Keys of an experiment that no sweep varies, with the remedy."""


class ParameterConfig(Section):
    """The values that one key of the experiment may take: exactly one of uniform, loguniform, randint, choice, grid."""

    uniform: tuple[float, float] | None = None
    """Any number between two."""
    loguniform: tuple[float, float] | None = None
    """Any number between two, each order of magnitude as likely as another."""
    randint: tuple[int, int] | None = None
    """Any integer from the first to the second, both included."""
    choice: Annotated[tuple[Any, ...], Field(min_length=1)] | None = None
    """One of these."""
    grid: Annotated[tuple[Any, ...], Field(min_length=1)] | None = None
    """Each of these, with every sample of the others."""
    when: dict[str, Any] = Field(default_factory=dict)
    """Key -> value, or list of values: the key is varied only where those keys have them, else it is as in the base."""

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
        """Which one it is."""
        return next(
            kind for kind in ("uniform", "loguniform", "randint", "choice", "grid") if getattr(self, kind) is not None
        )

    @property
    def values(self) -> tuple[Any, ...]:
        """The two ends of a range, or all that can be chosen."""
        return getattr(self, self.kind)


class ObjectiveConfig(Section):
    """What makes a trial better than another: this figure of the checkpoint that a run keeps as its best."""

    metric: Metric = "t2v/R@1"
    split: Literal["validation", "test", "train"] = "validation"

    @field_validator("split")
    @classmethod
    def _only_validation(cls, split: str) -> str:
        if split != "validation":
            raise ValueError(
                f"a sweep that chooses on {split} reports a figure that it was chosen for; choose on validation, and "
                "evaluate the best trial on test once, when the sweep is over"
            )
        return split

    @property
    def mode(self) -> Literal["max", "min"]:
        """Recalls should be high, ranks low."""
        return "max" if "/R@" in self.metric else "min"


class SchedulerConfig(Section):
    """Which trials are stopped before their last epoch."""

    kind: Literal["asha", "none"] = "asha"
    """asha: after grace_epochs, and that times each power of reduction_factor, only the best 1/reduction_factor goes on."""
    grace_epochs: Count = 1
    """Epochs that every trial may train. They are counted over all its seeds, one after the other."""
    reduction_factor: Annotated[float, Field(gt=1)] = 3


class SweepConfig(Section):
    """One sweep: an experiment, what is varied in it, and how."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Names the folder of the sweep."""
    base: Path
    """The YAML file of the experiment, relative to this file."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Dotted key -> value, for all trials, as with --set."""
    space: Annotated[dict[str, ParameterConfig], Field(min_length=1)]
    """Dotted key -> the values that are tried."""
    search: Literal["random", "grid", "optuna"] = "random"
    """grid: every combination, of choice and grid. random: num_samples draws for every combination of grid. optuna: TPE."""
    num_samples: Count = 16
    """Points that are drawn. A grid has as many as it has."""
    seed: int = 0
    """Of the draws."""
    repeats: Count = 1
    """Seeds that each point is trained with, one after the other; the objective is their mean."""
    objective: ObjectiveConfig = ObjectiveConfig()
    scheduler: SchedulerConfig = SchedulerConfig()
    max_concurrent: Count | None = None
    """Trials at the same time; by default as many as fit into the cluster."""
    max_failures: Annotated[int, Field(ge=0)] = 1
    """How often a trial whose process was lost goes on from its last checkpoint. A trial that says why it failed is not
    tried again."""
    keep_best: Count = 1
    """Trials whose checkpoints are kept."""

    @model_validator(mode="after")
    def _fits_together(self) -> "SweepConfig":
        problems = []
        for key, parameter in self.space.items():
            if not re.fullmatch(r"\w+(\.\w+)*", key):
                problems.append(f"space.{key}: write a dotted key of the experiment, such as loss.distill")
            if remedy := _NOT_SEARCHED.get(key.partition(".")[0]):
                problems.append(f"space.{key}: is not varied by a sweep: {remedy}")
            if key in self.set:
                problems.append(f"space.{key}: stands in `set` too; take it out there")
            if self.search == "grid" and parameter.kind not in ("grid", "choice"):
                problems.append(
                    f"space.{key}: {parameter.kind} has no end of values; search: grid needs choice or grid"
                )
            if self.search == "optuna" and parameter.kind == "grid":
                problems.append(f"space.{key}: search: optuna draws its points; write choice in place of grid")
        if problems:
            raise ValueError("; ".join(problems))
        order(self.space)
        return self

    def to_yaml(self) -> str:
        """The sweep, as `load_sweep` reads it."""
        return yaml.safe_dump(self.model_dump(mode="json", exclude_defaults=True), sort_keys=False, allow_unicode=True)


def order(space: dict[str, ParameterConfig]) -> list[str]:
    """The keys of a search space, each after those that decide whether it is varied.

    Raises:
        ValueError: where keys wait for one another.
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
            raise ValueError(f"space: {waiting} depend on one another; take out one `when`")
        done += ready
    return done
