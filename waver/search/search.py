"""Searches an index with a sentence or with a moment of a video, by the model's own interaction."""

import logging
import math
from collections.abc import Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from waver.data.clip import ClipError
from waver.model.embeddings import Embeddings
from waver.runs.checkpoint import checkpoint_config
from waver.search.answers import Answer, Match, WindowRows, best_windows, describe_window, span_of
from waver.search.calibration import Calibration, Uncalibrated, read_calibration
from waver.search.candidates import Candidates, exact_limit, open_candidates, pool_texts, pool_windows
from waver.search.index import SearchError, checkpoint_digest, found_windows, read_settings
from waver.search.model import Model
from waver.search.moments import Moment, parse_moments
from waver.search.scoring import WindowScores
from waver.search.vectors import Vectors, windows_digest

logger = logging.getLogger(__name__)

_CANDIDATES_PER_ANSWER = 20
"""Candidates for each requested answer, at least: many of them may overlap a better one, and are then left out."""


class Index:
    """An index that is open for search. Windows that are added later are not seen.

    Attributes:
        path: folder of the index.
        settings: see `IndexSettings`.
        windows: the windows that a search can return, WINDOWS_SCHEMA. The number of a window is its row in this table.
        calibration: the score below which probably nothing fits a query, or why there is none.

    Raises:
        SearchError: if there is no index, or it is damaged or empty, or its checkpoint has changed or is gone.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.settings = read_settings(self.path)
        self.windows = found_windows(self.path)
        if not len(self.windows):
            raise SearchError(f"{self.path} has no windows yet: run `waver index RUN VIDEOS --to {self.path}`")
        checkpoint = Path(self.settings.checkpoint)
        if not checkpoint.is_dir() or checkpoint_digest(checkpoint) != self.settings.weights:
            raise SearchError(
                f"the model of {self.path} has changed or is gone ({checkpoint}): index again, into another folder "
                "(--to FOLDER)"
            )
        self.calibration: Calibration | Uncalibrated = read_calibration(self.path)

    def __len__(self) -> int:
        return len(self.windows)

    @cached_property
    def model(self) -> Model:
        """The model of the index, loaded when it is first needed."""
        checkpoint = Path(self.settings.checkpoint)
        return Model(checkpoint, checkpoint_config(checkpoint))

    @cached_property
    def candidates(self) -> Candidates | None:
        """Finds candidates of a query for approximate search; None if search is exact, over all windows.

        Raises:
            SearchError: if the candidates are damaged, or FAISS is not installed.
        """
        found = open_candidates(self.path, windows_digest(self.windows))
        if found is None and len(self) > exact_limit(self.model.student.interaction):
            logger.warning(
                f"each query is compared with all {len(self):,} windows, which takes long: run `waver index` again, which "
                "prepares approximate search"
            )
        return found

    def search(
        self, query: str, top: int = 10, *, distinct: bool = True, among: Bool[np.ndarray, " windows"] | None = None
    ) -> list[Answer]:
        """Returns the windows that fit a sentence best; see `search_all`."""
        return self.search_all([query], top, distinct=distinct, among=among)[0]

    def search_all(
        self,
        queries: Sequence[str],
        top: int = 10,
        *,
        distinct: bool = True,
        among: Bool[np.ndarray, " windows"] | None = None,
    ) -> list[list[Answer]]:
        """Returns, for each sentence, the windows that fit it best.

        If the index has `candidates`, only these are ranked. Windows with equal scores are sorted by video and time.

        Args:
            queries: the sentences.
            top: number of windows to return for each, at most.
            distinct: whether to leave out windows that overlap a better one of the same video.
            among: True for the windows that may be returned; None for all.

        Raises:
            SearchError: if a query is empty, or a score is NaN.
        """
        if empty := [number for number, query in enumerate(queries) if not query.strip()]:
            raise SearchError(f"query {empty[0] + 1} is empty: write a sentence that describes what to find")
        text = self.model.embed_texts(queries)
        if self.candidates is None:
            return [self.rank(row, top, distinct=distinct, among=among) for row in self.scores(text)]
        found = self._candidates_of(pool_texts(self.model.student.interaction, text), top, among)
        scores = [self._scores.of_texts(text[row : row + 1], numbers)[0] for row, numbers in enumerate(found)]
        each = zip(scores, found, strict=True)
        return [self._rank_some(*one, top, distinct=distinct, among=among) for one in each]

    def like(
        self,
        query: int | Embeddings,
        top: int = 10,
        *,
        distinct: bool = True,
        among: Bool[np.ndarray, " windows"] | None = None,
    ) -> list[Answer]:
        """Returns the windows most like another window or video, from frames alone; see `WindowScores.of_video`.

        With `distinct`, neither the window itself nor windows that overlap it are returned.

        Args:
            query: a window of the index, or the embeddings of one video, see `moment`.
            top, distinct, among: see `search_all`.

        Raises:
            SearchError: if a score is NaN.
        """
        video = self.embeddings([query]) if isinstance(query, int) else query
        taken = [query] if isinstance(query, int) else []
        numbers: Sequence[int] = range(len(self))
        if self.candidates is not None:
            numbers = self._candidates_of(pool_windows(self.model.student.interaction, video), top, among)[0]
        scores = self._scores.of_video(video, None if self.candidates is None else numbers)[0]
        return self._rank_some(scores, numbers, top, distinct=distinct, among=among, taken=taken)

    def against(self, video: int | Embeddings, sentences: Sequence[str]) -> list[Match]:
        """Compares one moment of a video with some sentences; returns a match for each, in their order.

        Args:
            video: a window of the index, or the embeddings of one video, see `moment`.
            sentences: at least one.
        """
        embeddings = self.embeddings([video]) if isinstance(video, int) else video
        text = self.model.embed_texts(sentences)
        scores = self.model.similarity(text, embeddings)[:, 0].cpu()
        shares = (scores * self.model.student.logit_scale.exp().cpu()).softmax(dim=0)
        rows = zip(sentences, scores.tolist(), shares.tolist(), strict=True)
        return [Match(sentence, score, share) for sentence, score, share in rows]

    def moment(self, text: str) -> int | Embeddings:
        """Returns the number of the window at a moment such as `kitchen/0001.mp4@12.5`, or the embeddings of a file.

        If the video is indexed, the window is the one whose middle is nearest to the time. A file that is not indexed is
        decoded and embedded: a window around the time, or the whole video if there is no time.

        Raises:
            SearchError: if there is no such video or time, or the video has several windows and no time is given,
                or the file cannot be decoded.
        """
        for moment in reversed(parse_moments(text)):
            if moment.video in self._of_video:
                return self._window_at(moment)
        for moment in parse_moments(text):
            if Path(moment.video).is_file():
                return self._embed(moment)
        raise SearchError(
            f"{text}: no video of the index and no file has this name; write VIDEO@SECONDS, as in a.mp4@12.5"
        )

    def rank(
        self,
        scores: Float[Tensor, " windows"],
        top: int = 10,
        *,
        distinct: bool = True,
        among: Bool[np.ndarray, " windows"] | None = None,
    ) -> list[Answer]:
        """Returns the best windows, given the scores of all; see `search_all`."""
        return self._rank_some(scores, range(len(self)), top, distinct=distinct, among=among)

    def _rank_some(
        self,
        scores: Float[Tensor, " some"],
        numbers: Sequence[int],
        top: int,
        *,
        distinct: bool,
        among: Bool[np.ndarray, " windows"] | None,
        taken: Sequence[int] = (),
    ) -> list[Answer]:
        """Returns the best of some windows, given the score of each of them."""
        self._check(scores, numbers)
        best = best_windows(scores, numbers, self.rows, distinct=distinct, among=among, taken=taken)
        return [
            describe_window(self.path, self.rows[numbers[place]], numbers[place], rank, scores[place].item())
            for rank, place in enumerate(islice(best, top), start=1)
        ]

    def scores(self, text: Embeddings) -> Float[Tensor, "T windows"]:
        """Computes the similarity of texts with every window, in the order of `windows`.

        Raises:
            SearchError: if a score is NaN.
        """
        scores = self._scores.of_texts(text)
        for row in scores:
            self._check(row, range(len(self)))
        return scores

    def embeddings(self, numbers: Sequence[int]) -> Embeddings:
        """Reads the embeddings of some windows."""
        return self._scores.embeddings(numbers)

    def nothing_fits(self, best_score: float) -> bool:
        """Returns whether probably nothing fits a query with this best score; False if the index is not calibrated."""
        return isinstance(self.calibration, Calibration) and self.calibration.nothing_fits(best_score)

    @cached_property
    def rows(self) -> WindowRows:
        """The rows of `windows` as dictionaries."""
        return WindowRows(self.windows)

    def _candidates_of(
        self, queries: Float[Tensor, "Q D"], top: int, among: Bool[np.ndarray, " windows"] | None
    ) -> list[list[int]]:
        """Returns the numbers of the windows to compare with each query; all of `among` if they are few."""
        assert self.candidates is not None, "asked before"
        number = max(self.candidates.candidacy.num_candidates, _CANDIDATES_PER_ANSWER * top)
        chosen = np.arange(len(self)) if among is None else np.flatnonzero(among)
        if len(chosen) <= number:
            return [chosen.tolist()] * len(queries)
        candidacy = self.candidates.candidacy
        # More candidates than the recall was measured with come from proportionally more lists.
        num_searched = math.ceil(candidacy.num_searched * number / candidacy.num_candidates)
        some = None if among is None else chosen
        found = self.candidates.find(queries.cpu().numpy(), number, num_searched=num_searched, among=some)
        return [numbers.tolist() for numbers in found]

    @cached_property
    def _scores(self) -> WindowScores:
        return WindowScores(Vectors(self.path, self.settings.embeddings, self.windows), self.model)

    def _check(self, scores: Float[Tensor, " some"], numbers: Sequence[int]) -> None:
        if scores.isnan().any():
            window = self.rows[numbers[int(scores.isnan().int().argmax())]]["window_id"]
            raise SearchError(
                f"the score of {window} is NaN: the training of the model has diverged, or its weights are damaged; index "
                "with another checkpoint"
            )

    @cached_property
    def _of_video(self) -> dict[str, list[int]]:
        """Id of a video -> its windows."""
        windows: dict[str, list[int]] = {}
        for number, video in enumerate(self.windows["video_id"].to_pylist()):
            windows.setdefault(video, []).append(number)
        return windows

    def _window_at(self, moment: Moment) -> int:
        """Returns the window of an indexed video whose middle is nearest to a time."""
        numbers = self._of_video[moment.video]
        if len(numbers) == 1 and moment.time_s is None:
            return numbers[0]
        if moment.time_s is None:
            middle_s = sum(span_of(self.rows[numbers[0]])) / 2
            raise SearchError(
                f"{moment.video} has {len(numbers)} windows: name a time, as in {moment.video}@{middle_s:g}"
            )
        time_s = moment.time_s
        spans = {number: span_of(self.rows[number]) for number in numbers}
        around = [number for number, (start_s, end_s) in spans.items() if start_s <= time_s <= end_s]
        if not around:
            last_s = max(end_s for _, end_s in spans.values())
            raise SearchError(
                f"{moment.video} has no window at {time_s:g} s: its windows are between "
                f"{min(start_s for start_s, _ in spans.values()):g} and {last_s:g} s"
            )
        return min(around, key=lambda number: abs(sum(spans[number]) / 2 - time_s))

    def _embed(self, moment: Moment) -> Embeddings:
        """Embeds a moment of a file that is not in the index."""
        window_s, spans = self.settings.windows.window_s, None
        if moment.time_s is not None and window_s is not None:
            start_s = max(0.0, moment.time_s - window_s / 2)
            spans = [(start_s, start_s + window_s)]
        try:
            return self.model.embed_videos([moment.video], spans)
        except ClipError as error:
            length = "" if error.video_s is None else f"; the video has {error.video_s:g} s"
            raise SearchError(f"{moment.video} cannot be compared: {error.reason}{length}") from error


def open_index(folder: Path | str) -> Index:
    """Opens an index that `waver index` made.

    Raises:
        SearchError: see `Index`.
    """
    return Index(folder)
