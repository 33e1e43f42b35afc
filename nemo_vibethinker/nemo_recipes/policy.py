"""The project's Megatron-Core model and losses as a Lightning module for `MegatronStrategy`."""
# pyright: reportMissingImports=false
# (NeMo has an environment of its own)

from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed
from nemo.lightning import io
from nemo.lightning.megatron_parallel import MegatronLossReduction
from nemo.lightning.pytorch.optim import OptimizerModule
from torch import Tensor

from nemo_vibethinker.config import Config
from nemo_vibethinker.megatron.checkpoint import load_model, save_model
from nemo_vibethinker.megatron.micro_batch import MicroBatch
from nemo_vibethinker.megatron.train_step import LossFunction, forward_logits, loss_report, sum_over_replicas
from nemo_vibethinker.model.qwen2 import run_kernels, transformer_config
from nemo_vibethinker.nemo_recipes.stage_input import stage_config, stage_inputs, stage_output
from nemo_vibethinker.signal.objective import make_loss
from nemo_vibethinker.stages.common import build_run_model
from nemo_vibethinker.stages.sft import checkpoint_folder, sft_loss


class PolicyLoss(MegatronLossReduction):
    """One of the project's loss functions, as NeMo calls it for each micro-batch and then for the step."""

    def __init__(self, loss_function: LossFunction) -> None:
        super().__init__()
        self._loss_function = loss_function

    def forward(self, batch: MicroBatch, forward_out: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Summed loss, the count it is divided by, and all sums of the micro-batch."""
        return loss_report(self._loss_function, batch, forward_out)

    def reduce(self, losses_reduced_per_micro_batch: list[dict[str, Tensor]]) -> Tensor:
        """Loss per counted unit over all micro-batches and replicas; called on the last pipeline stage."""
        sums = sum_over_replicas(losses_reduced_per_micro_batch)
        return torch.tensor(sums["loss"] / max(sums["count"], 1.0))


class PolicyModule(pl.LightningModule, io.IOMixin):
    """The model of stage `sft` or `mgpo.NAME` of the run in `run_dir`.

    It starts where the stage starts (SFT: as the run builds its model; MGPO: from the policy so far) and writes the
    project's checkpoints under `run_dir/nemo/STAGE`: of SFT every `sft.checkpoint_interval`, of MGPO the last.

    Raises:
        ValueError: from `configure_model`, if the trainer's layout is not the configuration's.
    """

    def __init__(self, run_dir: str, stage: str, optim: OptimizerModule | None = None) -> None:
        super().__init__()
        self.run_dir, self.stage = run_dir, stage
        self.run_config = stage_config(run_dir, stage)
        self.config = transformer_config(self.run_config, run_kernels(self.run_config))
        self.chunks: list[GPTModel] = []  # the bare model, also when NeMo has wrapped `module`
        self.optim = optim
        if optim is not None:
            optim.connect(self)

    @property
    def is_sft(self) -> bool:
        """Whether the stage is supervised."""
        return self.stage == "sft"

    def configure_model(self, vp_stage: int | None = None) -> None:
        """Build this rank's part of the model; process groups exist by now."""
        if self.chunks:
            return
        check_layout(self.run_config)
        model_parallel_cuda_manual_seed(self.run_config.seed + 1)  # as `distributed.initialize`; NeMo seeds GPUs only
        inputs = stage_inputs(self.run_dir, self.stage)
        chunks = build_run_model(self.run_config, inputs, pretrained=self.is_sft)
        if not self.is_sft:
            load_model(chunks, inputs["policy"])
        self.chunks, (self.module,) = chunks, chunks
        self.module.config.timers = self.config.timers
        self.config = self.module.config  # the schedules read it here

    def data_step(self, dataloader_iter: Iterator[MicroBatch]) -> MicroBatch:
        """The next micro-batch; `MicroBatchSchedule` has made this rank's share of it."""
        return next(dataloader_iter)

    def forward_step(self, batch: MicroBatch) -> Tensor:
        """This rank's output for a packed row: logits on the last pipeline stage, hidden states before."""
        return forward_logits(self.module, batch)  # pyright: ignore[reportArgumentType]

    def training_step(self, batch: MicroBatch, batch_idx: int | None = None) -> Tensor:
        """`forward_step`, under the name NeMo asks for on the last pipeline stage."""
        return self.forward_step(batch)

    @property
    def training_loss_reduction(self) -> PolicyLoss:
        """The loss of the stage."""
        if self.is_sft:
            return PolicyLoss(sft_loss)
        return PolicyLoss(make_loss(getattr(self.run_config.signal, self.stage.split(".")[1])))

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Write an SFT checkpoint where the probe wants one."""
        step = self.trainer.global_step
        sft = self.run_config.sft
        if self.is_sft and (step % sft.checkpoint_interval == 0 or step == sft.steps):
            save_model(self.chunks, checkpoint_folder(stage_output(self.run_dir, self.stage) / "checkpoints", step))

    def on_train_end(self) -> None:
        """Write the policy that reinforcement learning ends with."""
        if not self.is_sft:
            save_model(self.chunks, stage_output(self.run_dir, self.stage) / "model")


def check_layout(config: Config) -> None:
    """Refuse a trainer that was changed by hand: model, data and checkpoints follow the run's configuration.

    Raises:
        ValueError: a parallel size differs.
    """
    from megatron.core import parallel_state

    parallel = config.scale.parallel
    sizes = {
        "tensor": (parallel_state.get_tensor_model_parallel_world_size(), parallel.tensor),
        "pipeline": (parallel_state.get_pipeline_model_parallel_world_size(), parallel.pipeline),
        "context": (parallel_state.get_context_parallel_world_size(), parallel.context),
        "data": (parallel_state.get_data_parallel_world_size(), parallel.data),
    }
    for name, (found, wanted) in sizes.items():
        if found != wanted:
            raise ValueError(
                f"the trainer has {name} parallel size {found}, the run's scale.parallel.{name}={wanted}; "
                "set it in the run's configuration and build the recipe again"
            )
