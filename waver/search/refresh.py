"""Prepares an index for search after its windows have changed: one file of embeddings, and candidates if there are many."""

import logging
import shutil
from pathlib import Path

import numpy as np
import torch

from waver.evaluation.gallery import build_gallery
from waver.model.interaction import INTERACTIONS
from waver.runs.checkpoint import checkpoint_config
from waver.runs.inputs import load_captions
from waver.search.candidates import Candidacy, exact_limit, has_faiss, open_candidates
from waver.search.candidates_writer import Queries, build_candidates
from waver.search.index import found_windows
from waver.search.scoring import WindowScores
from waver.search.search import Index
from waver.search.vectors import Vectors, move_embeddings, windows_digest
from waver.tools.errors import WaverError
from waver.tools.progress import track_progress

logger = logging.getLogger(__name__)

_NUM_QUERIES = 64


def refresh(folder: Path, *, exact_up_to: int | None = None, progress: bool = True) -> Candidacy | None:
    """Moves the embeddings of an index into one file, and prepares approximate search if it has many windows.

    It does nothing if both are up to date.

    Args:
        folder: folder of the index, whose lock the caller holds.
        exact_up_to: number of windows up to which each query is compared with all of them; None for the number that takes
            about a second.
        progress: whether to show progress on standard error.

    Returns:
        How approximate search finds candidates; None if search is exact, over all windows.

    Raises:
        SearchError: if a file of the index is damaged.
        OSError: if a file cannot be written.
    """
    if not len(found_windows(folder)):
        return None
    index = Index(folder)
    config = checkpoint_config(Path(index.settings.checkpoint))  # not `index.model`: its weights may not be needed
    move_embeddings(folder, index.settings.embeddings, index.windows, config.video.max_frames)
    limit = exact_limit(INTERACTIONS[config.similarity.kind]) if exact_up_to is None else exact_up_to
    if len(index) <= limit:
        shutil.rmtree(folder / "candidates", ignore_errors=True)
        return None
    if not has_faiss():
        logger.warning(
            f"each search will compare the query with all {len(index):,} windows, which takes long: install FAISS for "
            "approximate search (pip install -e '.[search]'), and run `waver index` again"
        )
        return None
    if there := open_candidates(folder, windows_digest(index.windows)):
        return there.candidacy
    return _build(index, progress=progress)


def _build(index: Index, *, progress: bool) -> Candidacy:
    model, vectors = index.model, Vectors(index.path, index.settings.embeddings, index.windows)
    windows, queries = WindowScores(vectors, model), _choose_queries(index)
    shown = {"doing": "choosing candidates", "unit": "windows", "total": len(index), "enabled": progress}
    with torch.no_grad():
        candidacy = build_candidates(
            index.path,
            windows_digest(index.windows),
            len(index),
            track_progress(windows.all_embeddings(), size=len, **shown),
            model.student.interaction,
            queries,
            model.similarity,
        )
    logger.info(f"search is {candidacy}")
    return candidacy


def _choose_queries(index: Index) -> Queries:
    """Returns queries to measure the recall of candidates: validation captions of the model's run.

    If the captions cannot be read, windows of the index serve as queries. For `xti` there are no queries.
    """
    if index.model.student.interaction.build_module is not None:
        return Queries(None, "the model would need hours for the exact search that it is compared with")
    random = np.random.default_rng(0)
    try:
        texts = build_gallery(load_captions(index.model.config), "validation").texts
    except (WaverError, OSError) as error:
        logger.info(
            f"the validation captions cannot be read ({error}): the recall of candidates is measured with windows as queries"
        )
        numbers = random.choice(len(index), min(_NUM_QUERIES, len(index)), replace=False)
        return Queries(index.embeddings(numbers.tolist()), f"{len(numbers)} windows as queries, in place of captions")
    chosen = random.choice(len(texts), min(_NUM_QUERIES, len(texts)), replace=False)
    return Queries(index.model.embed_texts([texts[i] for i in chosen]), f"{len(chosen)} validation captions")
