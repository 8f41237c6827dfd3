"""Compares the runs of the experiment: tables in Markdown, and plots.

The figures of a run are those of its checkpoint with the highest validation R@1 on captions of seen writers. A mean over
rotations, seeds and contents (the two clips of a triple) has an interval that treats all three as random, see
`waver.evaluation.intervals.crossed_interval`. Rotations share vocabularies, so they are not quite independent.

Who trains longer forgets more and finds more with seen writers, so that unseen writers alone would reward who learns less.
The primary comparison is therefore at equal R@1 of seen writers: a run is compared with the point of the learning curve of
the baseline, of the same rotation and seed, that has the same R@1 of seen writers, between two of its checkpoints. A run
whose R@1 is beyond this curve is compared with the nearest point; the table says how many runs are.
"""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from experiments.style_world.runs import test_queries
from experiments.style_world.study import seen_vocabularies
from experiments.style_world.ways import BASELINE, WAYS, Way
from experiments.style_world.world import CLIPS_PER_TRIPLE
from experiments.style_world.writers import VOCABULARIES, WRITERS
from waver.evaluation.intervals import MeanInterval, crossed_interval, holm
from waver.tools.html import new_figure, svg

Found = Mapping[tuple[str, int, int], Mapping[str, Mapping[str, Any]]]
"""(way, rotation, seed) -> the result of `runs.run`."""
PRIMARY = "phrases of captions"
"""The way that the primary comparison is about; all others are corrected for their number."""
_GROUPS = ("seen", "unseen")


class Results:
    """The results of all runs, as arrays over rotations, seeds and contents.

    Args:
        found: result of each run.
        captions: caption table.
    """

    def __init__(self, found: Found, captions: pa.Table):
        queries = test_queries(captions)
        clip_ids, self._clip = np.unique(queries["clip_id"].to_pylist(), return_inverse=True)
        self.num_clips = len(clip_ids)
        # Consecutive clips of test share a triple and differ in size: they are one content, not two draws.
        self._content = self._clip // CLIPS_PER_TRIPLE["test"]
        self.num_contents = int(self._content.max()) + 1
        vocabularies = [WRITERS[style].vocabulary for style in queries["style"].to_pylist()]
        self._vocabulary = np.array([VOCABULARIES.index(vocabulary) for vocabulary in vocabularies])
        self._found = found
        self.ways = list(dict.fromkeys(way for way, _, _ in found))
        self.rotations = sorted({rotation for _, rotation, _ in found})
        self.seeds = sorted({seed for _, _, seed in found})
        self.last = [name for name in next(iter(found.values())) if name.startswith("epoch")][-1]
        """Name of the last epoch."""

    def over(self, group: str, way: str, measure=None, checkpoint=None) -> np.ndarray:
        """Returns (rotations, seeds, contents): the mean of a measure over the captions of a clip by seen or unseen writers.

        Args:
            group: seen or unseen.
            way: name of the way.
            measure: of ranks; by default whether the rank is 1.
            checkpoint: its name; by default that with the highest validation R@1 of each run.
        """
        measure = measure or (lambda ranks: ranks <= 1)
        return np.array(
            [
                [self._of_run(group, way, rotation, seed, measure, checkpoint) for seed in self.seeds]
                for rotation in self.rotations
            ]
        )

    def _of_run(self, group, way, rotation, seed, measure, checkpoint) -> np.ndarray:
        result = self._found[way, rotation, seed]
        ranks = result[checkpoint or chosen(result)]["ranks"]
        return self._per_content(measure(ranks), group, rotation)

    def _per_content(self, values: np.ndarray, group: str, rotation: int) -> np.ndarray:
        seen = [VOCABULARIES.index(vocabulary) for vocabulary in seen_vocabularies(rotation)]
        inside = np.isin(self._vocabulary, seen, invert=group == "unseen")
        sums = np.bincount(self._content[inside], values[inside].astype(float), self.num_contents)
        return sums / np.bincount(self._content[inside], minlength=self.num_contents)

    def at_equal_seen(self, way: str) -> np.ndarray:
        """Returns (rotations, seeds, contents): R@1 of unseen writers less the baseline's at equal R@1 of seen ones."""
        return np.array([[self._matched(way, rotation, seed) for seed in self.seeds] for rotation in self.rotations])

    def num_beyond(self, way: str) -> int:
        """Returns the number of runs whose R@1 of seen writers no point of the baseline's curve has.

        `at_equal_seen` compares such a run with the nearest point, so not at equal R@1.
        """
        number = 0
        for rotation, seed in itertools.product(self.rotations, self.seeds):
            ours, curve = self._with_baseline(way, rotation, seed)
            levels = [point["seen"].mean() for point in curve]
            number += not min(levels) <= ours["seen"].mean() <= max(levels)
        return number

    def _with_baseline(self, way: str, rotation: int, seed: int) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
        """Returns group -> hits of a run, and the same for each checkpoint of the baseline."""

        def of(name: str, checkpoint: str | None) -> dict[str, np.ndarray]:
            first = lambda ranks: ranks <= 1  # noqa: E731
            return {group: self._of_run(group, name, rotation, seed, first, checkpoint) for group in _GROUPS}

        return of(way, None), [of(BASELINE, name) for name in self._found[BASELINE, rotation, seed]]

    def _matched(self, way: str, rotation: int, seed: int) -> np.ndarray:
        ours, curve = self._with_baseline(way, rotation, seed)
        levels, level = [point["seen"].mean() for point in curve], ours["seen"].mean()
        for (low, high), (before, after) in zip(itertools.pairwise(levels), itertools.pairwise(curve), strict=True):
            if min(low, high) <= level <= max(low, high) and low != high:
                share = (level - low) / (high - low)
                return ours["unseen"] - (1 - share) * before["unseen"] - share * after["unseen"]
        nearest = curve[int(np.argmin(np.abs(np.array(levels) - level)))]
        return ours["unseen"] - nearest["unseen"]

    def consistency(self, way: str) -> float:
        """Returns the share of clips that captions of all vocabularies find at rank 1, over all runs."""
        runs = [self._found[way, rotation, seed] for rotation in self.rotations for seed in self.seeds]
        hits = [run[chosen(run)]["ranks"] <= 1 for run in runs]
        return float(np.mean([np.bincount(self._clip, ~hit, self.num_clips) == 0 for hit in hits]))

    def hubness(self, way: str) -> float:
        """Returns the share of the clips that are the first answer of no caption, over all runs."""
        runs = [self._found[way, rotation, seed] for rotation in self.rotations for seed in self.seeds]
        answers = [run[chosen(run)]["answers"] for run in runs]
        return float(np.mean([1 - len(np.unique(of_run)) / self.num_clips for of_run in answers]))

    def seconds(self, way: str) -> float:
        """Returns the median time of training."""
        return float(np.median([run[self.last]["seconds"] for (name, _, _), run in self._found.items() if name == way]))

    def curve(self, way: str) -> dict[str, dict[str, float]]:
        """Returns checkpoint -> group -> R@1 in percent, mean over rotations, seeds and contents."""
        names = self._found[way, self.rotations[0], self.seeds[0]]
        return {
            name: {group: 100 * self.over(group, way, checkpoint=name).mean() for group in _GROUPS} for name in names
        }


def chosen(result: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the checkpoint with the highest validation R@1; of equal ones the later."""
    return max(reversed(list(result)), key=lambda name: float(result[name]["validation"]))


def write_report(
    folder: Path, ways: Mapping[str, Way], found: Found, tuned: Mapping[str, Mapping[str, Any]], captions: pa.Table
) -> None:
    """Writes tables and plots into a folder, and prints the tables."""
    folder.mkdir(parents=True, exist_ok=True)
    results = Results(found, captions)
    text = "\n\n".join([gap_text(results), table(results, ways, tuned), curves_table(results)])
    (folder / "report.md").write_text(text + "\n", encoding="utf-8")
    (folder / "curves.svg").write_text(draw_curves(results), encoding="utf-8")
    print(text)


def gap_text(results: Results) -> str:
    """Returns what fine-tuning on seen writers does to R@1 of both groups: whether the comparison can tell anything."""
    start = {group: results.over(group, BASELINE, checkpoint="epoch 0") for group in _GROUPS}
    end = {group: results.over(group, BASELINE, checkpoint=results.last) for group in _GROUPS}
    opened = crossed_interval((end["seen"] - end["unseen"]) - (start["seen"] - start["unseen"]))
    lines = [
        f"Gap between seen and unseen writers that {BASELINE} opens until {results.last}: {_points(opened)} points of R@1 "
        f"({len(results.rotations)} rotations x {len(results.seeds)} seeds x {results.num_contents} triples of two clips).",
        "The comparison is informative."
        if opened.mean > 0.05
        else "The comparison is UNINFORMATIVE: less than 5 points.",
    ]
    return "\n".join(lines)


def table(results: Results, ways: Mapping[str, Way], tuned: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the table of all ways, with differences from the baseline."""
    header = (
        "way | tuned | seen R@1 | unseen R@1 | unseen MRR | difference, unseen (95 %) | at equal seen R@1 (95 %) | "
        "p (Holm) | consistent | never found | seconds"
    )
    lines = [f"| {header} |", "|" + "---|" * 11, _zero_shot_row(results)]
    matched = {way: crossed_interval(results.at_equal_seen(way)) for way in results.ways if way != BASELINE}
    others = [way for way in matched if way != PRIMARY]
    corrected = dict(zip(others, holm(np.array([matched[way].p_value for way in others])), strict=True))
    for way in results.ways:
        cells = [
            way,
            ", ".join(
                f"{key.removeprefix('train.').removeprefix('loss.')} {value:g}" for key, value in tuned[way].items()
            ),
        ]
        cells += [f"{100 * results.over(group, way).mean():.1f}" for group in _GROUPS]
        cells.append(f"{results.over('unseen', way, lambda ranks: 1 / ranks).mean():.3f}")
        if way == BASELINE:
            cells += ["", "", ""]
        else:
            cells.append(_points(crossed_interval(results.over("unseen", way) - results.over("unseen", BASELINE))))
            p = matched[way].p_value if way == PRIMARY else corrected[way]
            beyond, runs = results.num_beyond(way), len(results.rotations) * len(results.seeds)
            note = f"; {beyond} of {runs} runs beyond the curve" if beyond else ""
            cells += [_points(matched[way]) + note, f"{p:.4f}" + (" (primary)" if way == PRIMARY else "")]
        cells += [
            f"{100 * results.consistency(way):.1f}",
            f"{100 * results.hubness(way):.1f}",
            f"{results.seconds(way):.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _zero_shot_row(results: Results) -> str:
    values = [f"{100 * results.over(group, BASELINE, checkpoint='epoch 0').mean():.1f}" for group in _GROUPS]
    mrr = results.over("unseen", BASELINE, lambda ranks: 1 / ranks, checkpoint="epoch 0").mean()
    return f"| start, no training | | {' | '.join(values)} | {mrr:.3f} | | | | | | 0 |"


def curves_table(results: Results) -> str:
    """Returns R@1 of seen / unseen writers after each tested epoch."""
    epochs = [name for name in results.curve(BASELINE) if name.startswith("epoch")]
    lines = [f"| seen / unseen R@1 | {' | '.join(epochs)} |", "|" + "---|" * (len(epochs) + 1)]
    for way in results.ways:
        curve = results.curve(way)
        cells = [" / ".join(f"{curve[name][group]:.1f}" for group in _GROUPS) for name in epochs]
        lines.append(f"| {way} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw_curves(results: Results) -> str:
    """Draws R@1 of unseen writers over that of seen ones, a curve per way, a point per checkpoint."""
    figure, axes = new_figure(width=8.0, height=5.5)
    for way in results.ways:
        curve = list(results.curve(way).values())
        style = {"baseline": "-", "knowledge": "-", "control": ":", "oracle": "--"}[WAYS[way].kind]
        seen, unseen = ([point[group] for point in curve] for group in _GROUPS)
        axes.plot(seen, unseen, style, marker="o", markersize=3, linewidth=2.2 if way == BASELINE else 1.2, label=way)
    axes.set_xlabel("R@1 with captions of seen writers, %")
    axes.set_ylabel("R@1 with captions of unseen writers, %")
    axes.legend(fontsize=7)
    return svg(figure)


def _points(interval: MeanInterval) -> str:
    return f"{100 * interval.mean:+.1f} ({100 * interval.low:+.1f} to {100 * interval.high:+.1f})"
