"""Megatron's distributed optimizer and the learning-rate schedule."""

import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer, get_megatron_optimizer
from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig

from nemo_vibethinker.config import OptimizerConfig

logging.getLogger("megatron.core.optimizer").setLevel(logging.ERROR)


def build_optimizer(chunks: Sequence[DistributedDataParallel], config: OptimizerConfig) -> MegatronOptimizer:
    """AdamW with gradients, moments and master weights in fp32; the distributed optimizer shards them over replicas."""
    settings = optimizer_settings(
        config, bf16=chunks[0].config.bf16, distributed=chunks[0].ddp_config.use_distributed_optimizer
    )
    megatron_config = MegatronOptimizerConfig(**settings)
    optimizer: Any = get_megatron_optimizer(megatron_config, list(chunks))
    for part in optimizer.chained_optimizers:  # a resume point may be saved before the first update
        part.init_state_fn(part.optimizer)
    return optimizer


def optimizer_settings(config: OptimizerConfig, *, bf16: bool, distributed: bool) -> dict[str, Any]:
    """The arguments of Megatron's `OptimizerConfig`."""
    return {
        "optimizer": "adam",
        "lr": config.lr,
        "weight_decay": config.weight_decay,
        "adam_beta1": config.beta1,
        "adam_beta2": config.beta2,
        "adam_eps": config.eps,
        "clip_grad": config.clip_grad,
        "use_distributed_optimizer": distributed,
        "bf16": bf16,
        "params_dtype": torch.bfloat16 if bf16 else torch.float32,
    }


def set_lr(optimizer: MegatronOptimizer, lr: float) -> None:
    """Set the learning rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def cosine_lr(step: int, *, steps: int, warmup: int, lr: float, min_lr: float) -> float:
    """Learning rate of optimizer step `step` (1-based): linear warm-up over `warmup` steps, then cosine to `min_lr`."""
    if step <= warmup:
        return lr * step / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return min_lr + (lr - min_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
