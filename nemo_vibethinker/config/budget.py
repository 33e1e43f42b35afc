"""What a run may cost, and what its plan assumes where no finished run has measured it."""

from dataclasses import dataclass


@dataclass(kw_only=True)
class BudgetConfig:
    """Decides no result: a run may be continued under another budget.

    The assumptions are what `plan=true` reckons with until a finished run on the same machines has measured them; their
    sources are in nemo_vibethinker/costs/rates.py. The share of a GPU's peak is `cluster.efficiency`.
    """

    gpu_hours: float = 3900.0  # of all stages and attempts, the lost ones too; process-hours where there is no GPU
    dollars_per_gpu_hour: float = 2.0
    on_exceed: str = "stop"  # stop: refuse a plan above the budget, save and stop a run at it | warn: only say so
    generate_tokens_per_second: float = 2500.0  # of one GPU
    response_share: float = 0.55  # mean length of a response over max_response_length
    sample_share: float = 0.3  # length of a training sample over sft.seq_length, as attention sees it
    step_overhead: float = 0.25  # share of a sampling step that goes to stragglers, grading and the sync of weights
    startup_seconds: float = 180.0  # of every attempt of a stage: container, imports, process groups, weights
    engine_startup_seconds: float = 60.0  # of the rollout engine: once a stage and for each further model it loads
    checkpoint_gb_per_second: float = 1.0  # written by all processes together
