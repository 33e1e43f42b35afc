"""One step of the on-policy loop: sample, grade and weigh; then update. Imports Megatron."""

from collections.abc import Sequence

from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer

from nemo_vibethinker.config import MgpoConfig
from nemo_vibethinker.megatron.distributed import data_parallel_rank_and_size, gather_over_data_parallel
from nemo_vibethinker.megatron.optimizer import set_lr
from nemo_vibethinker.megatron.row_logprobs import row_logprobs
from nemo_vibethinker.megatron.train_step import Permit, StepResult, gather_parameters, train_step
from nemo_vibethinker.rollout.responses import Group, Sampler
from nemo_vibethinker.signal.batches import update_batches, with_values
from nemo_vibethinker.signal.dynamic_sampling import prompts_to_draw
from nemo_vibethinker.signal.objective import make_loss
from nemo_vibethinker.signal.prompts import PromptQueue
from nemo_vibethinker.signal.reference import Reference
from nemo_vibethinker.signal.samples import (
    Rollout,
    group_samples,
    has_variance,
    mean_weight,
    prompt_weight,
    renormalised,
)


def collect(sampler: Sampler, queue: PromptQueue, config: MgpoConfig, *seed_parts: object) -> Rollout:
    """Sample and grade a step's prompts, further ones in place of those without variance, and weigh the responses."""
    rank, size = data_parallel_rank_and_size()
    groups: list[Group] = []
    places: list[int] = []
    drawn, redraws, count = 0, 0, config.prompts_per_step
    while count:
        records = queue.draw(sampler.draw(count))
        fresh = sampler.sample(records, config.group_size, config.sampling, *seed_parts, wanted=count)
        groups += fresh
        places += [drawn + rank + i * size for i in range(len(fresh))]  # the sampler deals prompts out round robin
        drawn += len(records)
        useful = sum(gather_over_data_parallel(sum(map(has_variance, groups)))) if config.dynamic_sampling else 0
        count = prompts_to_draw(
            wanted=config.prompts_per_step,
            useful=useful,
            drawn=drawn,
            available=len(queue),
            redraws=redraws,
            limit=config.dynamic_sampling,
        )
        redraws += 1
    return weigh(groups, places, config)


def weigh(groups: Sequence[Group], places: Sequence[int], config: MgpoConfig) -> Rollout:
    """The samples to train on of this rank's groups; `places` are theirs among the groups of all ranks."""
    samples = [group_samples(group, config) for group in groups]
    if config.renormalise_weights:
        mine = [prompt_weight(group, config) for group, its in zip(groups, samples, strict=True) if its]
        everyone = [weight for share in gather_over_data_parallel(mine) for weight in share]
        samples = renormalised(samples, mean_weight(everyone))
    return Rollout(list(groups), samples, list(places))


def update(
    chunks: Sequence[DistributedDataParallel],
    optimizer: MegatronOptimizer,
    rollout: Rollout,
    config: MgpoConfig,
    step: int,
    *,
    permit: Permit = lambda result: True,
    engine_is_trainer: bool = True,
    entropy_coefficient: float = 0.0,
    reference: Reference | None = None,
) -> list[StepResult]:
    """`updates_per_rollout` optimizer steps, each on its share of the prompts; none where no group has variance.

    Ends early with an update that `permit` forbids, whose result is the last one. What `make_loss` needs besides the
    samples is computed before the first update: later ones share the old policy of the rollout.
    """
    set_lr(optimizer, learning_rate(config, step))
    loss_function = make_loss(config, engine_is_trainer=engine_is_trainer, entropy_coefficient=entropy_coefficient)
    temperature = config.sampling.temperature or 1.0
    parts = list(update_batches(rollout, config))
    if not engine_is_trainer and len(parts) > 1:
        parts = [with_values(part, old_logprobs=row_logprobs(chunks, part, temperature)) for part in parts]
    if reference is not None:
        parts = [with_values(part, reference_logprobs=reference.logprobs(part, temperature)) for part in parts]
    results = []
    for batches in parts:
        results.append(train_step(chunks, optimizer, batches, loss_function, permit))
        if not results[-1].applied:
            break
    gather_parameters(chunks)
    return results


def learning_rate(config: MgpoConfig, step: int) -> float:
    """Of all updates on the rollout of step `step` (from 1): linear warm-up, then constant."""
    return config.optimizer.lr * min(1.0, step / (config.warmup_steps or 1))
