"""The figures of the reference implementation, and its weights as its training code saves them; see tests/parity."""

import os
from pathlib import Path

import torch
from safetensors.torch import load_file

FIGURES = Path(os.environ.get("WAVER_PARITY", Path(__file__).parent / "parity"))
CASES = sorted(
    path.stem
    for path in FIGURES.glob("*.safetensors")
    if path.stem.split("_")[0].rstrip("123") in ("dp", "ti", "wti", "xti") and not path.stem.endswith(".weights")
)


def assert_close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs.to(ours.dtype).reshape(ours.shape), rtol=1e-4, atol=1e-4)


def read_case(case: str) -> dict[str, torch.Tensor]:
    """All tensors of a case under the reference's names, as its training code saves them.

    The aggregator seqTransf is initialised from the backbone, and is not among the case's own weights.
    """
    clip, own = (load_file(FIGURES / f"{name}.weights.safetensors") for name in ("clip", case.removesuffix("_padded")))
    state = {f"clip.{name}": value for name, value in clip.items()} | own
    if "seqtransf" in case:
        blocks = {f"transformer.resblocks.{number}." for number in range(4)}
        state |= {
            name.replace("transformer.", "transformerClip.", 1): value
            for name, value in clip.items()
            if any(name.startswith(block) for block in blocks)
        }
        state["frame_position_embeddings.weight"] = clip["positional_embedding"]
    return state
