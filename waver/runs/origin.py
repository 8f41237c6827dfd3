"""The origin of a model that waver did not train: pre-trained weights without further training, or an imported checkpoint.

The folder of its checkpoint holds it as origin.json; the checkpoints of a model that waver trained have no such file.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from waver.tools.errors import WaverError
from waver.tools.files import read_json
from waver.tools.object_store import display_path, exists

ORIGIN_FILE = "origin.json"


class OriginError(WaverError):
    """The origin of a model cannot be read."""


@dataclass(frozen=True)
class Origin:
    """The origin of a model that waver did not train."""

    kind: Literal["zero-shot", "imported"]
    model: str
    """The model in words: backbone, weights and activation, or the layout of the imported file."""
    file: str | None = None
    """Name of the file of its weights; None for a pretrained tag."""
    sha256: str | None = None
    """SHA-256 of that file, hexadecimal."""
    notes: tuple[str, ...] = ()
    """Remarks that are shown with its metrics."""

    def describe(self) -> str:
        """Returns kind, model and file in one sentence."""
        source = f", from {self.file}" if self.file else ""
        digest = f" (SHA-256 {self.sha256[:16]}...)" if self.sha256 else ""
        return f"{self.kind}: {self.model}{source}{digest}"

    def as_json(self) -> dict[str, Any]:
        """Returns the content of origin.json."""
        return asdict(self) | {"notes": list(self.notes)}


def read_origin(checkpoint: Path) -> Origin | None:
    """Returns the origin of the model of a checkpoint; None if waver trained it.

    Raises:
        OriginError: if origin.json is damaged.
    """
    path = checkpoint / ORIGIN_FILE
    if not exists(path):
        return None
    try:
        content = read_json(path)
        return Origin(**(content | {"notes": tuple(content["notes"])}))
    except (ValueError, TypeError, KeyError) as error:
        raise OriginError(
            f"{display_path(path)} is damaged ({error}): make the run of {display_path(checkpoint.parent)} again"
        ) from None


def kind_of(result: Mapping[str, Any]) -> str:
    """Returns whether the model of a result is `trained`, `zero-shot` or `imported`."""
    origin = result.get("origin")
    return str(origin["kind"]) if isinstance(origin, dict) and "kind" in origin else "trained"
