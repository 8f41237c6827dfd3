"""metrics."""

from jaxtyping import Float
from torch import Tensor

from waver.evaluation.ranking import Ranks


def retrieval_metrics(ranks: Ranks) -> dict[str, float]:
    """`t2v/R@1`, `R@5`, `R@10` in percent, `MdR` and `MnR`; the same for `v2t`.

    A miss is outside every R@K; for the median and mean rank it counts as the last place of the gallery.
    """
    gallery_size = len(ranks.v2t)
    return direction_metrics("t2v", ranks.t2v, gallery_size) | direction_metrics("v2t", ranks.v2t, gallery_size)


def direction_metrics(direction: str, ranks: Float[Tensor, " queries"], gallery_size: int) -> dict[str, float]:
    """Those metrics of one direction, for all of its queries or for some."""
    metrics = {f"{direction}/R@{k}": 100 * (ranks <= k).double().mean().item() for k in (1, 5, 10)}
    places = ranks.clamp(max=gallery_size).sort().values
    middle = len(places) // 2
    metrics[f"{direction}/MdR"] = ((places[middle] + places[~middle]) / 2).item()
    metrics[f"{direction}/MnR"] = places.mean().item()
    return metrics


def chance(num_clips: int) -> dict[str, float]:
    """What `retrieval_metrics` is in expectation for random scores: every clip (or group of captions) equally likely."""
    metrics = {f"{d}/R@{k}": 100 * min(k / num_clips, 1.0) for d in ("t2v", "v2t") for k in (1, 5, 10)}
    return metrics | {f"{d}/{name}": (num_clips + 1) / 2 for d in ("t2v", "v2t") for name in ("MdR", "MnR")}
