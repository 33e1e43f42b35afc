# pyright: reportMissingImports=false
"""Weights & Biases: one of its runs for one of ours, metrics as STAGE/FIELD over STAGE/step.

Where to log, and whether online at all, is said by the library's own variables: WANDB_MODE=offline, WANDB_PROJECT.
"""

import os
import uuid
from collections.abc import Mapping
from pathlib import Path

import wandb

from nemo_vibethinker.config import flatten
from nemo_vibethinker.loggers.run_id import kept_id
from nemo_vibethinker.run_folder import RunFolder


class WandbSink:
    """Begins the run or goes on in it."""

    def __init__(self, run: RunFolder, folder: Path) -> None:
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "nemo_vibethinker"),
            name=run.path.name,
            id=kept_id(folder / "wandb.id", lambda: uuid.uuid4().hex[:8]),
            resume="allow",
            dir=folder,
            config=flatten(run.config),
            settings=wandb.Settings(console="off", silent=True),
        )
        self._defined: set[str] = set()

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """The values of one step."""
        if stage not in self._defined:
            self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
            self._defined.add(stage)
        self._run.log({f"{stage}/{name}": value for name, value in values.items()} | {f"{stage}/step": step})

    def close(self) -> None:
        """Send what is left."""
        self._run.finish()
