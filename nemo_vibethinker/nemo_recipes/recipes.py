"""The recipes: `nemo_run` partials of NeMo's `llm.train`, every setting taken from a run's configuration.

    import nemo_run as run
    from nemo_vibethinker.nemo_recipes.recipes import vibethinker_1p5b_sft

    run.run(vibethinker_1p5b_sft("runs/NAME"), executor=run.SlurmExecutor(...))

The run folder must lie where every process of the job sees it, with the stages before the recipe's own done.

Proven on the CPU with one process, checkpoints included. With two (tensor parallelism, gloo) the steps ran too, with
the driver's losses, but NeMo's `ModelCheckpoint` then waited for ever in `file_exists`, which broadcasts a flag over
the default group; both ranks stood in that same broadcast and no error was raised. Nothing here has run on a GPU.
"""
# pyright: reportMissingImports=false
# (NeMo has an environment of its own)

from typing import Any

import nemo_run as run
import torch
from megatron.core.distributed import DistributedDataParallelConfig
from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
from nemo import lightning as nl
from nemo.collections import llm
from nemo.lightning.pytorch.optim import MegatronOptimizerModule

from nemo_vibethinker.config import Config, OptimizerConfig
from nemo_vibethinker.megatron.optimizer import optimizer_settings
from nemo_vibethinker.model.qwen2 import ddp_settings, first_stage_layers
from nemo_vibethinker.nemo_recipes.policy import PolicyModule
from nemo_vibethinker.nemo_recipes.stage_input import stage_config, stage_output
from nemo_vibethinker.nemo_recipes.step_data import MgpoData, SftData


@run.cli.factory(target=llm.train, name="vibethinker_1p5b_sft")
def vibethinker_1p5b_sft(run_dir: str, gpus_per_node: int = 8, accelerator: str = "gpu") -> run.Partial:
    """The SFT stage of the run in `run_dir`.

    Args:
        run_dir: a run folder with `config.yaml`, whose prepare stage is done when the job starts.
        gpus_per_node: processes on each node; the number of nodes follows from scale.parallel.
        accelerator: "gpu", or "cpu" for a trial without one.

    Raises:
        ValueError: no such stage, or a layout that does not fill whole nodes.
    """
    config = stage_config(run_dir, "sft")
    trainer = nemo_trainer(config, config.sft.steps, gpus_per_node, accelerator)
    return _recipe(config, run_dir, "sft", trainer, config.sft.optimizer, run.Config(SftData, run_dir=run_dir))


@run.cli.factory(target=llm.train, name="vibethinker_1p5b_mgpo")
def vibethinker_1p5b_mgpo(
    run_dir: str, stage: str = "mgpo.math_16k", gpus_per_node: int = 8, accelerator: str = "gpu"
) -> run.Partial:
    """One reinforcement-learning stage of the run in `run_dir`, from the policy the stages before it left.

    Arguments and errors as `vibethinker_1p5b_sft`; `stage` is mgpo.math_16k, mgpo.math_32k or mgpo.code.
    """
    config = stage_config(run_dir, stage)
    if not stage.startswith("mgpo."):
        raise ValueError(f"stage {stage} is not one of reinforcement learning; use mgpo.math_16k and the like")
    settings = getattr(config.signal, stage.split(".")[1])
    trainer = nemo_trainer(config, settings.steps * settings.updates_per_rollout, gpus_per_node, accelerator)
    data = run.Config(MgpoData, run_dir=run_dir, stage=stage)
    return _recipe(config, run_dir, stage, trainer, settings.optimizer, data)


def nemo_trainer(config: Config, steps: int, gpus_per_node: int, accelerator: str) -> run.Config[nl.Trainer]:
    """NeMo's trainer in the configuration's layout and precision, for `steps` optimizer steps."""
    devices = min(gpus_per_node, config.world_size)
    if config.world_size % devices:
        raise ValueError(f"scale.parallel asks for {config.world_size} processes, not a multiple of {devices} a node")
    return run.Config(
        nl.Trainer,
        accelerator=accelerator,
        devices=devices,
        num_nodes=config.world_size // devices,
        strategy=nemo_strategy(config),
        plugins=nemo_precision(config),
        max_steps=steps,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        use_distributed_sampler=False,
    )


def nemo_strategy(config: Config) -> run.Config[nl.MegatronStrategy]:
    """NeMo's strategy in the configuration's layout."""
    parallel = config.scale.parallel
    return run.Config(
        nl.MegatronStrategy,
        tensor_model_parallel_size=parallel.tensor,
        pipeline_model_parallel_size=parallel.pipeline,
        num_layers_in_first_pipeline_stage=first_stage_layers(config.scale.model.num_layers, parallel.pipeline),
        context_parallel_size=parallel.context,
        sequence_parallel=parallel.sequence,
        pipeline_dtype=_dtype(config),
        ddp=run.Config(DistributedDataParallelConfig, **ddp_settings(config)),
        ckpt_async_save=False,
        ckpt_optim_fully_reshardable=True,
        gradient_as_bucket_view=True,
    )


def nemo_precision(config: Config) -> run.Config[nl.MegatronMixedPrecision]:
    """Parameters and activations in the configuration's precision, gradients reduced in fp32."""
    return run.Config(
        nl.MegatronMixedPrecision,
        precision="bf16-mixed" if config.scale.precision == "bf16" else "32",
        params_dtype=_dtype(config),
        pipeline_dtype=_dtype(config),
        autocast_enabled=False,
        grad_reduce_in_fp32=ddp_settings(config)["grad_reduce_in_fp32"],
    )


def nemo_optimizer(config: Config, optimizer: OptimizerConfig) -> run.Config[MegatronOptimizerModule]:
    """Megatron's distributed AdamW. The learning rate of a step comes with its micro-batches."""
    settings = optimizer_settings(
        optimizer,
        bf16=config.scale.precision == "bf16",
        distributed=config.scale.parallel.distributed_optimizer,
    )
    return run.Config(
        MegatronOptimizerModule,
        config=run.Config(MegatronOptimizerConfig, **settings),
        no_weight_decay_cond=decays_all,
    )


def decays_all(name: str, parameter: torch.Tensor) -> bool:
    """Whether a parameter has no weight decay: never, as in the project's driver (NeMo exempts biases and norms)."""
    return False


def _recipe(
    config: Config,
    run_dir: str,
    stage: str,
    trainer: run.Config[nl.Trainer],
    optimizer: OptimizerConfig,
    data: run.Config[Any],
) -> run.Partial:
    interval = config.sft.checkpoint_interval if stage == "sft" else _save_interval(config, stage)
    checkpoints = run.Config(
        nl.ModelCheckpoint, every_n_train_steps=interval, save_top_k=1, monitor="step", mode="max", save_last=True
    )
    log = run.Config(
        nl.NeMoLogger, name="nemo_logs", log_dir=str(stage_output(run_dir, stage)), use_datetime_version=False
    )
    log.ckpt = checkpoints
    return run.Partial(
        llm.train,
        model=run.Config(PolicyModule, run_dir=run_dir, stage=stage),
        data=data,
        trainer=trainer,
        log=log,
        resume=run.Config(nl.AutoResume, resume_if_exists=True, resume_ignore_no_checkpoint=True),
        optim=nemo_optimizer(config, optimizer),
    )


def _save_interval(config: Config, stage: str) -> int:
    return getattr(config.signal, stage.split(".")[1]).save_interval


def _dtype(config: Config) -> torch.dtype:
    return torch.bfloat16 if config.scale.precision == "bf16" else torch.float32
