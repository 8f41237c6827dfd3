"""Says whether anything in an index fits a query, with an error rate that was measured on the validation split.

A threshold is chosen such that a share `error_rate` of the validation captions score their own clip below it. If the best
window of a query scores below the threshold, probably nothing fits. If a window fits, the best score is not below that of
this window. So at most a share `error_rate` of the queries that have an answer are told so wrongly, in an index of any size,
as long as queries and videos are like those of the validation split (split conformal prediction, Vovk et al., "Algorithmic
Learning in a Random World", 2005).

How many queries without an answer are recognised depends on the number of clips they are compared with, since the best of
more wrong clips scores higher.
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
"""Captions that validation must have: with fewer, the share `ERROR_RATE` rests on less than five captions."""


@dataclass(frozen=True)
class Calibration:
    """A threshold of scores, and how often it is wrong on the validation split."""

    threshold: float
    """If the best score of a query is below, probably nothing fits."""
    error_rate: float
    """Share of the queries with an answer that score it below the threshold, at most."""
    detection_rate: float
    """Share of the queries whose best wrong clip scores below the threshold."""
    num_queries: int
    """Captions of the validation split."""
    num_clips: int
    """Clips that each of them was compared with."""

    def nothing_fits(self, best_score: float) -> bool:
        """Returns whether a query with this best score probably has no answer."""
        return best_score < self.threshold

    @property
    def verdict(self) -> str:
        """What a user is told of such a query."""
        return (
            f"Probably nothing fits: no score reaches {self.threshold:.3f}. This is wrong for at most "
            f"{self.error_rate:.0%} of the queries that have an answer, measured on {self.num_queries} validation captions."
        )

    def __str__(self) -> str:
        return (
            f'below a score of {self.threshold:.3f}, "probably nothing fits": on {self.num_queries} validation captions '
            f"this is wrong for at most {self.error_rate:.0%} of the queries that have an answer, and recognises "
            f"{self.detection_rate:.0%} of those that have none among {self.num_clips} clips (other videos and queries can "
            "differ)"
        )


@dataclass(frozen=True)
class Uncalibrated:
    """Says why there is no threshold."""

    reason: str

    def __str__(self) -> str:
        return f"whether anything fits cannot be told: {self.reason}"


def calibrate(
    own: Float[Tensor, " texts"], others: Float[Tensor, " texts"], num_clips: int
) -> Calibration | Uncalibrated:
    """Chooses the threshold.

    Args:
        own: score of each validation caption with its own clip; -inf if it is not known.
        others: best score of each with another clip that does not fit as well.
        num_clips: clips that each caption was compared with.
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
