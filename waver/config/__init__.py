"""One experiment is one YAML file.

`load_config` is the only reader of YAML. Values from `--set a.b=v` and from a search space go through the same function.
"""

from waver.config.loading import ConfigError, load_config, parse_overrides
from waver.config.schema import ExperimentConfig, ResourcesConfig

__all__ = ["ConfigError", "ExperimentConfig", "ResourcesConfig", "load_config", "parse_overrides"]
