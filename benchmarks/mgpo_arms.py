"""The contestants of mgpo_step.py: each takes whole RL steps with the same model, prompts, group size and lengths.

    python benchmarks/mgpo_arms.py ARM TASK.json SOCKET      (started by mgpo_step.py)

The reward is the parity of the sum of a response's token ids: it costs nothing, and groups have variance. TRL's arms
run in an environment of their own and import nothing of this project.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from sft_arms import Clock, callback, versions


def parity(tokens: list[int]) -> float:
    """1 for an odd sum of token ids, else 0."""
    return float(sum(tokens) % 2)


def tokenizer(task: dict[str, Any]) -> Any:
    """One word for each token id; the last id ends a response."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(task["vocab_size"])}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w1", eos_token=f"w{task['vocab_size'] - 1}")


def ours(task: dict[str, Any], socket: str) -> None:
    """The in-process engine and the loop's own update, as stages.mgpo runs them."""
    from nemo_vibethinker.megatron.platform import install_cpu_platform

    install_cpu_platform()
    from launcher.cli import parse
    from nemo_vibethinker.data.records import Record
    from nemo_vibethinker.megatron.distributed import data_parallel_rank_and_size, initialize
    from nemo_vibethinker.megatron.optimizer import build_optimizer
    from nemo_vibethinker.model.hf_folder import HfFolder
    from nemo_vibethinker.model.qwen2 import build_chunks, wrap_for_training
    from nemo_vibethinker.reward.verdict import Verdict
    from nemo_vibethinker.rollout.engine import Sample
    from nemo_vibethinker.rollout.megatron_engine import MegatronEngine
    from nemo_vibethinker.rollout.responses import Group, Response
    from nemo_vibethinker.rollout.sampling import stable_seed
    from nemo_vibethinker.signal import loop

    config = parse(task["command"]).config
    stage = config.signal.math_16k
    initialize(config)
    source = HfFolder(Path(task["model"]), config.scale.model, task["vocab_size"])
    chunks = build_chunks(config, task["vocab_size"], source)
    ddp = wrap_for_training(config, chunks)
    optimizer = build_optimizer(ddp, stage.optimizer)
    words = tokenizer(task)
    engine = MegatronEngine(chunks, words.eos_token_id, words.pad_token_id)
    rank, size = data_parallel_rank_and_size()

    def respond(sample: Sample, text: str) -> Response:
        # A response that fills its 64 tokens counts as whole, as TRL counts it.
        whole = Sample(sample.tokens, sample.logprobs, "stop")
        return Response(whole, text, Verdict("right" if parity(sample.tokens) else "wrong"))

    clock = Clock(socket, versions("megatron-core"))
    for step in range(1, 1 << 30):
        clock.before_step()
        began = time.perf_counter()
        prompts = task["prompts"][(step - 1) % len(task["prompts"])][rank::size]
        seeds = [[stable_seed(step, rank, p, i) for i in range(stage.group_size)] for p in range(len(prompts))]
        sampled = engine.generate(prompts, stage.sampling, seeds)
        generated = time.perf_counter()
        groups = []
        for number, (prompt, samples) in enumerate(zip(prompts, sampled, strict=True)):
            texts = words.batch_decode([sample.tokens for sample in samples])
            record = Record(id=f"{step}-{number}", domain="algebra", prompt="", answer="1")
            groups.append(Group(record, prompt, [respond(s, t) for s, t in zip(samples, texts, strict=True)]))
        rollout = loop.weigh(groups, [rank + size * number for number in range(len(groups))], stage)
        graded = time.perf_counter()
        loop.update(ddp, optimizer, rollout, stage, step)
        done = time.perf_counter()
        clock.tokens += size * sum(len(sample.tokens) for samples in sampled for sample in samples)
        clock.note(generate=generated - began, grade=graded - generated, update=done - graded)
        clock.after_step()


def trl_whole(task: dict[str, Any], socket: str) -> None:
    """TRL's GRPOTrainer, all responses of a process in one batch."""
    trl_arm(task, socket, 1)


def trl_quarter(task: dict[str, Any], socket: str) -> None:
    """TRL's GRPOTrainer, gradients accumulated over four batches."""
    trl_arm(task, socket, 4)


def trl_arm(task: dict[str, Any], socket: str, accumulate: int) -> None:
    """Run GRPOTrainer without a reference model, one update a rollout, no logging."""
    import transformers
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from trl import GRPOConfig, GRPOTrainer

    transformers.logging.set_verbosity_error()
    model = AutoModelForCausalLM.from_pretrained(task["model"], attn_implementation="sdpa", dtype=torch.float32)
    clock = Clock(socket, versions("trl", "transformers", "accelerate"))

    def reward(completion_ids: list[list[int]], **unused: Any) -> list[float]:
        clock.tokens += task["processes"] * sum(len(ids) for ids in completion_ids)
        return [parity(ids) for ids in completion_ids]

    class Timed(GRPOTrainer):
        def _generate_and_score_completions(self, *arguments: Any, **keywords: Any) -> Any:
            began = time.perf_counter()
            found = super()._generate_and_score_completions(*arguments, **keywords)
            clock.note(generate=time.perf_counter() - began)
            return found

    responses = task["responses"] // task["processes"]
    arguments = GRPOConfig(
        output_dir=task["scratch"],
        per_device_train_batch_size=responses // accumulate,
        gradient_accumulation_steps=accumulate,
        num_generations=task["group_size"],
        max_completion_length=task["max_new_tokens"],
        temperature=1.0,
        beta=0.0,
        loss_type="grpo",
        learning_rate=task["lr"],
        lr_scheduler_type="constant",
        optim="adamw_torch_fused",
        max_grad_norm=1.0,
        max_steps=1 << 20,
        bf16=False,
        gradient_checkpointing=False,
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        shuffle_dataset=False,
    )
    texts = [" ".join(f"w{token}" for token in prompt) for batch in task["prompts"] for prompt in batch]
    Timed(
        model=model,
        reward_funcs=reward,
        args=arguments,
        train_dataset=Dataset.from_dict({"prompt": texts}),
        processing_class=tokenizer(task),
        callbacks=[callback(clock)],
    ).train()


ARMS = {"ours": ours, "trl": trl_whole, "trl-accumulate": trl_quarter}

if __name__ == "__main__":
    ARMS[sys.argv[1]](json.loads(Path(sys.argv[2]).read_text()), sys.argv[3])
