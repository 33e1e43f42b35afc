# pyright: reportMissingImports=false
"""MLflow: one of its runs for one of ours, metrics as STAGE/FIELD.

Goes to MLFLOW_TRACKING_URI, or else to a SQLite file in the run folder: `mlflow ui --backend-store-uri sqlite:///FILE`.
"""

import os
import time
from collections.abc import Mapping
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Metric, Param

from nemo_vibethinker.config import flatten
from nemo_vibethinker.loggers.run_id import kept_id
from nemo_vibethinker.run_folder import RunFolder

_EXPERIMENT = "nemo_vibethinker"
_MAX_PARAMS = 100  # of one request
_MAX_LENGTH = 500  # of a parameter's value


class MlflowSink:
    """Begins the run or goes on in it."""

    def __init__(self, run: RunFolder, folder: Path) -> None:
        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder / 'mlflow.db'}"
        self._client = MlflowClient(tracking_uri=uri)
        self._id = kept_id(folder / "mlflow.id", lambda: self._create(run))
        self._client.update_run(self._id, status="RUNNING")

    def _create(self, run: RunFolder) -> str:
        found = self._client.get_experiment_by_name(_EXPERIMENT)
        experiment = found.experiment_id if found else self._client.create_experiment(_EXPERIMENT)
        identity = self._client.create_run(experiment, run_name=run.path.name).info.run_id
        params = [Param(key, str(value)[:_MAX_LENGTH]) for key, value in flatten(run.config).items()]
        for start in range(0, len(params), _MAX_PARAMS):
            self._client.log_batch(identity, params=params[start : start + _MAX_PARAMS])
        return identity

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """The values of one step."""
        now = round(1000 * time.time())
        self._client.log_batch(
            self._id, [Metric(f"{stage}/{name}", value, now, step) for name, value in values.items()]
        )

    def close(self) -> None:
        """Declare it ended."""
        self._client.set_terminated(self._id)
