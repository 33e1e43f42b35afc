"""Disk space that a run's checkpoints take, from its configuration.

Every model stays for probing and evaluation; of the optimizer only the last state of each training stage does, and
while the next one is written both are there. Training data and logs are not counted.
"""

from dataclasses import dataclass

from nemo_vibethinker.config import Config
from nemo_vibethinker.costs.parameters import parameter_count

MARGIN = 1.1  # metadata, and what else writes meanwhile


@dataclass(frozen=True)
class Storage:
    """Bytes of a run's checkpoints.

    Attributes:
        kept: by stage, what is there when the stage is done.
        peak: the most that exists at one time while the run goes on.
    """

    kept: dict[str, int]
    peak: int

    @property
    def needed(self) -> int:
        """What should be free before the run starts."""
        return round(self.peak * MARGIN)


def run_storage(config: Config) -> Storage:
    """Checkpoints of all stages of a run that has not begun."""
    parameters = parameter_count(config.scale.model, config.data.vocab_size)
    weights = parameters * (2 if config.scale.precision == "bf16" else 4)
    resume = weights + parameters * 12  # with the optimizer's own fp32 weights and its two Adam states
    models = {"sft": -(-config.sft.steps // config.sft.checkpoint_interval), "fuse": 1, "export": 1}
    models |= {stage: 1 for stage in config.stages if stage.startswith("mgpo.")}
    kept, peak = {}, 0
    for stage in config.stages:
        trains = stage == "sft" or stage.startswith("mgpo.")
        before = sum(kept.values())
        kept[stage] = models.get(stage, 0) * weights + trains * resume
        peak = max(peak, before + kept[stage] + trains * resume)
    return Storage(kept, peak)
