"""The stages on Ray. No other package imports Ray.

Ray reads some of its settings from the environment while it is imported, so the defaults are set before that. Variables that
the user has set are left alone.
"""

import os

_DEFAULTS = {
    # Version 2 starts 32 actors that read Parquet footers in each execution, which takes longer than it saves.
    "RAY_DATA_USE_DATASOURCE_V2": "0",
    # waver shows its own progress.
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_DATA_LOG_LEVEL": "ERROR",
    # A worker without GPUs leaves CUDA_VISIBLE_DEVICES alone (Ray's future default).
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    # A trial stays in the working directory of its user: paths in a configuration are relative to it.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # waver writes the results of a sweep itself.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
}
for _name, _value in _DEFAULTS.items():
    os.environ.setdefault(_name, _value)
