"""How much a stage has to do, and how long it takes by the ledgers of earlier runs."""

import dataclasses
from pathlib import Path

from nemo_vibethinker.config import CODE_DOMAIN, MATH_DOMAINS, Config, MgpoConfig
from nemo_vibethinker.ledger import summarise
from nemo_vibethinker.run_folder import RunFolder

RUNS_READ = 5  # the newest ledgers that are looked at


def probed_checkpoints(config: Config) -> int:
    """Number of checkpoints of the supervised stage that the probe compares; the last step is always one."""
    sft = config.sft
    steps = {*range(sft.checkpoint_interval, sft.steps + 1, sft.checkpoint_interval), sft.steps}
    return sum(step >= sft.first_checkpoint for step in steps)


def filter_prompts(config: Config, name: str) -> int | None:
    """Prompts that the filter before a reinforcement-learning stage samples; None where the user's file decides."""
    stage: MgpoConfig = getattr(config.signal, name)
    if stage.prefilter_samples == 0:
        return 0
    if stage.prefilter_prompts:
        return stage.prefilter_prompts
    if name == CODE_DOMAIN:
        return config.data.rl_code_problems
    own_file = config.data.rl or config.data.sft
    return None if own_file else len(MATH_DOMAINS) * config.data.rl_problems_per_domain


def token_bound(config: Config, stage: str) -> int | None:
    """Upper bound of the tokens a stage trains on or samples; of `evaluate` per model and maths domain.

    None for stages without a model at work, or whose amount the user's file decides.
    """
    if stage == "sft":
        return config.sft.steps * config.sft.global_batch_size * config.sft.seq_length
    if stage == "probe":
        problems = len(config.probe.domains or MATH_DOMAINS) * config.data.probe_problems_per_domain
        samples = probed_checkpoints(config) * problems * config.probe.samples
        return samples * config.probe.sampling.max_response_length
    if stage == "evaluate":
        samples = config.data.evaluation_problems_per_domain * config.evaluate.samples
        return samples * config.evaluate.sampling.max_response_length
    if stage.startswith("mgpo."):
        name = stage.removeprefix("mgpo.")
        mgpo: MgpoConfig = getattr(config.signal, name)
        prompts = filter_prompts(config, name)
        if prompts is None:
            return None
        samples = mgpo.steps * mgpo.prompts_per_step * mgpo.group_size + prompts * mgpo.prefilter_samples
        return samples * mgpo.sampling.max_response_length
    return None


def estimate_seconds(config: Config) -> dict[str, tuple[float, str]]:
    """Stage -> (seconds, name of the run whose ledger says so), for stages that a run in `run.root` has finished.

    Counted are runs of the same model, precision, layout and threads; their time is scaled by the token bound.
    """
    found: dict[str, tuple[float, str]] = {}
    ledgers = sorted(Path(config.run.root).glob("*/ledger.jsonl"), key=lambda file: -file.stat().st_mtime)
    for ledger in ledgers[:RUNS_READ]:
        try:
            earlier = RunFolder.load(ledger.parent)
        except ValueError:  # written by another version
            continue
        if not _same_machine_work(earlier.config, config):
            continue
        for cost in summarise(ledger):
            scale = _ratio(config, earlier.config, cost.stage)
            done = (earlier.stage_folder(cost.stage) / "manifest.json").is_file()
            if done and scale is not None and cost.stage in config.stages and cost.stage not in found:
                seconds = cost.useful_hours * 3600 / earlier.config.world_size
                found[cost.stage] = (seconds * scale, ledger.parent.name)
    return found


def _same_machine_work(one: Config, other: Config) -> bool:
    named_alike = dataclasses.replace(one.scale, name=other.scale.name)
    return named_alike == other.scale and one.cluster == other.cluster


def _ratio(config: Config, earlier: Config, stage: str) -> float | None:
    now, before = token_bound(config, stage), token_bound(earlier, stage)
    if now and before:
        same_models = stage != "evaluate" or config.stages == earlier.stages
        return now / before if same_models else None
    return 1.0 if config.data == earlier.data else None
