"""The only place that imports Ray.

Ray reads some of its settings from the environment while it is imported; what a user has set stays as it is.
"""

import os

_DEFAULTS = {
    # Reading Parquet with 32 footer-reading actors for each execution is slower than it is worth on small machines.
    "RAY_DATA_USE_DATASOURCE_V2": "0",
    # Progress is ours to show.
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_DATA_LOG_LEVEL": "ERROR",
    # A worker without GPUs leaves CUDA_VISIBLE_DEVICES alone (Ray's own coming default).
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    # A trial stays in the folder of its user, to which paths are relative.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # What a sweep leaves behind is ours to write.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
}
for _name, _value in _DEFAULTS.items():
    os.environ.setdefault(_name, _value)
