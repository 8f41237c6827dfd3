"""The command line: list of commands, exit codes, messages, log level."""

import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from waver.__main__ import main
from waver.cli import app
from waver.config import load_config

DATA = "name: x\ndata: {format: table, annotations: captions.jsonl, videos: videos}\n"


def waver(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "waver", *arguments], cwd=cwd, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.fixture
def waver_here(tmp_path, monkeypatch, capsys):
    """Runs a command in this process, in the folder of the test; returns exit code, standard output, standard error."""
    logger = logging.getLogger("waver")
    handlers, level, propagate = logger.handlers[:], logger.level, logger.propagate

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sys.argv", ["waver", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, *capsys.readouterr()

    yield run
    logger.handlers[:], logger.level, logger.propagate = handlers, level, propagate


def test_help_lists_the_commands_in_the_order_of_the_readme(repository):
    rows = re.findall(r"^\| \[`waver (\w+)", (repository / "README.md").read_text(), re.M)
    assert list(typer.main.get_command(app).commands) == rows


def test_print_config_prints_a_configuration_that_can_be_loaded(tmp_path, repository, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = waver(
        "train",
        str(repository / "experiments/msrvtt.yaml"),
        "--set",
        "train.lr=3e-5",
        "--workers",
        "4",
        "--print-config",
        cwd=tmp_path,
    )
    assert done.returncode == 0
    (tmp_path / "printed.yaml").write_text(done.stdout)
    config = load_config(tmp_path / "printed.yaml")
    assert (config.train.lr, config.resources.workers) == (3e-5, 4)
    assert config.model_copy(update={"train": None, "resources": None}) == load_config(
        repository / "experiments/msrvtt.yaml"
    ).model_copy(update={"train": None, "resources": None})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train", "nowhere.yaml"], "nowhere.yaml: no such file"),
        (["train", "broken.yaml"], "not YAML"),
        (["ingest", "good.yaml", "--set", "train.lrr=1"], "train.lrr: unknown key; did you mean lr?"),
        (["ingest", "good.yaml"], "captions.jsonl"),
        (["train", "data.yaml"], "run `waver ingest data.yaml` first"),
        (["train", "data.yaml", "--workers", "2"], "`waver ingest data.yaml --set resources.workers=2` first"),
        (["train", "good.yaml", "--epochs", "3"], "--epochs is a setting: --set train.epochs=3"),
        (["train", "good.yaml", "--set", "lr=1"], "lr: unknown key; did you mean train.lr?"),
        (["train", "good.yaml", "--set", "train.lr="], "--set train.lr=: the value is empty"),
        (["train", "sweep.yaml"], "sweep.yaml is a sweep, not an experiment: run it with `waver tune sweep.yaml`"),
        (["tune", "good.yaml"], "good.yaml is an experiment, not a sweep: train it with `waver train good.yaml`"),
        (["evaluate", "runs/typo"], "runs/typo does not exist: train one with"),
        (["evaluate", "good.yaml"], "waver evaluate cannot start: "),
        (["evaluate", "random.yaml"], "a backbone with random weights has no zero-shot figures"),
        (["evaluate", "sweep.yaml"], "sweep.yaml is a sweep, not an experiment: run it with `waver tune sweep.yaml`"),
        (["evaluate", "god.yaml"], "god.yaml: no such file; did you mean good.yaml?"),
        (["evaluate", "runs/typo", "--set", "text.max_words=5"], "text.max_words: a checkpoint is evaluated as it was"),
        (["evaluate", "runs/typo", "--export", "csv", "out"], "--export csv: the only format is trec"),
        (["board", "runs/typo"], "runs/typo does not exist"),
        (["board", "good.yaml"], "its run does not exist yet: `waver train good.yaml` makes it"),
        (["board", "videos"], "no TensorBoard events in or below"),
        (["compare", "runs/typo", "videos"], "runs/typo does not exist"),
        (["tune", "sweep.yaml", "--dry-run"], "train.lrr: unknown key; did you mean lr? (in 2 of 2 points)"),
    ],
)
def test_an_error_of_the_user_prints_a_message_without_traceback(tmp_path, waver_here, arguments, expected):
    (tmp_path / "broken.yaml").write_text("name: [")
    (tmp_path / "good.yaml").write_text(DATA)
    (tmp_path / "random.yaml").write_text(DATA + "model: {weights: null}\n")
    (tmp_path / "sweep.yaml").write_text(
        "name: s\nbase: good.yaml\nspace: {train.lrr: {grid: [1, 2]}}\nnum_samples: 1\n"
    )
    (tmp_path / "data.yaml").write_text(DATA.replace("captions.jsonl", "two.csv"))
    (tmp_path / "two.csv").write_text("video,caption\na.mp4,a cat\nb.mp4,a dog\nc.mp4,a cow\n")
    (tmp_path / "videos").mkdir()
    for name in "abc":
        (tmp_path / "videos" / f"{name}.mp4").touch()
    code, shown, said = waver_here(*arguments)
    assert code in (1, 2)
    assert expected in said
    assert "Traceback" not in said
    assert shown == ""


def test_a_configuration_error_exits_with_status_2(tmp_path):
    done = waver("train", "nowhere.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert "nowhere.yaml: no such file" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_bug_prints_its_traceback_and_where_to_report_it(tmp_path):
    """A ValueError raised by Python inside waver is a bug, not an error of the user."""
    (tmp_path / "good.yaml").write_text(DATA)
    code = (
        "import sys, waver.cli.stages as stages\n"
        "stages.load_experiment = lambda *_: [1].index(2)\n"
        "from waver.__main__ import main\n"
        "sys.argv = ['waver', 'train', 'good.yaml']\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback (most recent call last)" in done.stderr
    assert "ValueError: 2 is not in list" in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("This is a bug in waver (waver ")


@pytest.mark.slow
@pytest.mark.parametrize(("option", "expected"), [("-q", ""), ("--quiet", ""), ("-v", "next: ")])
def test_quiet_hides_notices_and_verbose_prints_them(tmp_path, option, expected):
    code = (
        "import sys, logging, waver.cli.stages as stages\n"
        "stages.load_experiment = lambda *_: logging.getLogger('waver.any').info('next: more') or sys.exit(0)\n"
        "from waver.__main__ import main\n"
        f"sys.argv = ['waver', 'train', 'good.yaml', {option!r}]\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr[:6]) == (0, expected)


@pytest.mark.slow
def test_the_next_command_has_the_overrides_and_the_quotes_of_this_one(tmp_path, waver_here):
    (tmp_path / "my data.yaml").write_text(DATA.replace("captions.jsonl", "two.csv"))
    (tmp_path / "two.csv").write_text("video,caption\na.mp4,a cat\nb.mp4,a dog\nc.mp4,a cow\n")
    (tmp_path / "videos").mkdir()
    for name in "abc":
        (tmp_path / "videos" / f"{name}.mp4").touch()
    _, shown, said = waver_here("doctor", "my data.yaml", "--set", "text.prompt=A {}.", "--before", "match")
    command = "waver ingest 'my data.yaml' --set 'text.prompt=A {}.'"
    assert f"-> next: {command}\n" in shown
    assert f"run `{command}` first" in shown
    assert "CONFIG" not in shown + said
