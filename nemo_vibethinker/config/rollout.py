"""Generation of responses."""

from dataclasses import dataclass

# Keys that decide where and how safely the engines run, not what they generate: a run may go on with other values.
OPERATION = ("python", "placement", "gpu_memory", "max_", "start_deadline_s", "call_", "silence_", "bucket_mb")


@dataclass(kw_only=True)
class RolloutConfig:
    """The engine that generates. `megatron` is the trainer's own model in its process; the other keys are vLLM's."""

    engine: str = "megatron"  # megatron | vllm
    python: str = ""  # interpreter of the environment that has vLLM; empty: this one
    placement: str = "colocated"  # colocated: on the trainer's GPUs, in turns | separate: on the node's other GPUs
    tensor_parallel: int = 1  # GPUs of one engine
    gpu_memory: float = 0.6  # share of each GPU's memory for the engine, weights and key-value cache together
    max_sequences: int = 256  # responses that one engine decodes side by side
    start_deadline_s: float = 900.0
    call_deadline_s: float = 300.0  # of one call: a bucket of weights, a checksum
    silence_deadline_s: float = 1800.0  # without one finished response an engine counts as hung
    max_restarts: int = 1  # of engines, between two finished rollouts; the next failure stops the run
    bucket_mb: int = 1024  # weights in flight at one time during a sync; no tensor may be larger
    canary_tolerance: float = 0.02  # nats; mean |log-prob of engine - of trainer| over the canary's tokens after a sync
    oversampling: float = 0.0  # share of prompts sampled beyond a step's; its groups are those that finish first
    group_deadline_s: float = 0.0  # after it a group is cut; 0: none
    partial_rollout: bool = False  # cut groups are finished in the next step, else dropped
