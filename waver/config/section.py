"""What sections of the configuration are made of."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
# Workers run in other folders, and a run may be evaluated from another one: paths mean the same everywhere.
AnyPath = Annotated[Path, AfterValidator(lambda path: path.expanduser().absolute())]

_LABEL = r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
# Of Ray, which takes a prefix before a slash as well.
NodeLabels = dict[
    Annotated[str, Field(pattern=rf"^([A-Za-z0-9.-]{{1,253}}/)?{_LABEL}$")],
    Annotated[str, Field(pattern=rf"^{_LABEL}$")],
]


class Section(BaseModel):
    """A part of the configuration: immutable, and nothing unknown may stand in it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)
