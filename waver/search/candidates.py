"""Finds candidates for a query among millions of windows, by approximate vector search with FAISS.

The search compares one vector per window with one vector per query. The windows with the largest inner products are the
candidates, and the model's own interaction then ranks them.

- For interactions that compare words with frames, the vector of a window is the weighted sum of its unit frames, and that of
  a text the weighted sum of its unit words. Their inner product is the weighted mean of all cosines of words with frames.
  The token-wise similarity takes maxima in place of means, so it is never smaller. The two are close if the frames of a
  window are alike.
- For interactions that compare the whole sentence (`dp`, `xti`), the vectors are the end token and the mean frame, and their
  inner product is the similarity of `dp`.

FAISS searches an inverted file (IVF): each vector is in the list of its nearest centroid, and a search reads the lists of
the centroids nearest to the query. Values are quantised to 8 bits (SQ8). The file is mapped into memory.

    candidates/manifest.json     `Candidacy`, the name of the file, its size, and the digest of its windows
    candidates/<name>.faiss      the inverted file; its ids are the numbers of the windows
"""

import dataclasses
import importlib.util
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from waver.model.embeddings import Embeddings
from waver.model.interaction import Interaction, mean_frame, sentence
from waver.search.index import SearchError
from waver.tools.files import read_json

_INSTALL = "pip install -e '.[search]'"

_EXACT, _EXACT_CROSS_ENCODER = 100_000, 2_000
"""Numbers of windows that can be compared with a query in about a second on 2 cores."""


def exact_limit(interaction: Interaction) -> int:
    """Returns the number of windows up to which each query is compared with all of them."""
    return _EXACT if interaction.build_module is None else _EXACT_CROSS_ENCODER


@dataclass(frozen=True)
class Candidacy:
    """How approximate search finds candidates, and their recall."""

    num_windows: int
    num_lists: int
    """Lists of the inverted file."""
    num_searched: int
    """Lists that a search reads."""
    num_candidates: int
    """Candidates of a query."""
    recall: float | None
    """Share of the ten best windows of the exact search that are among the candidates; None if it was not measured."""
    queries: str
    """What the recall was measured on, as in "64 validation captions"; or why it was not measured."""

    def __str__(self) -> str:
        ranked = f"approximate: the model ranks {self.num_candidates:,} candidates of {self.num_windows:,} windows"
        if self.recall is None:
            return f"{ranked}; their recall was not measured: {self.queries}"
        return f"{ranked}; {self.recall:.1%} of the ten best windows are among them, measured on {self.queries}"


class Candidates:
    """The inverted file of an index, open for search. Threads may share it.

    Attributes:
        candidacy: how candidates are found.
    """

    def __init__(self, index: Any, candidacy: Candidacy):
        self._index, self.candidacy = index, candidacy

    def find(
        self,
        queries: Float32[np.ndarray, "Q D"],
        number: int | None = None,
        *,
        num_searched: int | None = None,
        among: Int64[np.ndarray, " some"] | None = None,
    ) -> list[Int64[np.ndarray, " _"]]:
        """Returns the numbers of the candidates of each query, ascending.

        Args:
            queries: vectors of the queries, see `pool_texts`.
            number: number of candidates of a query; fewer are returned if the lists that are read have fewer. None for that
                of `candidacy`.
            num_searched: number of lists to read, None for that of `candidacy`; proportionally more are read if `among`
                has few windows.
            among: numbers of the windows that may be returned, at least one; None for all.
        """
        faiss = import_faiss()
        parameters = faiss.SearchParametersIVF(nprobe=num_searched or self.candidacy.num_searched)
        if among is not None:
            parameters.nprobe *= math.ceil(self.candidacy.num_windows / len(among))
            parameters.sel = faiss.IDSelectorBatch(among)
        _, found = self._index.search(queries, number or self.candidacy.num_candidates, params=parameters)
        return [np.sort(row[row >= 0]) for row in found]


def pool_windows(interaction: Interaction, video: Embeddings) -> Float[Tensor, "V D"]:
    """Returns the vector that approximate search has of each window."""
    return mean_frame(video) if interaction.compares_sentence else _weighted_sum(video)


def pool_texts(interaction: Interaction, text: Embeddings) -> Float[Tensor, "T D"]:
    """Returns the vector that approximate search compares for each text."""
    return sentence(text) if interaction.compares_sentence else _weighted_sum(text)


def _weighted_sum(items: Embeddings) -> Float[Tensor, "M D"]:
    unit = F.normalize(items.values, dim=-1).masked_fill(~items.mask[..., None], 0)
    return torch.einsum("mld,ml->md", unit, items.weights.masked_fill(~items.mask, 0))


def open_candidates(folder: Path, windows: str) -> Candidates | None:
    """Opens the inverted file of an index; returns None if there is none, or it was built from other windows.

    Args:
        folder: folder of the index.
        windows: see `waver.search.vectors.windows_digest`.

    Raises:
        SearchError: if the files are damaged, or FAISS is not installed.
    """
    place = folder / "candidates"
    if not (place / "manifest.json").exists():
        return None
    try:
        manifest = read_json(place / "manifest.json")
        candidacy, path = Candidacy(**manifest["candidacy"]), place / manifest["file"]
        if manifest["windows"] != windows:
            return None
        if path.stat().st_size != manifest["num_bytes"]:
            raise ValueError(f"{path.name} is cut off")
        faiss = import_faiss()
        return Candidates(faiss.read_index(str(path), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY), candidacy)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise SearchError(f"{place} is damaged ({error}): delete the folder, and run `waver index` again") from error


def manifest_of(path: Path, windows: str, candidacy: Candidacy) -> dict[str, Any]:
    """Returns the content of `candidates/manifest.json`."""
    return {
        "file": path.name,
        "num_bytes": path.stat().st_size,
        "windows": windows,
        "candidacy": dataclasses.asdict(candidacy),
    }


def has_faiss() -> bool:
    """Returns whether FAISS is installed."""
    return importlib.util.find_spec("faiss") is not None


def import_faiss() -> Any:
    """Returns the module `faiss`.

    Raises:
        SearchError: if it is not installed.
    """
    try:
        import faiss
    except ImportError:
        raise SearchError(f"approximate search needs FAISS, which is not installed: {_INSTALL}") from None
    return faiss
