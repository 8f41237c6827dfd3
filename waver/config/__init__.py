"""One experiment is one YAML file, one sweep another, the settings of a report a third.

`load_config`, `load_sweep` and `load_robustness` are the only readers of YAML. Values from `--set a.b=v` and from a search
space go through the same function.
"""

from waver.config.experiment import ExperimentConfig
from waver.config.loading import (
    ConfigError,
    as_written,
    check_config,
    load_config,
    load_robustness,
    load_sweep,
    parse_overrides,
)
from waver.config.resources import ResourcesConfig
from waver.config.robustness import RobustnessConfig
from waver.config.sweep import ParameterConfig, SweepConfig

__all__ = [
    "ConfigError",
    "ExperimentConfig",
    "ParameterConfig",
    "ResourcesConfig",
    "RobustnessConfig",
    "SweepConfig",
    "as_written",
    "check_config",
    "load_config",
    "load_robustness",
    "load_sweep",
    "parse_overrides",
]
