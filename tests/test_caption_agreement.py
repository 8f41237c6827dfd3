"""experiments/caption_agreement.py: overlaps by hand, and one run on small files."""

import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from waver.tools.errors import WaverError

SCRIPT = Path(__file__).parents[1] / "experiments" / "caption_agreement.py"
CAPTIONS = {
    "a": ["a man is riding a horse", "the man is riding a horse", "someone rides a brown horse"],
    "b": ["a woman is slicing an onion", "the woman is slicing an onion", "a lady cuts an onion"],
    "c": ["a cat is playing with a toy", "a kitten plays with a toy", "a cat is chasing a mouse"],
}


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("caption_agreement", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["caption_agreement"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def units(*words):
    return frozenset(words)


def test_overlap_by_hand(script):
    assert script.jaccard(units("a", "man"), units("a", "cat", "sits")) == pytest.approx(1 / 4)
    assert script.jaccard(units(), units()) == 0, "captions without phrases share none"


def test_agreement_by_hand(script):
    """Pairs of the first clip overlap by 1, 0 and 0, those of the second by 1/3; between them only one word is common."""
    first = [units("x"), units("x"), units("y")]
    second = [units("y", "z"), units("z", "w")]
    found = script.measure_agreement([first, second])
    assert found.within.mean == pytest.approx((1 / 3 + 1 / 3) / 2)
    assert found.chance.mean == pytest.approx((1 / 2) / 6)
    assert found.shared.mean == pytest.approx((1 / 3 + 1) / 2)
    # first: 1 beats six, 0 ties with five of six and loses once, twice; second: 1/3 beats five of six
    assert found.by_clip == pytest.approx([(6 + 2 * 2.5) / 18, 5 / 6])


def test_random_captions_are_not_told_apart(script):
    rng = np.random.default_rng(0)
    clips = [[frozenset(rng.choice(list("abcdefgh"), 3)) for _ in range(6)] for _ in range(100)]
    found = script.measure_agreement(clips)
    assert found.told_apart.low < 0.5 < found.told_apart.high
    assert found.within.mean == pytest.approx(found.chance.mean, abs=0.02)


def test_draws_are_the_same_for_a_seed(script):
    captions = {str(n): [f"{n} {m}" for m in range(5)] for n in range(30)} | {"alone": ["one caption"]}
    one, again, other = (script.sample(captions, clips=8, per_clip=3, seed=seed) for seed in (0, 0, 1))
    assert one == again != other
    assert len(one) == 8
    assert all(len(set(texts)) == 3 and set(texts) <= set(captions[clip]) for clip, texts in one.items())
    assert "alone" not in script.sample(captions, clips=99, per_clip=3, seed=0)


def test_files_of_three_data_sets_are_read(script, tmp_path):
    path = tmp_path / "captions.json"
    rows = [{"video_id": clip, "caption": text} for clip, texts in CAPTIONS.items() for text in texts]
    for content in (
        CAPTIONS,
        {"videos": [], "sentences": rows},
        [{"videoID": clip, "enCap": texts} for clip, texts in CAPTIONS.items()],
    ):
        path.write_text(json.dumps(content))
        assert script.read_captions(path) == CAPTIONS
    path.write_text("[1, 2]")
    with pytest.raises(WaverError, match="is neither a mapping"):
        script.read_captions(path)


@pytest.mark.slow
def test_the_command_prints_tables_and_writes_what_they_say(tmp_path):
    (tmp_path / "captions.json").write_text(json.dumps(CAPTIONS))
    (tmp_path / "english.csv").write_text("video_id,sentence\na,a horse is ridden\nb,an onion is cut\n")
    command = [sys.executable, str(SCRIPT), "D=captions.json", "--translated", "D=english.csv", "--output", "out.json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True)
    assert "| D: 3 clips |" in done.stdout
    assert "| 2 clips | D | English |" in done.stdout, "clips without an English query are left out"
    found = json.loads((tmp_path / "out.json").read_text())["data"]
    assert (found["D"]["clips"], found["D, English"]["clips"]) == (3, 2)
    mean, low, high = found["D"]["lemmas without stop words"]["within"]
    assert 0 < mean < 1
    assert low < mean < high
    assert f"{100 * mean:.1f} (" in done.stdout
    assert 1 <= found["D, English"]["BPE tokens of CLIP for each word"][0] < 2
    assert all(math.isfinite(value) for value in found["D, English"]["overlap, words"])
