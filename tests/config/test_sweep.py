"""The YAML of sweeps."""

from pathlib import Path

import pytest

from waver.config import ConfigError, load_sweep, split_overrides

SWEEP = "name: s\nbase: experiment.yaml\nspace: {loss.distill: {uniform: [0, 2]}}\n"
REPOSITORY = Path(__file__).parents[2]


def write(folder: Path, text: str) -> Path:
    path = folder / "sweep.yaml"
    path.write_text(text)
    return path


def test_defaults_and_the_base_lies_beside_the_sweep(tmp_path):
    sweep = load_sweep(write(tmp_path, SWEEP))
    assert sweep.base == tmp_path / "experiment.yaml"
    assert (sweep.search, sweep.repeats, sweep.scheduler.kind, sweep.objective.metric) == (
        "random",
        1,
        "asha",
        "t2v/R@1",
    )
    assert (sweep.space["loss.distill"].kind, sweep.space["loss.distill"].values) == ("uniform", (0, 2))


def test_all_mistakes_at_once_with_path_value_and_remedy(tmp_path):
    path = write(
        tmp_path,
        "name: a b\nspace:\n  loss.distill: {uniform: [2, 0]}\n  loss.knowledge: {unifrom: [0, 1]}\n"
        "  train.lr: {loguniform: [0, 1]}\n  knowledge.top_k: {choice: []}\n  video.size: {grid: [1], choice: [1]}\n"
        "objective: {split: test, metric: R@1}\nsamples: 3\nscheduler: {kind: pbt, reduction_factor: 1}\n",
    )
    with pytest.raises(ConfigError) as caught:
        load_sweep(path)
    message = str(caught.value)
    for expected in (
        "name: 'a b'",
        "base: is missing; The YAML file of the experiment",
        "the first must be less than the second",
        "space.loss.knowledge.unifrom: unknown key; did you mean uniform?",
        "both must be above 0",
        "space.knowledge.top_k.choice: ",
        "write exactly one of uniform, loguniform, randint, choice, grid (here: choice, grid)",
        "objective.metric: 'R@1'",
        "objective.split: 'test': a sweep that selects trials on test would report a biased metric",
        "samples: unknown key; did you mean num_samples?",
        "scheduler.kind: 'pbt'",
        "scheduler.reduction_factor: 1",
    ):
        assert expected in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("space: {name: {choice: [a]}}", r"space.name: a sweep cannot vary it"),
        ("space: {seed: {choice: [1, 2]}}", r"space.seed: .*write repeats: N"),
        ("space: {resources.workers: {choice: [1, 2]}}", r"resources.workers: .*they change no metric"),
        ("space: {loss.distill: {uniform: [0, 1]}}\nset: {loss.distill: 1}", r"is in `set` too"),
        ("space: {loss.distill: {uniform: [0, 1]}}\nsearch: grid", r"uniform does not list its values"),
        ("space: {loss.distill: {grid: [0, 1]}}\nsearch: optuna", r"write choice instead of grid"),
        ("space: {'loss distill': {choice: [1]}}", r"write a dotted key"),
        ("space: {}", r"space: \{\}"),
        ("space: {a.b: {choice: [1]}}\nthen: {keep: 2}", r"then: changes nothing; write what the fine-tuning changes"),
        ("space: {a.b: {choice: [1]}}\nthen: {epochs: 1}", r"then.epochs: write a dotted key .* such as train.epochs"),
        ("space: {a.b: {choice: [1]}}\nthen: {keep: 0, train.lr: 1}", r"then.keep: 0: .*Number of best trials"),
        ("space: {a.b: {choice: [1]}}\nthen: {model.temporal: none}", r"then.model.temporal: cannot change: .*weights"),
        ("space: {a.b: {choice: [1]}}\nthen: {seed: 1}", r"then.seed: cannot change: .*the seed of the run"),
        ("space: {a.b: {choice: [1]}}\nthen: {train.start_from: x}", r"then.train.start_from: cannot change: each"),
        (
            "space: {a.b: {choice: [1], when: {a.c: 1}}, a.c: {choice: [1], when: {a.b: 1}}}",
            r"the conditions of a.b, a.c are circular",
        ),
    ],
)
def test_one_mistake(tmp_path, text, expected):
    with pytest.raises(ConfigError, match=expected):
        load_sweep(write(tmp_path, f"name: s\nbase: e.yaml\n{text}\n"))


def test_experiment_file_is_not_a_sweep(tmp_path):
    with pytest.raises(ConfigError, match="a sweep is a mapping"):
        load_sweep(write(tmp_path, "- 1"))
    with pytest.raises(ConfigError, match=r"msrvtt.yaml is an experiment, not a sweep: train it with `waver train /"):
        load_sweep(REPOSITORY / "experiments" / "msrvtt.yaml")
    with pytest.raises(ConfigError, match="space: is missing; Search space: dotted key -> the values"):
        load_sweep(write(tmp_path, "name: s\nbase: e.yaml\n"))


def test_overrides_of_a_sweep(tmp_path, monkeypatch):
    """A key of the sweep changes the sweep; in `space` and `set`, the rest of the key is one key of the experiment."""
    path = write(tmp_path, SWEEP + "set: {train.epochs: 2}\nscheduler: {reduction_factor: 2}\n")
    overrides = {
        "num_samples": 2,
        "scheduler.kind": "none",
        "space.train.lr": {"choice": [1]},
        "set.train.lr_scale": 3,
        "sweep.seed": 5,
        "train.epochs": 9,
        "base": "other.yaml",
    }
    of_sweep, of_experiment = split_overrides(overrides)
    assert of_experiment == {"train.epochs": 9}
    sweep = load_sweep(path, of_sweep)
    assert (sweep.num_samples, sweep.seed, sweep.base) == (2, 5, Path("other.yaml"))
    assert (sweep.scheduler.kind, sweep.scheduler.reduction_factor) == ("none", 2)
    assert {key: parameter.kind for key, parameter in sweep.space.items()} == {
        "loss.distill": "uniform",
        "train.lr": "choice",
    }
    assert sweep.set == {"train.epochs": 2, "train.lr_scale": 3}
    with pytest.raises(ConfigError, match=r"space.a.unifrom: unknown key; did you mean uniform(.|\n)*num_samples: 0: "):
        load_sweep(path, {"num_samples": 0, "space.a": {"unifrom": [0, 1]}})


def test_keys_of_then_are_keys_of_the_experiment_and_keep(tmp_path):
    path = write(tmp_path, SWEEP + "then: {keep: 3, train.epochs: 1, train.backbone_lr_scale: 1e-3}\n")
    sweep = load_sweep(path)
    assert (sweep.then.keep, sweep.then.changes) == (3, {"train.epochs": 1, "train.backbone_lr_scale": 1e-3})
    of_sweep, of_experiment = split_overrides({"then.keep": 1, "then.train.epochs": 2, "train.epochs": 9})
    assert of_experiment == {"train.epochs": 9}
    changed = load_sweep(path, of_sweep)
    assert (changed.then.keep, changed.then.changes["train.epochs"]) == (1, 2)
    assert load_sweep(path, {"then": None}).then is None
    assert load_sweep(write(tmp_path, SWEEP), {"then.train.lr": 1}).then.changes == {"train.lr": 1}
    again = tmp_path / "again.yaml"
    again.write_text(changed.to_yaml())
    assert load_sweep(again).then == changed.then
    with pytest.raises(ConfigError, match=r"then: 3: "):
        load_sweep(write(tmp_path, SWEEP + "then: 3\n"))


def test_the_seed_of_a_sweep_and_of_its_experiment_are_told_apart():
    with pytest.raises(ConfigError, match=r"write --set set.seed=3 to train .*, or --set sweep.seed=3 to draw"):
        split_overrides({"seed": 3})
    assert split_overrides({"sweep.seed": 3, "set.seed": 4}) == ({"seed": 3, "set.seed": 4}, {})


def test_written_sweep_reads_as_itself(tmp_path):
    sweep = load_sweep(write(tmp_path, SWEEP + "repeats: 2\nobjective: {metric: v2t/MnR}\n"))
    assert sweep.objective.mode == "min"
    assert load_sweep(write(tmp_path, sweep.to_yaml())) == sweep
