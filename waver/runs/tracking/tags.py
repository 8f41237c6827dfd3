"""Where a figure stands in TensorBoard: groups whose order tells the story, and the curves that belong together."""

from collections.abc import Iterable

_GROUPS = (
    ("retrieval", ("t2v/", "v2t/")),
    ("styles", ("styles/",)),
    ("loss", ("loss/",)),
    ("model", ("logit_scale", "entropy/", "agreement/")),
    ("optimizer", ("lr/", "grad_norm")),
    ("speed", ("clips_per_s", "data_wait_share", "gpu", "memory")),
    ("data", ("clips/",)),
)
"""Group -> how the names of its figures begin. TensorBoard sorts groups by name, so they are numbered."""
PAIRS_SEEN = f"{len(_GROUPS) + 1} by pairs seen"
"""Group of the second series: the same figures, by pairs seen in place of optimizer steps."""
_BY_PAIRS = ("loss/total", "t2v/R@1", "v2t/R@1")


def tag_of(name: str) -> str:
    """`t2v/R@1` -> `1 retrieval/t2v R@1`; what belongs to no group stays as it is."""
    for number, (group, starts) in enumerate(_GROUPS, 1):
        if name.startswith(starts):
            return f"{number} {group}/{name.removeprefix(f'{group}/').replace('/', ' ')}"
    return name


def pairs_tag_of(name: str) -> str | None:
    """The tag of a figure in the series by pairs seen; None where it has none: runs are compared by a few figures."""
    return f"{PAIRS_SEEN}/{name.replace('/', ' ')}" if name in _BY_PAIRS else None


def layout(names: Iterable[str]) -> dict[str, dict[str, list]]:
    """Charts of the custom scalars dashboard, each with the curves that are read together.

    Args:
        names: of all figures that a run writes.

    Returns:
        What `SummaryWriter.add_custom_scalars` takes.
    """
    names = list(names)

    def chart(*starts: str) -> list:
        return ["Multiline", [tag_of(name) for name in names if name.startswith(starts)]]

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
            "learning rates": chart("lr/"),
            "gradient norm before clipping": chart("grad_norm"),
            "scale of similarities": chart("logit_scale"),
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
