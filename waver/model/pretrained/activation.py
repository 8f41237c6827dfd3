"""Finds the activation of a model's transformers: in its weights, in the configuration beside them, or by its name.

OpenAI trained with x * sigmoid(1.702 x), called QuickGELU; most others trained with GELU. The tensors do not show it, and
the wrong activation changes every embedding without any error.
"""

import zipfile
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import open_clip
from open_clip.transformer import QuickGELU
from torch import nn

from waver.model.backbone import Backbone
from waver.model.errors import BackboneError
from waver.model.pretrained.snapshots import tower_settings
from waver.model.pretrained.weight_files import SNAPSHOT_NAMES, read_metadata
from waver.tools.archives import is_torchscript
from waver.tools.files import sha256_of
from waver.tools.hub import HubError, read_beside

QUICK, EXACT = "QuickGELU", "GELU"
METADATA = "quick_gelu"
"""Key in the metadata of a .safetensors file: "true" if its model has QuickGELU, "false" if it has GELU."""
OPEN_CLIP_CONFIG, CONFIG = "open_clip_config.json", "config.json"
_BY_TANH = ("gelu_new", "gelu_fast", "gelu_pytorch_tanh")
"""Activations of transformers that differ from GELU by less than 0.0005."""
_OF_TRANSFORMERS = {"quick_gelu": QUICK, "gelu": EXACT, "gelu_python": EXACT} | dict.fromkeys(_BY_TANH, EXACT)
_DEFAULTS = {"clip": "quick_gelu", "siglip": "gelu_pytorch_tanh"}
"""Type of a model of transformers -> its activation where its configuration names none."""


class Activation(NamedTuple):
    """The activation of a model's transformers."""

    name: str
    """QuickGELU or GELU."""
    origin: str
    """Where that is known from, such as "from the name ViT-B-32-quickgelu"."""

    def __str__(self) -> str:
        return f"{self.name}, {self.origin}"


def named_activation(backbone: str | dict[str, Any], architecture: dict[str, Any]) -> Activation:
    """Returns the activation that the configuration of an experiment names, whatever its weights were trained with.

    Args:
        backbone: model.backbone.
        architecture: open_clip's description of that backbone.
    """
    vision, text = architecture["vision_cfg"], architecture["text_cfg"]
    name = QUICK if architecture.get("quick_gelu") else EXACT
    if "timm_model_name" in vision and "hf_model_name" in text:
        return Activation(
            name, f"but {vision['timm_model_name']} and {text['hf_model_name']} have activations of their own"
        )
    if isinstance(backbone, str):
        return Activation(name, f"from the name {backbone}")
    if "quick_gelu" in architecture:
        return Activation(name, "from model.backbone.quick_gelu")
    return Activation(name, "because model.backbone has no quick_gelu")


def told_activation(path: Path) -> Activation | None:
    """Returns the activation that a file of weights, or the configuration beside it in a snapshot, contains; else None.

    Raises:
        BackboneError: if that configuration is unreadable, or names an activation that open_clip's models do not have.
    """
    if told := read_metadata(path).get(METADATA):
        return Activation(QUICK if told.lower() == "true" else EXACT, f"from the metadata of {path.name}")
    if path.suffix != ".safetensors" and is_torchscript(path):
        return _of_torchscript(path)
    return _of_snapshot(path) if path.name in SNAPSHOT_NAMES else None


def set_activation(backbone: Backbone, *, quick: bool) -> None:
    """Gives the transformers of a backbone QuickGELU or GELU; towers of timm and transformers keep their own."""
    if bool(backbone.architecture.get("quick_gelu")) == quick:
        return
    backbone.architecture["quick_gelu"] = quick
    for module in backbone.clip.modules():
        if isinstance(getattr(module, "gelu", None), nn.GELU | QuickGELU):
            module.gelu = QuickGELU() if quick else nn.GELU()


def _of_torchscript(path: Path) -> Activation | None:
    """Returns the activation of a TorchScript archive: by OpenAI's published hashes, else by the operations in its code."""
    stat = path.stat()
    if name := openai_names().get(_sha256(path, stat.st_size, stat.st_mtime_ns)):
        return Activation(QUICK, f"from OpenAI's {name}, known by its SHA-256")
    with zipfile.ZipFile(path) as archive:
        code = b"".join(archive.read(name) for name in archive.namelist() if name.endswith(".py"))
    quick, exact = b"torch.sigmoid(" in code, b"torch.gelu(" in code
    if quick == exact:
        return None
    return Activation(
        QUICK if quick else EXACT, f"from the code in {path.name}, which is none of OpenAI's published files"
    )


def openai_names() -> dict[str, str]:
    """Returns the SHA-256 of each file that OpenAI published -> its name; the hash is a part of its address."""
    urls = [urlsplit(open_clip.get_pretrained_url(name, "openai")).path for name in open_clip.list_openai_models()]
    return {Path(url).parent.name: Path(url).name for url in urls}


@lru_cache(maxsize=8)
def _sha256(path: Path, size: int, changed_ns: int) -> str:
    """Returns the hash of a file; a change of size or time makes the cache hash it again."""
    return sha256_of(path)


def _of_snapshot(path: Path) -> Activation | None:
    """Returns the activation by the configurations beside a file; that of the file's own layout comes first."""
    readers = {OPEN_CLIP_CONFIG: _of_open_clip, CONFIG: _of_transformers}
    order = list(readers) if path.name.startswith("open_clip") else list(reversed(readers))
    for name in order:
        try:
            content = read_beside(str(path), name)
        except (HubError, OSError) as error:
            raise BackboneError(
                f"model.weights: {path.parent / name}, which names the activation of {path.name}, cannot be read ({error}): "
                "copy the snapshot again, completely"
            ) from error
        if content is not None and (told := readers[name](content, path.parent / name)):
            return told
    return None


def _of_open_clip(content: dict[str, Any], path: Path) -> Activation | None:
    """Returns the activation by open_clip_config.json."""
    model = content.get("model_cfg")
    if not isinstance(model, dict):
        return None
    return Activation(QUICK if model.get("quick_gelu") else EXACT, f"from {path.name} of the snapshot")


def _of_transformers(content: dict[str, Any], path: Path) -> Activation | None:
    """Returns the activation by transformers' config.json of a CLIPModel or SiglipModel."""
    default = _DEFAULTS.get(content.get("model_type", ""))
    if default is None:
        return None
    towers = [tower_settings(content, "text"), tower_settings(content, "vision")]
    names = list(dict.fromkeys(tower.get("hidden_act", default) for tower in towers))
    if len({_OF_TRANSFORMERS.get(name, name) for name in names}) > 1 or names[0] not in _OF_TRANSFORMERS:
        raise BackboneError(
            f"model.weights: the towers in {path} have hidden_act = {' and '.join(map(str, names))}; open_clip's models "
            "have quick_gelu or gelu in both towers, so waver cannot use these weights: choose another model"
        )
    found = "hidden_act" if any("hidden_act" in tower for tower in towers) else "the default hidden_act"
    nearly = f" = {names[0]}, which differs from GELU by less than 0.0005" if names[0] in _BY_TANH else ""
    return Activation(_OF_TRANSFORMERS[names[0]], f"from {path.name} of the snapshot: {found}{nearly}")
