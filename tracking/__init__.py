"""Experiment tracking: one sweep is one MLflow experiment, one trial is one run.

The settings below must stand before MLflow is imported, and MLflow is imported only under this package. Each is a
default: a variable that is already set wins.
"""

import os

MLFLOW_CLIENT_SETTINGS = {
    # MLflow's own defaults retry for about 4 minutes. With these a call fails after at most 50 s (4 tries of 10 s and
    # the pauses between them), after about 7 s when the connection is refused.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    # A 503 that says "Retry-After: 3600" would otherwise hold the caller for an hour.
    "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
}

for _name, _value in MLFLOW_CLIENT_SETTINGS.items():
    os.environ.setdefault(_name, _value)
