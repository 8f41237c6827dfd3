"""What runs of earlier versions mean, which lack newer settings."""

import pytest
import yaml

from waver.config import load_config
from waver.config.earlier import BEFORE, hashed_loss
from waver.config.experiment import ExperimentConfig

DISTILLS = {"loss.distill": 1, "loss.knowledge": 1}


@pytest.fixture
def stored(tmp_path):
    """Returns the file of a run by an earlier version: without the settings that were added since."""

    def write(config: ExperimentConfig, **loss):
        raw = config.model_dump(mode="json")
        for section, added in BEFORE.items():
            for name in added:
                del raw[section][name]
        raw["loss"] |= loss
        path = tmp_path / "stored.yaml"
        path.write_text(yaml.safe_dump(raw))
        return path

    return write


def test_a_run_without_newer_settings_means_what_was_computed(load_knowing, stored):
    path = stored(load_knowing(**DISTILLS))
    old = load_config(path, stored=True)
    for section, added in BEFORE.items():
        for name, value in added.items():
            assert getattr(getattr(old, section), name) == value
            assert name not in old.identity()[section] or name == "fusion"
    assert old.identity()["knowledge"]["fusion"] == "attention"  # its name in earlier versions
    # The same file of a user, who has not trained yet, has the defaults of today.
    new = load_config(path)
    assert (new.loss.knowledge_temperature, new.loss.distill_warmup) == (0.01, 0.1)
    assert new.digest() != old.digest()
    same = load_knowing(**DISTILLS, **{"loss.knowledge_temperature": None, "loss.distill_warmup": 0})
    assert same.digest() == old.digest()


def test_settings_of_terms_without_weight_do_not_make_another_run(load_knowing, stored):
    config = load_knowing()
    old = load_config(stored(config, temperature=1.0), stored=True)
    assert old.digest() == config.digest()
    assert hashed_loss(config.loss.model_dump())["temperature"] == 1.0
    changes = {"loss.knowledge_temperature": 0.5, "loss.distill_warmup": 0.7, "loss.temperature": 3}
    assert load_knowing(**changes).digest() == config.digest()
    for key, value in changes.items():
        assert load_knowing(**DISTILLS, **{key: value}).digest() != load_knowing(**DISTILLS).digest()
    assert load_knowing(**{"loss.shared_captions": "ignored"}).digest() != config.digest()
