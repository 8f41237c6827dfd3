"""TensorBoard tags of the scalars of a run, and the layout of its custom scalars dashboard."""

from collections.abc import Iterable
from typing import Any

_GROUPS = (
    ("retrieval", ("t2v/", "v2t/")),
    ("styles", ("styles/",)),
    ("loss", ("loss/",)),
    ("model", ("logit_scale", "logit_bias", "entropy/", "agreement/", "accuracy/", "distill/")),
    ("optimizer", ("lr/", "grad_norm")),
    ("speed", ("clips_per_s", "data_wait_share", "gpu", "memory")),
    ("data", ("clips/", "batch/")),
)
"""(group, prefixes of the names of its scalars), in display order. TensorBoard sorts by name, so tags number the groups."""
PAIRS_SEEN = f"{len(_GROUPS) + 1} by pairs seen"
"""Group of the second series of a scalar, over caption-clip pairs seen instead of optimizer steps."""
_BY_PAIRS = ("loss/total", "t2v/R@1", "v2t/R@1")


def tag_of(name: str) -> str:
    """Returns the tag of a scalar, such as `1 retrieval/t2v R@1` for `t2v/R@1`; a name of no group is its own tag."""
    for number, (group, prefixes) in enumerate(_GROUPS, 1):
        if name.startswith(prefixes):
            return f"{number} {group}/{name.removeprefix(f'{group}/').replace('/', ' ')}"
    return name


def pairs_tag_of(name: str) -> str | None:
    """Returns the tag of a scalar's series over pairs seen; None for a scalar without such a series."""
    return f"{PAIRS_SEEN}/{name.replace('/', ' ')}" if name in _BY_PAIRS else None


def layout(names: Iterable[str]) -> dict[str, dict[str, list[Any]]]:
    """Lays out the custom scalars dashboard: categories of charts that show several scalars each.

    Args:
        names: names of all scalars of a run; a chart without any is left out.

    Returns:
        Argument of `SummaryWriter.add_custom_scalars`.
    """
    names = list(names)

    def chart(*prefixes: str) -> list[Any]:
        return ["Multiline", [tag_of(name) for name in names if name.startswith(prefixes)]]

    charts = {
        "retrieval on validation": {
            "recall, text to video": chart("t2v/R@"),
            "recall, video to text": chart("v2t/R@"),
            "median and mean rank": chart("t2v/M", "v2t/M"),
            "R@1 by style of the query": chart("styles/"),
        },
        "learning": {
            "loss and its terms": chart("loss/"),
            "entropy of weights and attention (1: all alike)": chart("entropy/"),
            "plain and informed agree": chart("agreement/"),
            "first answers in the batch that are right": chart("accuracy/"),
            "candidates of a distillation target": chart("distill/candidates"),
            "weight of the distillation": chart("distill/weight"),
            "pairs of the batch with equal captions": chart("batch/shared_captions"),
            "learning rates": chart("lr/"),
            "gradient norm before clipping": chart("grad_norm"),
            "scale and bias of similarities": chart("logit_scale", "logit_bias"),
        },
        "speed": {
            "clips a second": chart("clips_per_s"),
            "share of time spent waiting for data": chart("data_wait_share"),
            "memory": chart("memory", "gpu_memory"),
            "GPU utilisation": chart("gpu_utilisation"),
        },
    }
    filled = {title: {name: c for name, c in group.items() if c[1]} for title, group in charts.items()}
    return {title: group for title, group in filled.items() if group}
