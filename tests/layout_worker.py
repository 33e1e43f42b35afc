"""Trains the same few steps under one layout after another; started by torchrun or alone (see test_layouts.py).

    python tests/layout_worker.py TASKS.json OUT.json

A task is {"name", "layout": {dotted key: value}, "first", "last", "load", "save"}: the steps to train, a folder to
restore before and one to save to after, and to "SAVE beside" while one more step is trained; or {"name", "layout",
"hf", "save"}: a Hugging Face folder to read and one to write. What rank 0 saw goes to OUT.json: losses, gradient norms,
logits, samples of the trained model.
"""

# ruff: noqa: E402  (torch is patched before Megatron binds its names)
import json
import sys
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from nemo_vibethinker.megatron.platform import install_cpu_platform

install_cpu_platform()

from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel
from megatron.core.models.gpt import GPTModel
from megatron.core.optimizer import MegatronOptimizer
from omegaconf import OmegaConf
from torch.distributed import distributed_c10d

from nemo_vibethinker.config import Config, ModelConfig, OptimizerConfig, SamplingConfig, ScaleConfig
from nemo_vibethinker.megatron import checkpoint
from nemo_vibethinker.megatron.checkpoint_saver import CheckpointSaver
from nemo_vibethinker.megatron.distributed import broadcast_object, data_parallel_rank_and_size, initialize, is_main
from nemo_vibethinker.megatron.logprobs import vocab_parallel_logprobs
from nemo_vibethinker.megatron.micro_batch import MicroBatch, pack_row
from nemo_vibethinker.megatron.optimizer import build_optimizer
from nemo_vibethinker.megatron.train_step import LossTerms, gather_parameters, run_forward_backward, train_step
from nemo_vibethinker.model.hf_export import write_weights
from nemo_vibethinker.model.hf_folder import HfFolder, read_model_config
from nemo_vibethinker.model.hf_weights import stream_hf_tensors
from nemo_vibethinker.model.qwen2 import build_chunks, wrap_for_training
from nemo_vibethinker.rollout.megatron_engine import MegatronEngine
from nemo_vibethinker.stages.export import megatron_logits
from nemo_vibethinker.stages.sft import sft_loss

VOCAB = 320
SAMPLES = 8
MODEL = ModelConfig(
    num_layers=4,
    hidden_size=32,
    ffn_hidden_size=64,
    num_attention_heads=4,
    num_query_groups=2,
    max_position_embeddings=64,
    init_std=0.3,
)


def configuration(layout: dict[str, Any]) -> Config:
    """The tiny model under a layout given by dotted keys below `scale`."""
    config = OmegaConf.structured(Config(scale=ScaleConfig(model=MODEL)))
    for key, value in layout.items():
        OmegaConf.update(config, f"scale.{key}", value)
    made = OmegaConf.to_object(config)
    assert isinstance(made, Config)
    return made


def micro_batches(step: int) -> list[MicroBatch]:
    """This replica's rows of a step: two samples of different lengths each."""
    generator = torch.Generator().manual_seed(step)
    lengths = torch.randint(6, 21, (SAMPLES,), generator=generator).tolist()
    samples = [(torch.randint(VOCAB, (n,), generator=generator).tolist(), 1 + n // 3) for n in lengths]
    rank, size = data_parallel_rank_and_size()
    mine = samples[rank::size]
    return [pack_row(mine[i : i + 2], [1.0] * len(mine[i : i + 2])) for i in range(0, len(mine), 2)]


def leave_groups() -> None:
    """Megatron forgets its groups without ending them, and gloo's threads of forty layouts would choke the machine."""
    parallel_state.destroy_model_parallel()
    for group in list(distributed_c10d._world.pg_map):
        if group is not torch.distributed.group.WORLD:
            torch.distributed.destroy_process_group(group)


def contamination(chunks: list[GPTModel]) -> tuple[float, float]:
    """Largest change of a log-prob inside and outside the first sample of a row when its second token changes."""
    found: list[torch.Tensor] = []

    def keep(share: MicroBatch, logits_1TV: torch.Tensor) -> LossTerms:
        logprobs_T = vocab_parallel_logprobs(logits_1TV, share.targets[None])[0]
        found.append(torch.stack([logprobs_T, share.extra["sample"]]).detach())
        return logprobs_T.sum() * 0, share.loss_weights.sum(), {}

    for token in (3, 4):
        rows = [([7, token, *range(5, 13)], 1), (list(range(20, 33)), 1), (list(range(40, 47)), 1)]
        batch = pack_row(rows, [1.0] * 3)
        batch = replace(batch, extra={"sample": torch.tensor([1.0] * 10 + [2.0] * 20)})
        run_forward_backward(chunks, [batch] * 2, keep, forward_only=True)
    changes: list[float] = []
    for sample in (1, 2):
        mine = [(a[0] - b[0]).abs()[a[1] == sample] for a, b in zip(found[:2], found[2:4], strict=True)]
        value = torch.cat(mine).max() if mine and sum(m.numel() for m in mine) else torch.zeros(())
        torch.distributed.all_reduce(value, op=torch.distributed.ReduceOp.MAX)
        changes.append(float(value))
    return changes[0], changes[1]


def save_both_ways(
    chunks: list[DistributedDataParallel], optimizer: MegatronOptimizer, step: int, folder: Path
) -> None:
    """The resume point, and in a folder beside it the same written while training went on."""
    modules = [chunk.module for chunk in chunks]
    checkpoint.save_resume_point(modules, optimizer, step, folder)
    with CheckpointSaver(in_background=True) as saver:
        checkpoint.save_resume_point(modules, optimizer, step, folder.with_name(f"{folder.name} beside"), saver)
        train_step(chunks, optimizer, micro_batches(step + 1), sft_loss)
        gather_parameters(chunks)


def run(task: dict[str, Any]) -> dict[str, Any]:
    """One task under its own process groups."""
    config = configuration(task["layout"])
    if task.get("hf"):
        return run_hf(task, config)
    print(task["name"], file=sys.stderr, flush=True)  # where it stands, should it hang
    initialize(config)
    chunks = wrap_for_training(config, build_chunks(config, VOCAB))
    modules = [chunk.module for chunk in chunks]
    optimizer = build_optimizer(chunks, OptimizerConfig(lr=1e-2, eps=1.0))
    if task.get("load"):
        assert checkpoint.load_resume_point(modules, optimizer, Path(task["load"])) == task["first"] - 1
    results = [
        train_step(chunks, optimizer, micro_batches(step), sft_loss) for step in range(task["first"], task["last"] + 1)
    ]
    gather_parameters(chunks)
    if task.get("save"):
        save_both_ways(chunks, optimizer, task["last"], Path(task["save"]))
    prompts = [[5, 6, 7], [9, 10, 11, 12, 13]]
    sampled = MegatronEngine(modules, -1, 0).generate(prompts, SamplingConfig(max_response_length=5), [[1, 2], [3, 4]])
    logits = megatron_logits(modules, list(range(11)))
    spread = contamination(modules)
    leave_groups()
    return {
        "loss": [result.loss for result in results],
        "grad_norm": [result.grad_norm for result in results],
        "count": [result.count for result in results],
        "samples": [[sample.tokens for sample in group] for group in sampled],
        "logprobs": [[sample.logprobs for sample in group] for group in sampled],
        "contamination": spread,
        "logits": logits[:, ::29].tolist() if logits is not None else [],
    }


def run_hf(task: dict[str, Any], config: Config) -> dict[str, Any]:
    """Read a Hugging Face folder, compute logits, and write the model to another folder."""
    folder = Path(task["hf"])
    config.scale.model, vocab_size = read_model_config(folder)
    initialize(config)
    modules = build_chunks(config, vocab_size, HfFolder(folder, config.scale.model, vocab_size))
    logits = megatron_logits(modules, list(range(11)))
    tensors = stream_hf_tensors(modules)
    if is_main():
        out = Path(task["save"])
        out.mkdir()
        write_weights(tensors, out, shard_bytes=50_000)
    else:
        deque(tensors, maxlen=0)
    leave_groups()
    return {"logits": logits.tolist() if logits is not None else []}


def main() -> None:
    """Every task in turn."""
    tasks, out = (Path(argument) for argument in sys.argv[1:3])
    found = {task["name"]: run(task) for task in json.loads(tasks.read_text())}
    if is_main():
        out.write_text(json.dumps(found))
    broadcast_object(None)


if __name__ == "__main__":
    main()
