"""The contestants of sft_throughput.py: each trains the same model on the same samples, a block of steps at a time.

    python benchmarks/sft_arms.py ARM TASK.json SOCKET      (started by sft_throughput.py, by torchrun for several)

An arm builds its trainer, connects to SOCKET and waits. Told a number, it trains that many steps and answers with the
tokens it trained on, padding not counted, the seconds, and the loss of its first step ever. The peers' arms run in an
environment of their own and import nothing of this project.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Client, Connection
from pathlib import Path
from typing import Any

import torch

Sample = tuple[list[int], int]  # token ids of prompt and response, prompt length
IGNORED = -100


class Clock:
    """Waits for the word to train a block of steps and reports it; ranks but the first follow by their collectives."""

    def __init__(self, socket: str, versions: dict[str, str]) -> None:
        self.socket, self.versions = socket, versions
        self.line: Connection | None = None
        self.left = 0
        self.tokens = 0.0
        self.first_loss: float | None = None
        self.began = self.began_cpu = 0.0
        self.phases: dict[str, float] = {}

    def before_step(self) -> None:
        """Wait where a block begins; before the first one, say that the trainer stands."""
        if self.line is None and os.environ.get("RANK", "0") == "0":
            self.line = Client(self.socket)
            self.line.send({"ready": self.versions})
        if self.line and self.left == 0:
            self.left, self.tokens, self.phases = self.line.recv(), 0.0, {}
            self.began, self.began_cpu = time.perf_counter(), time.process_time()

    def note(self, **seconds: float) -> None:
        """Add to the time of the step's parts."""
        for name, value in seconds.items():
            self.phases[name] = self.phases.get(name, 0.0) + value

    def after_step(self) -> None:
        """Count; report where a block ends."""
        if self.line:
            self.left -= 1
            if self.left == 0:
                seconds, cpu = time.perf_counter() - self.began, time.process_time() - self.began_cpu
                answer = {"tokens": self.tokens, "seconds": seconds, "cpu_seconds": cpu}
                self.line.send(answer | {"first_loss": self.first_loss, "phases": self.phases})


def synchronise() -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


# This project


def ours(task: dict[str, Any], socket: str) -> None:
    """The stage's own step: `stages.sft.micro_batches`, `train_step` and `sft_loss`."""
    from nemo_vibethinker.megatron.platform import install_cpu_platform

    install_cpu_platform()
    from launcher.cli import parse
    from nemo_vibethinker.data.packing import PackedData
    from nemo_vibethinker.megatron.distributed import initialize
    from nemo_vibethinker.megatron.optimizer import build_optimizer, set_lr
    from nemo_vibethinker.megatron.train_step import train_step
    from nemo_vibethinker.model.hf_folder import HfFolder
    from nemo_vibethinker.model.qwen2 import build_chunks, run_kernels, wrap_for_training
    from nemo_vibethinker.stages.sft import micro_batches, sft_loss

    config = parse(task["command"]).config
    config.scale.fp8 = task["fp8"]
    initialize(config)
    source = HfFolder(Path(task["model"]), config.scale.model, task["vocab_size"])
    ddp = wrap_for_training(config, build_chunks(config, task["vocab_size"], source))
    optimizer = build_optimizer(ddp, config.sft.optimizer)
    data = PackedData(samples_of(task), config.sft.seq_length, config.seed)
    kernels = run_kernels(config).reasons
    clock = Clock(socket, versions("megatron-core") | {"layers": kernels["layers"], "fp8": kernels["fp8"]})
    for step in range(1, 1 << 30):
        clock.before_step()
        set_lr(optimizer, config.sft.optimizer.lr)
        result = train_step(ddp, optimizer, micro_batches(config, data, step), sft_loss)
        clock.tokens += result.statistics["tokens"]
        clock.first_loss = clock.first_loss or result.loss
        clock.after_step()


# The peers


def hf_rows(task: dict[str, Any], socket: str) -> None:
    """transformers' Trainer on the rows of ours as one batch, samples told apart by their positions."""
    trainer_arm(task, socket, packed_rows(task), collate_rows, task["rows_per_process"], 1)


def hf_flat(task: dict[str, Any], socket: str) -> None:
    """The same rows one at a time, as transformers' DataCollatorWithFlattening lays them out, gradients accumulated."""
    trainer_arm(task, socket, packed_rows(task), collate_rows, 1, task["rows_per_process"])


def hf_padded(task: dict[str, Any], socket: str) -> None:
    """transformers' Trainer without packing: as many samples as make the tokens of a step, of like length, padded."""
    samples = [{"tokens": [tokens], "prompts": [prompt]} for tokens, prompt in samples_of(task)]
    mean = sum(len(sample["tokens"][0]) for sample in samples) / len(samples)
    size = max(1, round(task["seq_length"] * task["rows_per_process"] / mean))
    samples.sort(key=lambda sample: len(sample["tokens"][0]))
    batches = [samples[i : i + size] for i in range(0, len(samples), size)]
    order = torch.randperm(len(batches), generator=torch.Generator().manual_seed(0)).tolist()
    trainer_arm(task, socket, [s for i in order for s in batches[i]], collate_padded, size, 1)


def trainer_arm(
    task: dict[str, Any], socket: str, rows: list[dict[str, Any]], collate: Callable, batch: int, accumulate: int
) -> None:
    """Run transformers' Trainer over `rows` in their order."""
    import transformers
    from transformers import Trainer, TrainingArguments

    class InOrder(counting(Trainer)):
        def _get_train_sampler(self, *arguments: Any) -> Any:  # the rows come in the order of our arm
            return torch.utils.data.SequentialSampler(rows)

    transformers.logging.set_verbosity_error()
    arguments = TrainingArguments(**training_arguments(task, batch, accumulate), remove_unused_columns=False)
    clock = Clock(socket, versions("transformers", "accelerate"))
    run(InOrder, clock, model=peer_model(task), args=arguments, train_dataset=rows, data_collator=collate)


def trl_flat(task: dict[str, Any], socket: str) -> None:
    """TRL's SFTTrainer with its own packing (bfd), a step's rows of a process in one batch."""
    trl_arm(task, socket, task["rows_per_process"], 1)


def trl_rows(task: dict[str, Any], socket: str) -> None:
    """TRL's SFTTrainer with its own packing (bfd), one row at a time, gradients accumulated."""
    trl_arm(task, socket, 1, task["rows_per_process"])


def trl_arm(task: dict[str, Any], socket: str, batch: int, accumulate: int) -> None:
    """Run SFTTrainer on the samples; it packs them before the clock starts."""
    import transformers
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from trl import SFTConfig, SFTTrainer

    transformers.logging.set_verbosity_error()
    words = {f"w{i}": i for i in range(task["vocab_size"])}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w0")), eos_token="w1", pad_token="w2"
    )
    samples = samples_of(task)
    masks = [[0] * prompt + [1] * (len(tokens) - prompt) for tokens, prompt in samples]
    data = Dataset.from_dict({"input_ids": [tokens for tokens, _ in samples], "completion_mask": masks})
    arguments = SFTConfig(
        **training_arguments(task, batch, accumulate),
        packing=True,
        packing_strategy="bfd",
        max_length=task["seq_length"],
        completion_only_loss=True,
    )
    clock = Clock(socket, versions("trl", "transformers", "accelerate"))
    run(
        counting(SFTTrainer),
        clock,
        model=peer_model(task),
        args=arguments,
        train_dataset=data,
        processing_class=tokenizer,
    )


def counting(kind: Any) -> Any:
    """A trainer that tells its clock the tokens of samples and the loss of its first step."""

    class Counting(kind):
        clock: Clock
        losses: list[torch.Tensor] = []  # noqa: RUF012

        def training_step(self, model: Any, inputs: dict[str, Any], *arguments: Any, **keywords: Any) -> Any:
            tokens = inputs.pop("samples_tokens", None)  # where the batch is padded
            tokens = inputs["input_ids"].numel() if tokens is None else int(tokens)
            loss = super().training_step(model, inputs, *arguments, **keywords)
            self.clock.tokens += tokens * self.args.world_size
            if self.clock.first_loss is None:
                self.losses.append(loss)
                if len(self.losses) == self.args.gradient_accumulation_steps:
                    self.clock.first_loss = float(sum(self.losses))
            return loss

    return Counting


def run(kind: Any, clock: Clock, **keywords: Any) -> None:
    """Train until the process is killed."""
    trainer = kind(**keywords, callbacks=[callback(clock)])
    trainer.clock = clock
    trainer.train()


def peer_model(task: dict[str, Any]) -> Any:
    """The model in transformers' form with its attention of choice."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        task["model"], attn_implementation=task["peer_attention"], dtype=torch.float32
    )
    model.config.use_cache = False
    return model


def training_arguments(task: dict[str, Any], batch: int, accumulate: int) -> dict[str, Any]:
    """What both peers are given: our optimizer's settings, the fused AdamW of torch, no logging, no saving."""
    return {
        "output_dir": task["scratch"],
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": accumulate,
        "max_steps": 1 << 20,
        "optim": "adamw_torch_fused",
        "learning_rate": task["lr"],
        "lr_scheduler_type": "constant",
        "weight_decay": task["weight_decay"],
        "adam_beta1": task["betas"][0],
        "adam_beta2": task["betas"][1],
        "max_grad_norm": task["clip_grad"],
        "bf16": task["precision"] == "bf16",
        "gradient_checkpointing": task["recompute"] == "full",
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_num_workers": task["peer_workers"],
        "use_cpu": not torch.cuda.is_available(),
        "seed": 0,
    }


def callback(clock: Clock) -> Any:
    """The clock as a callback of transformers' training loop."""
    from transformers import TrainerCallback

    class Blocks(TrainerCallback):
        def on_step_begin(self, *arguments: Any, **keywords: Any) -> None:
            synchronise()
            clock.before_step()

        def on_step_end(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
            synchronise()
            clock.after_step()

    return Blocks()


def packed_rows(task: dict[str, Any]) -> list[dict[str, Any]]:
    """The packed rows in the order in which our arm takes them, dealt out to the processes as it does."""
    return [{"tokens": [t for t, _ in row], "prompts": [p for _, p in row]} for row in task["rows"]]


def collate_rows(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """[B, T] of packed rows, filled up at the end by a sample that no loss looks at."""
    longest = max(sum(len(tokens) for tokens in row["tokens"]) for row in rows)
    parts: dict[str, list[list[int]]] = {"input_ids": [], "labels": [], "position_ids": []}
    for row in rows:
        fill = longest - sum(len(tokens) for tokens in row["tokens"])
        labels = [label for pair in zip(row["tokens"], row["prompts"], strict=True) for label in labels_of(*pair)]
        positions = [i for tokens in row["tokens"] for i in range(len(tokens))]
        parts["input_ids"].append([token for tokens in row["tokens"] for token in tokens] + [0] * fill)
        parts["labels"].append(labels + [IGNORED] * fill)
        parts["position_ids"].append(positions + list(range(fill)))
    count = sum(len(tokens) for row in rows for tokens in row["tokens"])
    return {name: torch.tensor(values) for name, values in parts.items()} | {"samples_tokens": torch.tensor(count)}


def collate_padded(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """[B, T] of one sample each, padded to the longest."""
    longest = max(len(row["tokens"][0]) for row in rows)
    tokens, prompts = [row["tokens"][0] for row in rows], [row["prompts"][0] for row in rows]
    fills = [longest - len(t) for t in tokens]
    return {
        "input_ids": torch.tensor([t + [0] * f for t, f in zip(tokens, fills, strict=True)]),
        "attention_mask": torch.tensor([[1] * len(t) + [0] * f for t, f in zip(tokens, fills, strict=True)]),
        "labels": torch.tensor(
            [labels_of(t, p) + [IGNORED] * f for t, p, f in zip(tokens, prompts, fills, strict=True)]
        ),
        "samples_tokens": torch.tensor(sum(len(t) for t in tokens)),
    }


def labels_of(tokens: list[int], prompt: int) -> list[int]:
    """The tokens with the prompt out of the loss."""
    return [IGNORED] * prompt + tokens[prompt:]


def samples_of(task: dict[str, Any]) -> list[Sample]:
    """The samples as pairs."""
    return [(tokens, prompt) for tokens, prompt in task["samples"]]


def versions(*packages: str) -> dict[str, str]:
    """Versions of torch and of `packages`."""
    from importlib.metadata import version

    return {package: version(package) for package in ("torch", *packages)}


ARMS = {
    "ours": ours,
    "ours-fp8": ours,
    "transformers-rows": hf_rows,
    "transformers-flat": hf_flat,
    "transformers-padded": hf_padded,
    "trl-flat": trl_flat,
    "trl-rows": trl_rows,
}

if __name__ == "__main__":
    ARMS[sys.argv[1]](json.loads(Path(sys.argv[2]).read_text()), sys.argv[3])
