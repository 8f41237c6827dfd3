"""Reads checkpoints of WAVER, DRL and CLIP4Clip: finds the model in their tensors, and renames the tensors for `Student`.

The three share one code base (CLIP4Clip, arXiv 2104.08860; DRL, arXiv 2203.07111; WAVER, arXiv 2312.09507) and so their
names: `clip.*` is the backbone under OpenAI's names, `transformerClip.*`, `frame_position_embeddings.*` and `lstm_visual.*`
are temporal aggregators, `text_weight_fc.*` and `video_weight_fc.*` the weights of wti, `cross.*` and `similarity_dense.*`
the cross-encoder, `co_connection_transformer_model_block.0.*` the fusion with phrases.
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import open_clip
from torch import Tensor

from waver.tools.errors import WaverError
from waver.tools.names import abbreviate

FUSION_PREFIX = "co_connection_transformer_model_block.0."
FUSION = {
    "biattention.query1.": "query.",
    "biattention.key2.": "key.",
    "biattention.value2.": "value.",
    "biOutput.dense1.": "attended.",
    "biOutput.LayerNorm1.": "attended_norm.",
    "v_intermediate.dense.": "hidden.",
    "v_output.dense.": "output.",
    "v_output.LayerNorm.": "output_norm.",
}
"""Names in the fusion block -> names in `KnowledgeFusion`."""
_FUSION_OF_PHRASES = tuple(
    f"{FUSION_PREFIX}{part}"
    for part in (
        *("biattention.query2.", "biattention.key1.", "biattention.value1."),
        *("biOutput.dense2.", "biOutput.LayerNorm2.", "biOutput.q_dense1.", "biOutput.q_dense2."),
        *("t_intermediate.", "t_output."),
    )
)
PREFIXES = {
    "clip.": "backbone.clip.",
    "frame_position_embeddings.weight": "temporal.position_embedding",
    "transformerClip.": "temporal.transformer.",
    "lstm_visual.": "temporal.lstm.",
    "text_weight_fc.": "text_weights.",
    "video_weight_fc.": "video_weights.",
    **{FUSION_PREFIX + theirs: f"fusion.{ours}" for theirs, ours in FUSION.items()},
    "cross.embeddings.position_embeddings.weight": "cross.position_embedding",
    "cross.pooler.ln_pool.": "cross.pool_norm.",
    "cross.pooler.dense.": "cross.pool.",
    "cross.transformer.": "cross.transformer.",
    "similarity_dense.": "cross.score.",
}
"""Prefix of names in a checkpoint -> prefix of names in `Student`."""
_FIGURES = ("clip.input_resolution", "clip.context_length", "clip.vocab_size")
"""Sizes that OpenAI's files hold beside the weights."""
_OF_X_CLIP = re.compile(r"(global|local|word|frame)_(mat|logit)_weight2?")
_OPENAI = ("ViT-B-32-quickgelu", "ViT-B-16-quickgelu", "ViT-L-14-quickgelu", "ViT-L-14-336-quickgelu")
_HEAD_WIDTH = 64
"""Width of an attention head in all of OpenAI's transformers."""
_CROSS_LAYERS = 4
_BACKBONE = {
    "clip.visual.conv1.weight": 4,
    "clip.visual.positional_embedding": 2,
    "clip.visual.proj": 2,
    "clip.positional_embedding": 2,
    "clip.token_embedding.weight": 2,
    "clip.text_projection": 2,
    "clip.ln_final.weight": 1,
    "clip.logit_scale": 0,
}
"""Tensor from which sizes of the backbone follow -> the number of its dimensions."""


class FieldCheckpointError(WaverError):
    """A file is no checkpoint of WAVER, DRL or CLIP4Clip, or its model is one that waver cannot build."""


@dataclass(frozen=True)
class FieldCheckpoint:
    """A checkpoint as its tensors describe it."""

    backbone: str | dict[str, Any]
    """Name of the open_clip model, or its description if open_clip has no name for these sizes."""
    image_size: int
    """Height and width of frames, pixels."""
    temporal: str
    """Name of the temporal aggregator, see `waver.model.temporal`."""
    temporal_layers: int
    similarity: str
    """Name of the interaction, see `waver.model.interaction`."""
    wti_layers: int
    fusion: bool
    """Whether frames attend to phrases."""
    state: dict[str, Tensor]
    """Weights under the names of `Student`."""
    notes: tuple[str, ...]
    """Remarks for the user: which tensors of the file are not used, and what the file does not show."""

    def describe(self) -> str:
        """Describes the code base and the model in words."""
        heads = f"wti with weights of {self.wti_layers} layer{'s' if self.wti_layers > 1 else ''}"
        code = "WAVER" if self.fusion else "CLIP4Clip or DRL" if self.similarity in ("dp", "ti") else "DRL"
        code = "CLIP4Clip (tight) or DRL" if self.similarity == "xti" and not self.fusion else code
        backbone = self.backbone if isinstance(self.backbone, str) else "a backbone of its own architecture"
        frames = "mean of the frames" if self.temporal == "none" else f"{self.temporal} over the frames"
        interaction = heads if self.similarity == "wti" else self.similarity
        return f"{code}: {backbone}, {frames}, {interaction}{', fusion with phrases' if self.fusion else ''}"


def read_field_checkpoint(state: Mapping[str, Tensor], *, similarity: str | None = None) -> FieldCheckpoint:
    """Finds kind and sizes of a model by the names and shapes of its tensors, and renames the tensors.

    Args:
        state: name -> tensor, without the prefixes that wrappers of a module add.
        similarity: `dp` or `ti`: neither has weights, so the file does not show which was used; None for `dp`.

    Raises:
        FieldCheckpointError: if the file is something else, has unknown tensors, or holds a model that waver does not
            have.
    """
    _check_kind(state)
    temporal, num_layers, unused = _find_temporal(state)
    kind, wti_layers, notes = _find_similarity(state, similarity)
    if kind != "xti":
        unused |= {name: "the cross-encoder" for name in state if name.startswith(("cross.", "similarity_dense."))}
    unused |= {
        name: "the half of the fusion that updates phrases" for name in state if _starts(name, _FUSION_OF_PHRASES)
    }
    unused |= {name: "sizes" for name in _FIGURES if name in state}
    renamed = {name: _our_name(name, wti_layers) for name in state if name not in unused}
    if unknown := [name for name, ours in renamed.items() if ours is None]:
        raise FieldCheckpointError(
            f"it has {len(unknown)} tensors that no checkpoint of WAVER, DRL or CLIP4Clip is known to have: "
            f"{', '.join(unknown[:8])}{', ...' if len(unknown) > 8 else ''}. Nothing is imported, since they may change "
            "what the model computes"
        )
    counts = Counter(unused.values())
    told = [f"{number} tensors of the file are not used: {what}" for what, number in counts.items() if what != "sizes"]
    architecture, image_size = _find_architecture(state)
    return FieldCheckpoint(
        backbone=_name_backbone(architecture, image_size),
        image_size=image_size,
        temporal=temporal,
        temporal_layers=num_layers,
        similarity=kind,
        wti_layers=wti_layers,
        fusion=any(name.startswith(FUSION_PREFIX) for name in state),
        state={ours: state[name] for name, ours in renamed.items() if ours is not None},
        notes=(*told, *notes),
    )


def _check_kind(state: Mapping[str, Tensor]) -> None:
    """Checks that the tensors are those of a checkpoint of WAVER, DRL or CLIP4Clip.

    Raises:
        FieldCheckpointError: if they are not; the message says what the file is instead.
    """
    if any(name.startswith("backbone.clip.") for name in state):
        raise FieldCheckpointError(
            "it is a checkpoint of waver, which needs no import: evaluate its folder with `waver evaluate`"
        )
    if "visual.conv1.weight" in state or "text_projection" in state:
        raise FieldCheckpointError(
            "it holds the weights of a CLIP network alone: set model.weights to the file, and train, or evaluate zero-shot "
            "with `waver evaluate` and the configuration"
        )
    if of_x_clip := sorted(name for name in state if _OF_X_CLIP.fullmatch(name)):
        raise FieldCheckpointError(
            f"it is a checkpoint of X-CLIP (arXiv 2207.07285): its multi-grained similarity has matrices "
            f"({abbreviate(of_x_clip)}) that waver's similarity.kind = xclip does not have, so waver would get other "
            "figures"
        )
    if any(name.startswith("clip.visual.layer1.") for name in state):
        raise FieldCheckpointError("its vision tower is a ResNet: only checkpoints with a ViT can be imported")
    if "similarity_dense.0.weight" in state:
        raise FieldCheckpointError("its similarity is DRL's mlp, which waver does not have")
    if missing := [name for name in _BACKBONE if name not in state]:
        known = sum(name.startswith("clip.") for name in state)
        what = "no tensor of it is called clip.*" if not known else f"it lacks {abbreviate(missing)}"
        names = f"; it has {abbreviate(sorted(state))}" if state else ""
        raise FieldCheckpointError(f"it is no checkpoint of WAVER, DRL or CLIP4Clip: {what}{names}")
    if wrong := [name for name, number in _BACKBONE.items() if state[name].ndim != number]:
        raise FieldCheckpointError(
            f"{wrong[0]} has the shape {tuple(state[wrong[0]].shape)}, but in CLIP's code it has "
            f"{_BACKBONE[wrong[0]]} dimensions"
        )


def _starts(name: str, prefixes: tuple[str, ...]) -> bool:
    return name.startswith(prefixes)


def _our_name(name: str, wti_layers: int) -> str | None:
    """Returns the name in `Student`; None for a name that is not known."""
    for theirs, ours in PREFIXES.items():
        if name.startswith(theirs):
            rest = name.removeprefix(theirs)
            # A head of one layer is a Linear there, and a Sequential with one Linear here.
            return f"{ours}0.{rest}" if ours.endswith("_weights.") and wti_layers == 1 else ours + rest
    return None


def _find_temporal(state: Mapping[str, Tensor]) -> tuple[str, int, dict[str, str]]:
    """Returns the temporal aggregator, the number of its blocks, and name of an unused tensor -> what it is."""
    blocks, lstm = (any(name.startswith(prefix) for name in state) for prefix in ("transformerClip.", "lstm_visual."))
    if blocks and lstm:
        raise FieldCheckpointError(
            "it has both temporal aggregators, transformerClip.* and lstm_visual.*: nothing tells which one was used"
        )
    positions = "frame_position_embeddings.weight"
    if blocks:
        return "seqTransf", _count_blocks(state, "transformerClip."), {}
    unused = {positions: "positions of frames, which only seqTransf reads"} if positions in state else {}
    return ("seqLSTM" if lstm else "none"), 4, unused


def _find_similarity(state: Mapping[str, Tensor], asked: str | None) -> tuple[str, int, list[str]]:
    """Returns the interaction, the number of layers of its weights, and remarks on what the file does not show."""
    heads = {
        side: sum(bool(re.fullmatch(rf"{side}_weight_fc\.(\d+\.)?weight", name)) for name in state)
        for side in ("text", "video")
    }
    if any(heads.values()):
        if heads["text"] != heads["video"] or heads["text"] > 3:
            raise FieldCheckpointError(
                f"its weights of words have {heads['text']} layers, those of frames {heads['video']}: waver has 1, 2 or 3 "
                "layers for both"
            )
        return "wti", heads["text"], []
    if any(name.startswith("similarity_dense.") for name in state) and asked not in ("dp", "ti"):
        if (layers := _count_blocks(state, "cross.transformer.")) != _CROSS_LAYERS:
            raise FieldCheckpointError(f"its cross-encoder has {layers} layers, that of waver {_CROSS_LAYERS}")
        return "xti", 2, []
    if asked in ("dp", "ti"):
        return asked, 2, []
    note = (
        "the file does not show whether dp or ti was used, since neither has weights: waver takes dp, as in CLIP4Clip"
    )
    return "dp", 2, [f"{note}; for ti, give a configuration with similarity.kind = ti"]


def _count_blocks(state: Mapping[str, Tensor], prefix: str) -> int:
    found = (re.match(rf"{re.escape(prefix)}resblocks\.(\d+)\.", name) for name in state)
    return 1 + max((int(match[1]) for match in found if match), default=-1)


def _find_architecture(state: Mapping[str, Tensor]) -> tuple[dict[str, Any], int]:
    """Returns open_clip's description of the backbone, and the size of its images in pixels."""
    patches, text = state["clip.visual.conv1.weight"], state["clip.positional_embedding"]
    width, patch_size = patches.shape[0], patches.shape[-1]
    grid = round((state["clip.visual.positional_embedding"].shape[0] - 1) ** 0.5)
    text_width = text.shape[1]
    if width % _HEAD_WIDTH or text_width % _HEAD_WIDTH:
        raise FieldCheckpointError(
            f"its towers have widths {width} and {text_width}: those of CLIP's code are multiples of {_HEAD_WIDTH}"
        )
    architecture = {
        "embed_dim": state["clip.text_projection"].shape[1],
        "quick_gelu": True,  # CLIP's code, which all of them contain, has no other activation
        "vision_cfg": {
            "layers": _count_blocks(state, "clip.visual.transformer."),
            "width": width,
            "patch_size": patch_size,
        },
        "text_cfg": {
            "context_length": text.shape[0],
            "vocab_size": state["clip.token_embedding.weight"].shape[0],
            "width": text_width,
            "heads": text_width // _HEAD_WIDTH,
            "layers": _count_blocks(state, "clip.transformer."),
        },
    }
    return architecture, grid * patch_size


def same_backbone(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Returns whether two descriptions of open_clip mean the same network, for images of any size."""
    return _without_image_size(a) == _without_image_size(b)


def _without_image_size(architecture: dict[str, Any]) -> dict[str, Any]:
    vision = {key: value for key, value in architecture["vision_cfg"].items() if key != "image_size"}
    return architecture | {"vision_cfg": vision}


def _name_backbone(architecture: dict[str, Any], image_size: int) -> str | dict[str, Any]:
    for name in _OPENAI:
        known = open_clip.get_model_config(name)
        if known and known["vision_cfg"]["image_size"] == image_size and same_backbone(known, architecture):
            return name
    return architecture
