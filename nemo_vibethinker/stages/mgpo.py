"""MGPO: one reinforcement-learning stage (maths at 16K, maths at 32K, code) on the policy so far."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

from nemo_vibethinker.atomic_files import atomic_write_text
from nemo_vibethinker.config import CODE_DOMAIN, Config, MgpoConfig
from nemo_vibethinker.data.records import Record, read_jsonl
from nemo_vibethinker.megatron.checkpoint import load_model, save_model
from nemo_vibethinker.megatron.checkpoint_saver import CheckpointSaver
from nemo_vibethinker.megatron.distributed import broadcast_object
from nemo_vibethinker.pipeline import StageContext, StageResult, stage_main
from nemo_vibethinker.rollout.responses import Sampler, check_groups
from nemo_vibethinker.run_folder import RunFolder
from nemo_vibethinker.signal.progress import Progress
from nemo_vibethinker.signal.prompts import PromptQueue
from nemo_vibethinker.signal.samples import graded_rewards
from nemo_vibethinker.signal.training import Training, best_folder
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
    progress = Progress()
    with make_grader(config) as grader, make_sampler(config, chunks, tokenizer, grader) as sampler:
        replayed = replayed_stage(config, context)
        if replayed is None:
            sampler.sync("step 0")
        elif context.is_main:
            shutil.copyfile(replayed / "prompts.json", folder / "prompts.json")
        data = inputs["rl_code_data" if name == CODE_DOMAIN else "rl_math_data"]
        held_out, records = hold_out(config, name, read_jsonl(data))
        prompts, kept = training_prompts(config, stage, sampler, records, folder, context)
        if prompts:
            with CheckpointSaver(config.cluster.async_save) as saver:
                training = Training(config, stage, sampler, inputs["policy"], folder, context, saver, replayed)
                progress = training.run(PromptQueue(prompts, config.seed), held_out)
    save_model(chunks, folder / "model")
    best = {f"model.{context.stage}.best": best_folder(folder, progress.best[0])} if progress.best else {}
    outputs = {f"model.{context.stage}": folder / "model", **best, "policy": folder / "model"}
    if stage.keep == "best" and best:
        outputs["policy"] = best[f"model.{context.stage}.best"]
    return StageResult(outputs=outputs, metrics={"prompts": kept, **summary(progress)})


def replayed_stage(config: Config, context: StageContext) -> Path | None:
    """Folder of this stage in the run that `debug.replay_rollouts` names.

    Raises:
        ValueError: that run has no such stage, or saved no rollouts of it.
    """
    if config.debug.replay_rollouts is None:
        return None
    run = RunFolder.load(Path(config.debug.replay_rollouts))
    folder = run.stage_folder(context.stage) if context.stage in run.config.stages else run.path / context.stage
    if not (folder / "rollouts").is_dir():
        raise ValueError(f"debug.replay_rollouts: {folder} has no rollouts; save them with debug.save_rollouts=true")
    return folder


def summary(progress: Progress) -> dict[str, Any]:
    """What a stage's manifest tells of its training."""
    figures: dict[str, Any] = {"steps": progress.step, "updates": progress.weights_version}
    if progress.validation:
        figures |= {"validation": progress.validation, "best_step": progress.best and progress.best[0]}
    return figures | ({"guards": progress.actions} if progress.actions else {})


def hold_out(config: Config, name: str, records: list[Record]) -> tuple[list[Record], list[Record]]:
    """(validation, training) prompts. Stages that share a dataset hold out the same ones, so none trains on them."""
    stages = [config.signal.code] if name == CODE_DOMAIN else [config.signal.math_16k, config.signal.math_32k]
    count = max(stage.validate_prompts if stage.validate_interval else 0 for stage in stages)
    if count == 0:
        return [], records
    if count >= len(records) > 0:
        raise ValueError(
            f"signal.{name}.validate_prompts={count}: the stage's data has {len(records)} prompts; hold out fewer"
        )
    chosen = set(random.Random(f"{config.seed}/validation").sample(sorted(record.id for record in records), count))
    held_out = [record for record in records if record.id in chosen]
    return held_out, [record for record in records if record.id not in chosen]


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
        rewards = graded_rewards(group)
        solved = solve_class(sum(rewards), len(rewards))
        choice["kept" if solved == "sometimes_solved" else solved].append(group.record.id)
        context.ledger.beat()
    return choice


if __name__ == "__main__":
    stage_main(__file__)
