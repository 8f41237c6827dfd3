"""Chooses the score below which probably nothing in an index fits a query, on the validation split of the model's run.

The threshold is chosen such that at most a share `ERROR_RATE` of the validation captions score their own clip below it
(split conformal prediction, Vovk et al., "Algorithmic Learning in a Random World", 2005). If the best window of a query
scores below the threshold, probably nothing fits.

This verdict is wrong for at most a share `ERROR_RATE` of the queries that have an answer, in an index of any size: if a
window fits, the best score of the query is at least the score of this window. It assumes that

- queries and videos are like those of the validation split,
- the search is exact. Approximate search can also miss the window that fits, see `waver.search.candidates`.

The best checkpoint of a run is chosen on the same split. This makes its scores look slightly better than those of new
queries.

How many queries without an answer score below the threshold depends on the number of clips that they are compared with: the
best of more wrong clips scores higher.
"""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from waver.search.index import SearchError
from waver.tools.files import read_json, write_json

ERROR_RATE = 0.05
MIN_QUERIES = 100
"""Captions that the validation split must have: of 100 captions, the fifth lowest score is the threshold."""


@dataclass(frozen=True)
class Calibration:
    """The score below which probably nothing fits, and how reliable it is on the validation split."""

    threshold: float
    """If the best score of a query is below it, probably nothing fits."""
    error_rate: float
    """Share of the queries with an answer that score this answer below the threshold, at most."""
    detection_rate: float
    """Share of the validation captions that would score below the threshold if their own clip were missing."""
    num_queries: int
    """Number of captions of the validation split."""
    num_clips: int
    """Number of clips that each of them was compared with."""

    def nothing_fits(self, best_score: float) -> bool:
        """Returns whether probably nothing fits a query with this best score."""
        return best_score < self.threshold

    @property
    def verdict(self) -> str:
        """What a user is told if nothing fits a query."""
        return (
            f"Probably nothing fits: no score reaches {self.threshold:.3f}. This is wrong for at most "
            f"{self.error_rate:.0%} of the queries that have an answer, measured on {self.num_queries} validation captions."
        )

    def __str__(self) -> str:
        return (
            f'if the best score is below {self.threshold:.3f}, "probably nothing fits": on {self.num_queries} validation '
            f"captions, this is wrong for at most {self.error_rate:.0%} of the queries that have an answer, and right for "
            f"{self.detection_rate:.0%} of those that have none among {self.num_clips} clips (other videos and queries can "
            "differ)"
        )


@dataclass(frozen=True)
class Uncalibrated:
    """Why an index has no threshold."""

    reason: str

    def __str__(self) -> str:
        return f"whether anything fits a query is unknown: {self.reason}"


def calibrate(
    own: Float[Tensor, " texts"], others: Float[Tensor, " texts"], num_clips: int
) -> Calibration | Uncalibrated:
    """Chooses the threshold; returns why there is none if the validation split has fewer than `MIN_QUERIES` captions.

    Args:
        own: score of each validation caption with its own clip; -inf if it is not known.
        others: best score of each caption with a wrong clip; duplicates of its own clip are not wrong.
        num_clips: number of clips that each caption was compared with.
    """
    if len(own) < MIN_QUERIES:
        return Uncalibrated(
            f"the validation split has {len(own)} captions, and an error rate of {ERROR_RATE:.0%} needs {MIN_QUERIES}"
        )
    # Of exchangeable queries, a new one scores below the k-th smallest of n with a probability of at most k / (n + 1).
    rank = math.floor(ERROR_RATE * (len(own) + 1))
    threshold = own.sort().values[rank - 1].item()
    return Calibration(threshold, ERROR_RATE, (others < threshold).double().mean().item(), len(own), num_clips)


def write_calibration(index: Path, calibration: Calibration | Uncalibrated) -> None:
    """Writes `calibration.json` into the folder of an index."""
    write_json(index / "calibration.json", dataclasses.asdict(calibration))


def read_calibration(index: Path) -> Calibration | Uncalibrated:
    """Reads `calibration.json` in the folder of an index.

    Raises:
        SearchError: if the file is damaged.
    """
    path = index / "calibration.json"
    if not path.exists():
        return Uncalibrated("the index was not calibrated: run `waver index` again")
    try:
        content = read_json(path)
        return Uncalibrated(**content) if "reason" in content else Calibration(**content)
    except (OSError, ValueError, TypeError) as error:
        raise SearchError(f"{path} is damaged ({error}): delete it, and run `waver index` again") from error
