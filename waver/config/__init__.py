"""Configuration in YAML: one file per experiment, per sweep, and per writing-style report.

`load_config`, `load_sweep` and `load_robustness` read these files. Values of `--set a.b=v` and of a search space are
validated by the same functions.
"""

from waver.config.drafts import Draft
from waver.config.experiment import ExperimentConfig
from waver.config.loading import (
    ConfigError,
    check_config,
    config_error,
    load_config,
    load_draft,
    load_robustness,
    load_sweep,
    load_unresolved,
    parse_overrides,
    split_overrides,
)
from waver.config.resources import ResourcesConfig
from waver.config.robustness import RobustnessConfig
from waver.config.sweep import ParameterConfig, SweepConfig

__all__ = [
    "ConfigError",
    "Draft",
    "ExperimentConfig",
    "ParameterConfig",
    "ResourcesConfig",
    "RobustnessConfig",
    "SweepConfig",
    "check_config",
    "config_error",
    "load_config",
    "load_draft",
    "load_robustness",
    "load_sweep",
    "load_unresolved",
    "parse_overrides",
    "split_overrides",
]
