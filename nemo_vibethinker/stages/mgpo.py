"""MGPO: one reinforcement-learning stage (maths at 16K, maths at 32K, code) on the policy so far."""

import json
import random
import time
from functools import partial
from pathlib import Path

from nemo_vibethinker.atomic_files import atomic_write_text
from nemo_vibethinker.config import CODE_DOMAIN, Config, MgpoConfig
from nemo_vibethinker.data.records import Record, read_jsonl
from nemo_vibethinker.megatron.checkpoint import load_model, load_resume_point, save_model, save_resume_point
from nemo_vibethinker.megatron.checkpoint_saver import CheckpointSaver
from nemo_vibethinker.megatron.distributed import broadcast_object
from nemo_vibethinker.megatron.optimizer import build_optimizer
from nemo_vibethinker.model.qwen2 import wrap_for_training
from nemo_vibethinker.pipeline import StageContext, StageResult, stage_main
from nemo_vibethinker.rollout.responses import Sampler, check_groups, check_ungraded
from nemo_vibethinker.signal import loop
from nemo_vibethinker.spectrum.difficulty import solve_class
from nemo_vibethinker.stages.common import build_run_model, load_tokenizer, make_grader, make_sampler


def run(config: Config, inputs: dict[str, Path], folder: Path, context: StageContext) -> StageResult:
    """Train the policy for `steps` steps on the prompts it solves sometimes.

    Where no prompt is left (none of the stage's domain in the data, or all solved always or never) the policy passes
    through unchanged, and the console and the manifest say so.
    """
    name = context.stage.split(".")[1]
    stage: MgpoConfig = getattr(config.signal, name)
    tokenizer = load_tokenizer(inputs)
    chunks = build_run_model(config, inputs)
    load_model(chunks, inputs["policy"])
    with make_grader(config) as grader:
        sampler = make_sampler(config, chunks, tokenizer, grader)
        sampler.sync("step 0")
        data = inputs["rl_code_data" if name == CODE_DOMAIN else "rl_math_data"]
        prompts, kept = training_prompts(config, stage, sampler, read_jsonl(data), folder, context)
        if prompts:
            with CheckpointSaver(config.cluster.async_save) as saver:
                _train(config, stage, sampler, prompts, folder, context, saver)
    save_model(chunks, folder / "model")
    outputs = {f"model.{context.stage}": folder / "model", "policy": folder / "model"}
    return StageResult(outputs=outputs, metrics={"prompts": kept, "steps": stage.steps if prompts else 0})


def training_prompts(
    config: Config, stage: MgpoConfig, sampler: Sampler, records: list[Record], folder: Path, context: StageContext
) -> tuple[list[Record], dict[str, int]]:
    """The prompts to train on, and how many were scored and kept; the choice is kept in `folder` for a resume."""
    path = folder / "prompts.json"
    choice = broadcast_object(json.loads(path.read_text()) if path.exists() else None)
    if choice is None:
        choice = prefilter(config, stage, sampler, records, context)
        if context.is_main:
            atomic_write_text(path, json.dumps(choice, indent=1))
    by_id = {record.id: record for record in records}
    counts = {key: len(ids) for key, ids in choice.items()}
    nothing = "nothing to learn from" if records else "the data has no prompts for this stage"
    context.say(
        f"prompts: {counts['kept']} kept, {counts['always_solved']} always and {counts['never_solved']} never solved"
        + ("" if choice["kept"] else f"; {nothing}: the policy passes through unchanged")
    )
    return [by_id[identity] for identity in choice["kept"]], counts


def prefilter(
    config: Config, stage: MgpoConfig, sampler: Sampler, records: list[Record], context: StageContext
) -> dict[str, list[str]]:
    """Ids of the prompts that the starting policy solves sometimes, always, and never (3B report, section 2.2)."""
    pool = list(records)
    random.Random(f"{config.seed}/{context.stage}").shuffle(pool)
    pool = pool[: stage.prefilter_prompts or None]
    choice: dict[str, list[str]] = {"kept": [], "always_solved": [], "never_solved": []}
    if not stage.prefilter_samples:
        return choice | {"kept": [record.id for record in pool]}
    groups = sampler.sample_all(pool, stage.prefilter_samples, stage.sampling, context.stage, "prefilter")
    check_groups(groups, config.reward.max_ungraded_share)  # else a broken grader would look like unsolvable prompts
    for group in groups:
        rewards = [value for response in group.responses if (value := loop.reward(response)) is not None]
        solved = solve_class(sum(rewards), len(rewards))
        choice["kept" if solved == "sometimes_solved" else solved].append(group.record.id)
        context.ledger.beat()
    return choice


def _train(
    config: Config,
    stage: MgpoConfig,
    sampler: Sampler,
    prompts: list[Record],
    folder: Path,
    context: StageContext,
    saver: CheckpointSaver,
) -> None:
    chunks = sampler.engine.chunks
    ddp = wrap_for_training(config, chunks)
    optimizer = build_optimizer(ddp, stage.optimizer)
    start = load_resume_point(chunks, optimizer, folder / "resume")
    log = context.metrics_log(stage.steps, start)
    stop = context.stop_requested()
    for step in range(start + 1, stage.steps + 1):
        if stop:
            raise stop
        timer = loop.StepTimer(sampler)
        sampler.sync(f"step {step - 1}")
        batch = step_prompts(prompts, stage.prompts_per_step, step, config.seed)
        rollout = loop.collect(sampler, batch, stage, context.stage, step)
        metrics = loop.rollout_metrics(rollout, stage)
        check_ungraded(metrics["ungraded_share"], config.reward.max_ungraded_share, metrics["ungraded_reasons"])
        sampler.engine.release()
        began = time.monotonic()
        results = loop.update(ddp, optimizer, rollout, stage, step)
        timer.updated(time.monotonic() - began)
        tokens = metrics["response_length"] * len(batch) * stage.group_size
        log.log(step, **metrics, **loop.update_metrics(results), **timer.metrics(tokens, config.world_size))
        stop = context.stop_requested()
        if stop or (step % stage.save_interval == 0 and step < stage.steps):
            saved = partial(context.ledger.saved, time.time())
            save_resume_point(chunks, optimizer, step, folder / "resume", saver, saved)
        saver.poll()


def step_prompts(prompts: list[Record], count: int, step: int, seed: int) -> list[Record]:
    """The prompts of a step: consecutive ones of a seeded shuffle, round and round.

    So every prompt comes equally often, and a step never holds one twice; where there are fewer than `count`, it holds
    them all.
    """
    order = list(prompts)
    random.Random(seed).shuffle(order)
    count = min(count, len(order))
    return [order[((step - 1) * count + i) % len(order)] for i in range(count)]


if __name__ == "__main__":
    stage_main(__file__)
