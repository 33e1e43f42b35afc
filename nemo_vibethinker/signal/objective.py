"""The loss of a reinforcement-learning stage for Megatron's training step. Imports Megatron."""

from collections.abc import Callable
from functools import partial
from typing import cast

import torch
from torch import Tensor

from nemo_vibethinker.config import MgpoConfig
from nemo_vibethinker.megatron.distributed import context_parallel_group
from nemo_vibethinker.megatron.logprobs import ModelOutput, token_logprobs
from nemo_vibethinker.megatron.micro_batch import MicroBatch
from nemo_vibethinker.megatron.train_step import LossTerms
from nemo_vibethinker.signal.entropy_target import entropy_surrogate
from nemo_vibethinker.signal.importance import truncated_importance_weights
from nemo_vibethinker.signal.loss import LossNormalisation, Surrogate, loss_denominator, policy_loss
from nemo_vibethinker.signal.reference_kl import k3_divergence
from nemo_vibethinker.signal.sequence_ratio import sequence_mean

OUTLIER_RATIO = 2.0  # a token that one policy finds this many times as likely as the other


def make_loss(
    config: MgpoConfig, *, engine_is_trainer: bool = True, entropy_coefficient: float = 0.0
) -> Callable[[MicroBatch, ModelOutput], LossTerms]:
    """The loss function of one stage, for `train_step`.

    Where the trainer's own engine sampled, its log-probs are the old policy's. Else the old log-probs are the trainer's
    (`old_logprobs` of the micro-batch; without them those of this very pass, as on-policy), the ratio of the policy
    loss is pi_theta / pi_trainer, and pi_trainer / pi_engine corrects for the engine.
    """
    temperature = config.sampling.temperature or 1.0

    def loss_function(batch: MicroBatch, output: ModelOutput) -> LossTerms:
        logprobs_T, entropy_T = token_logprobs(output, batch.targets, temperature=temperature, entropy=True)
        assert entropy_T is not None
        behaviour_T = batch.extra["behaviour_logprobs"]
        old_T = behaviour_T if engine_is_trainer else batch.extra.get("old_logprobs", logprobs_T.detach())
        result = policy_loss(
            logprobs_T,
            old_T,
            batch.extra["advantages"],
            batch.loss_weights,
            clip_low=config.clip_low,
            clip_high=config.clip_high,
            surrogate=cast(Surrogate, config.surrogate),
            sequence_mean=partial(_sequence_mean, batch),
            importance_N=None if engine_is_trainer else _importance(config, old_T, behaviour_T),
        )
        is_response_T = batch.loss_weights > 0
        loss = result.loss + _regularisers(config, batch, logprobs_T, entropy_T, entropy_coefficient)
        entropy = (entropy_T * is_response_T).sum()
        tokens = result.num_tokens
        sums = {"clip": result.clip_fraction * tokens, "kl": result.kl * tokens, "ratio": result.ratio_mean * tokens}
        trainer_T = logprobs_T.detach() if engine_is_trainer else old_T
        if not engine_is_trainer:
            sums |= {"policy_kl": sums["kl"], "kl": _mismatch(trainer_T - behaviour_T, is_response_T)}
        sums["outliers"] = _outliers(trainer_T - behaviour_T, is_response_T)
        return loss, loss_count(batch, config), {"entropy": entropy, "tokens": tokens, **sums}

    return loss_function


def loss_count(batch: MicroBatch, config: MgpoConfig) -> Tensor:
    """The micro-batch's part of the denominator; Megatron sums it over micro-batches and ranks."""
    num_tokens = int((batch.loss_weights > 0).sum())
    denominator = loss_denominator(
        cast(LossNormalisation, config.normalisation),
        num_sequences=batch.num_sequences,
        num_tokens=num_tokens,
        max_response_length=config.sampling.max_response_length,
    )
    return batch.loss_weights.new_tensor(denominator)


def _importance(config: MgpoConfig, trainer_T: Tensor, engine_T: Tensor) -> Tensor | None:
    return truncated_importance_weights(trainer_T, engine_T, cap=config.tis_cap) if config.tis_cap else None


def _regularisers(
    config: MgpoConfig, batch: MicroBatch, logprobs_T: Tensor, entropy_T: Tensor, entropy_coefficient: float
) -> Tensor | float:
    """What is added to the policy loss: the penalty for leaving the reference, and the entropy bonus."""
    is_response_T, extra = batch.loss_weights > 0, 0.0
    if config.kl_coef:
        known_T = torch.where(is_response_T, logprobs_T, 0.0)
        reference_T = torch.where(is_response_T, batch.extra["reference_logprobs"], 0.0)
        extra += config.kl_coef * (k3_divergence(known_T, reference_T) * batch.loss_weights).sum()
    if entropy_coefficient:
        bonus_T = entropy_surrogate(torch.where(is_response_T, logprobs_T, 0.0), entropy_T)
        extra -= entropy_coefficient * (bonus_T * batch.loss_weights).sum()
    return extra


def _sequence_mean(batch: MicroBatch, values_T: Tensor, is_response_T: Tensor) -> Tensor:
    return sequence_mean(values_T, batch.extra["sequence"], is_response_T, _sum_over_context)


def _sum_over_context(values: Tensor) -> Tensor:
    """The tokens of a sequence lie on the ranks of its context-parallel group."""
    if context_parallel_group().size() > 1:
        torch.distributed.all_reduce(values, group=context_parallel_group())
    return values


def _mismatch(log_ratio_T: Tensor, is_response_T: Tensor) -> Tensor:
    """Summed k3 estimate of KL(engine || trainer)."""
    known_T = torch.where(is_response_T, log_ratio_T, 0.0)
    return (torch.expm1(known_T) - known_T).sum()


def _outliers(log_ratio_T: Tensor, is_response_T: Tensor) -> Tensor:
    """Tokens whose two probabilities are a factor of `OUTLIER_RATIO` or more apart."""
    far_T = log_ratio_T.abs() >= torch.tensor(OUTLIER_RATIO).log()
    return (far_T & is_response_T).sum()
