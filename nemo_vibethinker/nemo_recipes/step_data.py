"""The micro-batches of each optimizer step, and how NeMo's Megatron step takes them."""
# pyright: reportMissingImports=false
# (NeMo has an environment of its own)

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
from nemo.lightning import io
from nemo.lightning.megatron_parallel import MegatronStep
from nemo.lightning.pytorch.plugins.data_sampler import DataSampler

from nemo_vibethinker.config import CODE_DOMAIN, Config, MgpoConfig
from nemo_vibethinker.data.packing import PackedData
from nemo_vibethinker.data.records import read_jsonl
from nemo_vibethinker.data.token_files import TokenFile
from nemo_vibethinker.data.tokenizer import tokenizer_sha256
from nemo_vibethinker.ledger import Ledger
from nemo_vibethinker.megatron.micro_batch import MicroBatch
from nemo_vibethinker.megatron.optimizer import set_lr
from nemo_vibethinker.megatron.train_step import schedule_rows
from nemo_vibethinker.nemo_recipes.policy import PolicyModule
from nemo_vibethinker.nemo_recipes.stage_input import stage_config, stage_inputs, stage_output
from nemo_vibethinker.pipeline import StageContext, is_main
from nemo_vibethinker.rollout.responses import check_ungraded
from nemo_vibethinker.signal import loop
from nemo_vibethinker.signal.batches import update_batches
from nemo_vibethinker.signal.metrics import rollout_metrics
from nemo_vibethinker.signal.prompts import PromptQueue
from nemo_vibethinker.stages import mgpo, sft
from nemo_vibethinker.stages.common import load_tokenizer, make_grader, make_sampler


@dataclass(frozen=True)
class StepBatches:
    """This rank's part of one optimizer step, its learning rate, and figures to log with it."""

    batches: list[MicroBatch]
    lr: float
    metrics: dict[str, float]


class MicroBatchSchedule(DataSampler):
    """Hands a `StepBatches` to Megatron's schedule.

    NeMo's own sampler counts rows of equal length; here a step has as many micro-batches as its tokens need, and its
    learning rate is a function of the step, as in the project's driver.
    """

    dataloader_type = "single"

    def setup(self, global_rank: int) -> None:
        """Nothing to set up."""

    def transform_dataloader(self, dataloader: Any, consumed_samples: int = 0) -> Any:
        """The data comes as each rank's own already."""
        return dataloader

    def on_megatron_step_start(self, step: MegatronStep) -> MegatronStep:
        """Take the next optimizer step's micro-batches."""
        item, *_ = next(step.data)  # pyright: ignore[reportArgumentType, reportCallIssue]
        module: PolicyModule = step.pl_module  # pyright: ignore[reportAssignmentType]
        module.train()  # sampling has put the model into evaluation mode
        for optimizer in step.trainer.strategy.optimizers:
            set_lr(optimizer, item.lr)  # pyright: ignore[reportArgumentType]
        module.log_dict({"learning_rate": item.lr, **item.metrics}, batch_size=1)
        shares, longest = schedule_rows(item.batches, module.config)
        return dataclasses.replace(
            step, data=iter(shares), num_microbatches=len(shares), micro_batch_size=1, seq_length=longest
        )


class _StageData(pl.LightningDataModule, io.IOMixin):
    """Steps of a stage, from the trainer's step on: what NeMo asks of a data module is here.

    Attributes:
        seq_length, micro_batch_size, global_batch_size: for NeMo's checks and telemetry: tokens of a packed row at
            most, rows of a micro-batch, and samples (SFT: packed rows) of an optimizer step over all replicas.
    """

    seq_length: int
    micro_batch_size: int
    global_batch_size: int

    def __init__(self, run_dir: str, stage: str) -> None:
        super().__init__()
        self.run_dir, self.stage = run_dir, stage
        self.config: Config = stage_config(run_dir, stage)
        self.data_sampler = MicroBatchSchedule()

    def first_step(self) -> int:
        """The optimizer step to go on with, from 1."""
        assert self.trainer is not None
        return self.trainer.global_step + 1


class SftData(_StageData):
    """Packed rows of the run's SFT examples, in the driver's order."""

    def __init__(self, run_dir: str) -> None:
        super().__init__(run_dir, "sft")
        settings = self.config.sft
        self.seq_length, self.micro_batch_size = settings.seq_length, settings.micro_batch_size
        self.global_batch_size = settings.global_batch_size

    def train_dataloader(self) -> "Steps":
        """One item for each optimizer step."""
        return Steps(self._steps)

    def _steps(self) -> Iterator[StepBatches]:
        inputs = stage_inputs(self.run_dir, self.stage)
        tokens = TokenFile(inputs["sft_tokens"])
        tokens.require_tokenizer(tokenizer_sha256(load_tokenizer(inputs)))
        data = PackedData(tokens, self.config.sft.seq_length, self.config.seed)
        for step in range(self.first_step(), self.config.sft.steps + 1):
            batches = sft.micro_batches(self.config, data, step)
            yield StepBatches(batches, sft.learning_rate(self.config, step), {})


class MgpoData(_StageData):
    """Rollouts of the policy under training, sampled when their step begins.

    A resumed run goes on with the prompts of the step after the last one; steps whose groups all lack variance are
    passed over, as in the driver, and do not count as optimizer steps.
    """

    def __init__(self, run_dir: str, stage: str) -> None:
        super().__init__(run_dir, stage)
        self.settings: MgpoConfig = getattr(self.config.signal, stage.split(".")[1])
        self.seq_length, self.micro_batch_size = self.settings.tokens_per_micro_batch, 1
        self.global_batch_size = self.settings.prompts_per_step * self.settings.group_size

    def train_dataloader(self) -> "Steps":
        """One item for each optimizer step."""
        return Steps(self._steps)

    def _steps(self) -> Iterator[StepBatches]:
        assert self.trainer is not None
        stage = self.settings
        inputs = stage_inputs(self.run_dir, self.stage)
        module: PolicyModule = self.trainer.lightning_module  # pyright: ignore[reportAssignmentType]
        records = read_jsonl(inputs["rl_code_data" if self.stage.endswith(f".{CODE_DOMAIN}") else "rl_math_data"])
        folder = stage_output(self.run_dir, self.stage)
        with make_grader(self.config) as grader:
            sampler = make_sampler(self.config, module.chunks, load_tokenizer(inputs), grader)
            context = _context(self.stage, self.config.world_size)
            prompts, _ = mgpo.training_prompts(self.config, stage, sampler, records, folder, context)
            first = (self.first_step() - 1) // stage.updates_per_rollout + 1
            drawn = (first - 1) * min(stage.prompts_per_step, len(prompts))
            queue = PromptQueue(prompts, self.config.seed, drawn)
            for step in range(first, stage.steps + 1) if prompts else ():
                rollout = loop.collect(sampler, queue, stage, self.stage, step)
                metrics = rollout_metrics(rollout, stage)
                reasons = metrics.pop("ungraded_reasons")
                check_ungraded(metrics["ungraded_share"], self.config.reward.max_ungraded_share, reasons)
                for batches in update_batches(rollout, stage):
                    yield StepBatches(batches, loop.learning_rate(stage, step), metrics)


class Steps:
    """An iterable that begins anew each time, as Lightning expects of a data loader."""

    def __init__(self, steps: Any) -> None:
        self._steps = steps

    def __iter__(self) -> Iterator[StepBatches]:
        return self._steps()


def _context(stage: str, processes: int) -> StageContext:
    ledger = Ledger(None, processes, "cpu")
    return StageContext(stage=stage, is_main=is_main(), attempt=1, ledger=ledger, metrics_path=None)
