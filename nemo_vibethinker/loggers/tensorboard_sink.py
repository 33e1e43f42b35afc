"""TensorBoard: one series of event files for each stage, so that stages lie over each other under the same tags."""

from collections.abc import Mapping
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter


class TensorBoardSink:
    """Event files below `folder`/<stage>; look with `tensorboard --logdir RUN/loggers/tensorboard`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writers: dict[str, SummaryWriter] = {}

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """The values of one step; flushed, so that a kill loses none."""
        if stage not in self._writers:
            self._writers[stage] = SummaryWriter(str(self._folder / stage))
        writer = self._writers[stage]
        for name, value in values.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    def close(self) -> None:
        """Close the files."""
        for writer in self._writers.values():
            writer.close()
