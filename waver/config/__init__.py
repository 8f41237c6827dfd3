"""One experiment is one YAML file, one sweep another.

`load_config` and `load_sweep` are the only readers of YAML. Values from `--set a.b=v` and from a search space go through the
same function.
"""

from waver.config.loading import ConfigError, check_config, load_config, load_sweep, parse_overrides
from waver.config.schema import ExperimentConfig, ResourcesConfig
from waver.config.sweep import ParameterConfig, SweepConfig

__all__ = [
    "ConfigError",
    "ExperimentConfig",
    "ParameterConfig",
    "ResourcesConfig",
    "SweepConfig",
    "check_config",
    "load_config",
    "load_sweep",
    "parse_overrides",
]
