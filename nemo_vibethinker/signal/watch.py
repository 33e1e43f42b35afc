"""Applies the guards to one step, and says what is to be done."""

from collections.abc import Callable, Mapping

from nemo_vibethinker.config import GuardsConfig
from nemo_vibethinker.config.guards import ACTIONS
from nemo_vibethinker.megatron.train_step import StepResult
from nemo_vibethinker.signal.guards import UPDATE_GUARDS, Alarm, alarms
from nemo_vibethinker.signal.metrics import update_metrics
from nemo_vibethinker.signal.progress import Progress


class Watch:
    """The alarms of one step.

    Args:
        past: running statistics of the steps before; each alarm is counted there.
        report: called with each alarm as it fires.
    """

    def __init__(self, config: GuardsConfig, past: Progress, report: Callable[[Alarm], None]) -> None:
        self._config, self._past, self._report = config, past, report
        self.alarms: list[Alarm] = []

    @property
    def worst(self) -> Alarm | None:
        """The alarm whose action is taken."""
        return max(self.alarms, key=lambda alarm: ACTIONS.index(alarm.action), default=None)

    @property
    def action(self) -> str:
        """What is to be done: one of `ACTIONS`, "off" where all is well."""
        return self.worst.action if self.worst else "off"

    @property
    def forbids_update(self) -> bool:
        """Whether the step's (further) updates are left out."""
        return self.action in ("skip", "rollback", "stop")

    def look(self, names: tuple[str, ...], figures: Mapping[str, float]) -> None:
        """Let these guards see the step's figures."""
        for alarm in alarms(names, figures, self._config, self._past):
            key = f"{alarm.guard} {alarm.action}"
            self._past.actions[key] = self._past.actions.get(key, 0) + 1
            self.alarms.append(alarm)
            self._report(alarm)

    def permits(self, result: StepResult) -> bool:
        """Let the guards of updates see one that is computed but not yet applied."""
        self.look(UPDATE_GUARDS, update_metrics([result]))
        return not self.forbids_update
