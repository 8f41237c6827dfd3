"""Reads the embeddings of all phrases of a dictionary, which knowledge keeps in parts."""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from waver.knowledge.errors import KnowledgeError
from waver.tools.object_store import display_path, fetch_folder


def read_phrase_table(folder: Path, phrases: Sequence[str]) -> Float[Tensor, "P D"]:
    """Reads the embeddings of all phrases, not normalised.

    Args:
        folder: has a file for each part, named by its first phrase id.
        phrases: the P phrases of the dictionary.

    Raises:
        KnowledgeError: if some are missing or damaged, or a value is NaN or infinite.
    """
    files = fetch_folder(folder, "*.safetensors")
    parts = [load_tensor(file, "embeddings", "embeds its phrases") for file in files]
    if sum(map(len, parts)) != len(phrases):
        raise KnowledgeError(
            f"{display_path(folder)} has embeddings of {sum(map(len, parts))} of {len(phrases)} phrases: run "
            "`waver match CONFIG`, which computes what is missing"
        )
    for file, part in zip(files, parts, strict=True):
        if len(bad := (~part.isfinite().all(dim=1)).nonzero()):
            phrase = phrases[int(file.stem) + int(bad[0])]
            raise KnowledgeError(
                f"{display_path(file)} has values that are NaN or infinite, for {len(bad)} of {len(part)} phrases "
                f"(the first: {phrase!r}): delete the file and run `waver match CONFIG`, which embeds its phrases again"
            )
    return torch.cat(parts)


def load_tensor(file: Path, name: str, again: str) -> Tensor:
    """Reads a tensor of a file.

    Args:
        file: a local file.
        name: name of the tensor.
        again: what `waver match` does again if the file is deleted, for the error.

    Raises:
        KnowledgeError: if the file is damaged.
    """
    try:
        return load_file(file)[name]
    except (SafetensorError, OSError) as error:
        raise KnowledgeError(
            f"{display_path(file.parent)} has a file that cannot be read ({file.name}: {error}): delete the file and run "
            f"`waver match CONFIG`, which {again} again"
        ) from error
