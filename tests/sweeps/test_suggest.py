import pickle

import optuna
import pytest

from waver.config import ParameterConfig
from waver.sweeps.suggest import Suggest


@pytest.fixture
def suggest(tiny_config) -> Suggest:
    space = {
        "loss.distill": ParameterConfig(uniform=(0, 2)),
        "train.lr": ParameterConfig(loguniform=(1e-5, 1e-2)),
        "knowledge.top_k": ParameterConfig(randint=(1, 4)),
        "similarity.wti_layers": ParameterConfig(choice=(1, 2, 3), when={"similarity.kind": "wti"}),
        "similarity.kind": ParameterConfig(choice=("wti", "ti")),
        "model.backbone": ParameterConfig(choice=({"embed_dim": 1}, "ViT-B-32")),
    }
    return Suggest(space, tiny_config)


def test_keys_without_effect_are_not_suggested(suggest):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    kinds = set()
    for number in range(20):
        trial = study.ask()
        point = suggest(trial)
        assert point.pop("number") == number
        assert point.keys() == trial.params.keys()
        assert ("similarity.wti_layers" in point) == (point["similarity.kind"] == "wti")
        assert 0 <= point["loss.distill"] <= 2
        assert 1e-5 <= point["train.lr"] <= 1e-2
        assert 1 <= point["knowledge.top_k"] <= 4
        assert point["model.backbone"] in ({"embed_dim": 1}, "ViT-B-32")
        kinds.add(point["similarity.kind"])
    assert kinds == {"wti", "ti"}


def test_suggest_can_be_pickled(suggest):
    assert pickle.loads(pickle.dumps(suggest)) == suggest
