"""What is said about arguments that a command does not know."""

import pytest
import typer

from waver.cli import app
from waver.cli.usage import usage_hints


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("train k.yaml --epochs 3", ["--epochs is a setting: --set train.epochs=3"]),
        ("train k.yaml --lr=3e-5", ["--lr is a setting: --set train.lr=3e-5"]),
        ("train k.yaml --train.lr 3", ["--train.lr is a setting: --set train.lr=3"]),
        ("train k.yaml --learning-rate 3", ["--learning-rate is a setting: --set train.lr=3"]),
        (
            "train k.yaml --batch-size 8",
            [
                "--batch-size is a setting: --set train.global_batch_size=8",
                "--batch-size is a setting: --set evaluate.batch_size=8",
            ],
        ),
        ("evaluate r --batch-size 8", ["--batch-size is a setting: --set evaluate.batch_size=8"]),
        ("evaluate r --epochs 8", []),
        ("evaluate r --dsl", ["--dsl is a setting: --set evaluate.dsl=VALUE"]),
        ("tune s.yaml --num-samples 4", ["--num-samples is a setting: --set num_samples=4"]),
        ("tune s.yaml --seed 4", ["--seed is a setting: --set set.seed=4"]),
        ("train k.yaml --seed 4", ["--seed is a setting: --set seed=4"]),
        ("ingest k.yaml --workers 2", ["--workers is a setting: --set resources.workers=2"]),
        ("train k.yaml --workers 2", []),
        ("train k.yaml --set train.lr 3e-5", ["write a setting and its value as one argument: --set train.lr=3e-5"]),
        ("train k.yaml --set train.lr: 3", ["write a setting and its value as one argument: --set train.lr=3"]),
        ("train k.yaml --set", ["--set needs a setting and its value, such as --set train.lr=3e-5"]),
        ("train k.yaml train.lr=3", ["a setting is given with --set: --set train.lr=3"]),
        ("train k.yaml --set train.lr=3", []),
        ("submit train k.yaml", ["the configuration comes before the stage: waver submit k.yaml train"]),
        ("train --config k.yaml", ["it needs no --config: waver train k.yaml"]),
        ("board --logdir runs", ["it needs no --logdir: waver board runs"]),
        ("board runs --epochs 3", []),
        ("-v train k.yaml", ["options come after the command: waver train k.yaml -v"]),
        ("trian k.yaml --epochs 3", []),
    ],
)
def test_hints(line, expected):
    assert usage_hints(line.split(), typer.main.get_command(app).commands) == expected


def test_a_hint_is_quoted_for_the_shell():
    arguments = ["train", "k.yaml", "--prompt", "A video of {}."]
    (hint, _) = usage_hints(arguments, typer.main.get_command(app).commands)
    assert hint == "--prompt is a setting: --set text.prompt='A video of {}.'"
