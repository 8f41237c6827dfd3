"""The base class of the sections of the configuration, and the types of their fields."""

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from waver.tools.object_store import check_url, is_url

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


def _text(place: Any) -> Any:
    return os.fspath(place) if isinstance(place, Path) else place


def _no_url(path: Any) -> Any:
    if isinstance(path, str) and is_url(path):
        raise ValueError("must be a path that every node can read; only storage.path can be in an object store")
    return path


def _place(place: str) -> str:
    return check_url(place) if is_url(place) else str(Path(place).expanduser().absolute())


# Absolute, because workers and later commands may run in other folders.
AnyPath = Annotated[Path, BeforeValidator(_no_url), AfterValidator(lambda path: path.expanduser().absolute())]
AnyPlace = Annotated[str, BeforeValidator(_text), AfterValidator(_place)]
"""A path, or the URL of a folder in an object store."""

_LABEL = r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
# The labels that Ray accepts, whose keys may have a prefix before a slash.
NodeLabels = dict[
    Annotated[str, Field(pattern=rf"^([A-Za-z0-9.-]{{1,253}}/)?{_LABEL}$")],
    Annotated[str, Field(pattern=rf"^{_LABEL}$")],
]


class Section(BaseModel):
    """A section of the configuration: immutable, without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


def flatten(settings: Mapping[str, Any], *, whole: Collection[str] = (), prefix: str = "") -> dict[str, Any]:
    """Returns nested settings by dotted key: `{"train": {"lr": 1}}` becomes `{"train.lr": 1}`.

    Args:
        settings: nested mappings.
        whole: dotted keys whose mappings are values and stay nested.
        prefix: prefix of every key.
    """
    found: dict[str, Any] = {}
    for name, value in settings.items():
        key = prefix + name
        nested = isinstance(value, Mapping) and key not in whole
        found |= flatten(value, whole=whole, prefix=f"{key}.") if nested else {key: value}
    return found


def describe_differences(there: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """Names the keys whose values differ, with both values.

    Args:
        there: values by key, as stored in a folder.
        asked: those of the present command.
    """
    return [
        f"{key}: {there.get(key)} in the folder, {asked.get(key)} now"
        for key in sorted(there.keys() | asked.keys())
        if there.get(key) != asked.get(key)
    ]
