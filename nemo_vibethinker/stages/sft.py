"""SFT: one supervised run whose checkpoints the probe compares (VibeThinker-1.5B report, section 3.3)."""

import time
from functools import partial
from pathlib import Path

from megatron.core.models.gpt import GPTModel

from nemo_vibethinker.config import Config
from nemo_vibethinker.data.packing import PackedData
from nemo_vibethinker.data.token_files import TokenFile
from nemo_vibethinker.data.tokenizer import tokenizer_sha256
from nemo_vibethinker.megatron.checkpoint import load_resume_point, save_model, save_resume_point
from nemo_vibethinker.megatron.checkpoint_saver import CheckpointSaver
from nemo_vibethinker.megatron.distributed import data_parallel_rank_and_size
from nemo_vibethinker.megatron.logprobs import ModelOutput, token_logprobs
from nemo_vibethinker.megatron.micro_batch import MicroBatch, pack_row
from nemo_vibethinker.megatron.optimizer import build_optimizer, cosine_lr, set_lr
from nemo_vibethinker.megatron.train_step import LossTerms, gather_parameters, train_step
from nemo_vibethinker.model.qwen2 import wrap_for_training
from nemo_vibethinker.pipeline import StageContext, StageResult, stage_main
from nemo_vibethinker.stages.common import build_run_model, load_tokenizer


def run(config: Config, inputs: dict[str, Path], folder: Path, context: StageContext) -> StageResult:
    """Train for `sft.steps` steps, from scratch or from the base model.

    A model checkpoint is kept every `sft.checkpoint_interval` steps and at the end.
    """
    tokenizer = load_tokenizer(inputs)
    if "sft_tokens" not in inputs:
        raise ValueError("the prepared data has no sft_tokens: an earlier version made it; run the prepare stage again")
    tokens = TokenFile(inputs["sft_tokens"])
    tokens.require_tokenizer(tokenizer_sha256(tokenizer))
    data = PackedData(tokens, config.sft.seq_length, config.seed)
    chunks = build_run_model(config, inputs, pretrained=True)
    with CheckpointSaver(config.cluster.async_save) as saver:
        _train(config, chunks, data, folder, context, saver)
    last = checkpoint_folder(folder / "checkpoints", config.sft.steps)
    outputs = {"sft_checkpoints": folder / "checkpoints", "model.sft_last": last, "policy": last}
    return StageResult(outputs=outputs, metrics={"epochs": config.sft.steps * config.sft.global_batch_size / len(data)})


def _train(
    config: Config,
    chunks: list[GPTModel],
    data: PackedData,
    folder: Path,
    context: StageContext,
    saver: CheckpointSaver,
) -> None:
    ddp = wrap_for_training(config, chunks)
    optimizer = build_optimizer(ddp, config.sft.optimizer)
    start = load_resume_point(chunks, optimizer, folder / "resume")
    log = context.metrics_log(config.sft.steps, start)
    stop = context.stop_requested()
    for step in range(start + 1, config.sft.steps + 1):
        if stop:
            raise stop
        began = time.monotonic()
        lr = learning_rate(config, step)
        set_lr(optimizer, lr)
        batches = micro_batches(config, data, step)
        result = train_step(ddp, optimizer, batches, sft_loss)
        if not result.applied:
            raise RuntimeError(f"SFT step {step}: the gradient is not finite; lower sft.optimizer.lr")
        tokens, seconds = result.statistics["tokens"], time.monotonic() - began
        speed = {"tokens_per_second": tokens / seconds / config.world_size, "tokens_trained": tokens}
        log.log(step, loss=result.loss, lr=lr, grad_norm=result.grad_norm, **speed, update_seconds=seconds)
        stop = context.stop_requested()
        kept = step % config.sft.checkpoint_interval == 0 or step == config.sft.steps
        if kept or stop:
            gather_parameters(ddp)
        if kept:
            save_model(chunks, checkpoint_folder(folder / "checkpoints", step), saver)
        if kept or stop:
            saved = partial(context.ledger.saved, time.time())
            save_resume_point(chunks, optimizer, step, folder / "resume", saver, saved)
        saver.poll()


def checkpoint_folder(checkpoints: Path, step: int) -> Path:
    """Where the model of a step is kept."""
    return checkpoints / f"step_{step:06d}"


def learning_rate(config: Config, step: int) -> float:
    """Cosine schedule with warm-up."""
    sft = config.sft
    warmup = round(sft.warmup_fraction * sft.steps)
    return cosine_lr(step, steps=sft.steps, warmup=warmup, lr=sft.optimizer.lr, min_lr=sft.min_lr)


def micro_batches(config: Config, data: PackedData, step: int) -> list[MicroBatch]:
    """This rank's micro-batches of optimizer step `step` (from 1)."""
    rank, size = data_parallel_rank_and_size()
    first = (step - 1) * config.sft.global_batch_size
    mine = [data.row(first + i) for i in range(rank, config.sft.global_batch_size, size)]
    width = config.sft.micro_batch_size
    groups = [[example for row in mine[i : i + width] for example in row] for i in range(0, len(mine), width)]
    return [pack_row(examples, [1.0] * len(examples)) for examples in groups]


def sft_loss(batch: MicroBatch, output: ModelOutput) -> LossTerms:
    """Cross-entropy summed over response tokens, in nats; the count is the number of response tokens."""
    logprobs_T, _ = token_logprobs(output, batch.targets)
    loss = -(logprobs_T * batch.loss_weights).sum()
    return loss, batch.loss_weights.sum(), {"tokens": batch.loss_weights.new_tensor(batch.tokens.numel())}


if __name__ == "__main__":
    stage_main(__file__)
