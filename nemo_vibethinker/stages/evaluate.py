"""Evaluate: scores of models with intervals, on held-out problems and on published benchmarks."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from megatron.core.models.gpt import GPTModel

from nemo_vibethinker.atomic_files import atomic_write_text
from nemo_vibethinker.config import Config
from nemo_vibethinker.data.records import Record, read_jsonl
from nemo_vibethinker.data.tokenizer import chat_tokenizer
from nemo_vibethinker.evaluation.folders import write_scores
from nemo_vibethinker.evaluation.scores import (
    MATH_UNION,
    ProblemSamples,
    Score,
    score_samples,
    scores_from_json,
    scores_to_json,
)
from nemo_vibethinker.megatron.checkpoint import load_model
from nemo_vibethinker.megatron.distributed import broadcast_object
from nemo_vibethinker.model.hf_folder import HfFolder, check_model_config, local_folder
from nemo_vibethinker.model.qwen2 import build_chunks
from nemo_vibethinker.pipeline import StageContext, StageResult, stage_main
from nemo_vibethinker.rollout.responses import Group, Sampler, check_groups, sampling_metrics
from nemo_vibethinker.run_folder import hash_path
from nemo_vibethinker.stages.common import build_run_model, load_tokenizer, make_grader, make_sampler
from nemo_vibethinker.stages.evaluate_benchmarks import BenchmarkPlan, BenchmarkRun, kept_responses, plan_benchmarks

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def run(config: Config, inputs: dict[str, Path], folder: Path, context: StageContext) -> StageResult:
    """Score each `model.*` input on the held-out set, and the last of them, or `eval.model`, on benchmarks.

    Samples are kept: what is finished is not sampled again.
    """
    plan = plan_benchmarks(config, context)
    chunks, tokenizer = _build(config, inputs)
    with make_grader(config) as grader, make_sampler(config, chunks, tokenizer, grader) as sampler:
        scores = _held_out_scores(config, sampler, inputs, folder, context) if "evaluation_data" in inputs else []
        if context.part:
            return StageResult(outputs={}, metrics={})
        if plan.benchmarks:
            scores += _benchmark_scores(config, sampler, plan, inputs, folder, context)
    if context.is_main:
        write_scores(folder, scores)
    headline = {f"{score.model}/{score.domain}": score.pass_at[1].mean for score in scores if 1 in score.pass_at}
    kept = {"benchmark_samples": folder / "benchmarks"} if plan.benchmarks else {}
    return StageResult(outputs={"scores": folder / "scores.json"} | kept, metrics=headline)


def _build(config: Config, inputs: dict[str, Path]) -> tuple[list[GPTModel], "PreTrainedTokenizerFast"]:
    """The model and its tokenizer: of a run, or a Hugging Face folder with its weights."""
    if "hf_model" not in inputs:
        return build_run_model(config, inputs), load_tokenizer(inputs)
    folder = local_folder(str(inputs["hf_model"]), "eval.model")
    vocab_size = check_model_config(config.scale.model, folder)
    return build_chunks(config, vocab_size, HfFolder(folder, config.scale.model, vocab_size)), chat_tokenizer(folder)


def _held_out_scores(
    config: Config, sampler: Sampler, inputs: dict[str, Path], folder: Path, context: StageContext
) -> list[Score]:
    records = read_jsonl(inputs["evaluation_data"])
    checkpoints = distinct_checkpoints(inputs)
    scores: list[Score] = []
    done = [broadcast_object(_scores_path(folder, labels).exists()) for labels in checkpoints.values()]
    todo = [index for index, finished in enumerate(done) if not finished and context.is_mine(index)]
    log = context.metrics_log(len(checkpoints), start_step=todo[0] if todo else len(checkpoints))
    for index in todo:
        if stop := context.stop_requested():
            raise stop
        path, labels = list(checkpoints.items())[index]
        load_model(sampler.engine.chunks, path)
        sampler.sync(labels[0])
        found, cost = _evaluate(config, sampler, records, labels, folder, context)
        context.ledger.saved()
        log.log(index + 1, checkpoint=labels[0], **_headline(found), **cost)
    for labels in checkpoints.values() if context.part is None else ():
        text = _scores_path(folder, labels).read_text() if context.is_main else None
        scores += scores_from_json(broadcast_object(text))
    return scores


def _benchmark_scores(
    config: Config, sampler: Sampler, plan: BenchmarkPlan, inputs: dict[str, Path], folder: Path, context: StageContext
) -> list[Score]:
    models = benchmarked_models(config, inputs)
    kept = broadcast_object(kept_responses(folder, list(models), plan) if context.is_main else 0)
    whole_turns = replace(config, data=replace(config.data, instruction=""))  # benchmarks bring their own
    run = BenchmarkRun(
        config=config,
        plan=plan,
        sampler=Sampler(whole_turns, sampler.engine, sampler.tokenizer, sampler.grader),
        folder=folder,
        context=context,
        log=context.metrics_log(len(models) * plan.responses, kept),
        done=kept,
    )
    scores: list[Score] = []
    for label, path in models.items():
        if "hf_model" not in inputs:
            load_model(sampler.engine.chunks, path)
        sampler.sync(label)
        scores += run.score(label, hash_path(path) if context.is_main else "")
    return scores


def benchmarked_models(config: Config, inputs: dict[str, Path]) -> dict[str, Path]:
    """Label -> checkpoint of the models that are scored on benchmarks; of `eval.model` the folder."""
    if "hf_model" in inputs:
        named = inputs["hf_model"]
        return {named.name if named.exists() else str(named): local_folder(str(named), "eval.model")}
    models = {labels[0]: path for path, labels in distinct_checkpoints(inputs).items()}
    return models if config.eval.every_model else dict(list(models.items())[-1:])


def distinct_checkpoints(inputs: dict[str, Path]) -> dict[Path, list[str]]:
    """Checkpoint -> its labels, in the order of the pipeline; one that several domains chose is scored once."""
    found: dict[Path, list[str]] = {}
    for name, path in inputs.items():
        if name.startswith("model."):
            found.setdefault(path, []).append(name.removeprefix("model."))
    return found


def _scores_path(folder: Path, labels: list[str]) -> Path:
    return folder / f"scores_{labels[0]}.json"


def _evaluate(
    config: Config, sampler: Sampler, records: list[Record], labels: list[str], folder: Path, context: StageContext
) -> tuple[list[Score], dict[str, float]]:
    before = sampler.generate_seconds
    groups = sampler.sample_all(records, config.evaluate.samples, config.evaluate.sampling, "evaluate")
    check_groups(groups, config.reward.max_ungraded_share)
    problems = [problem_samples(group) for group in groups]
    scores = [
        score for label in labels for score in score_samples(label, problems, config.evaluate.ks, seed=config.seed)
    ]
    if context.is_main:
        atomic_write_text(folder / f"samples_{labels[0]}.jsonl", "".join(_sample_lines(groups)))
        atomic_write_text(_scores_path(folder, labels), scores_to_json(scores))
    return scores, sampling_metrics(groups, sampler.generate_seconds - before)


def problem_samples(group: Group) -> ProblemSamples:
    """A group as the score functions take it."""
    return ProblemSamples(
        domain=group.record.domain,
        verdicts=[response.verdict.kind for response in group.responses],
        lengths=[len(response.sample.tokens) for response in group.responses],
        truncated=[response.is_truncated for response in group.responses],
    )


def _sample_lines(groups: list[Group]) -> Iterator[str]:
    for group in groups:
        for response in group.responses:
            verdict = response.verdict
            line = {"id": group.record.id, "response": response.text, "verdict": verdict.kind, "reason": verdict.reason}
            yield json.dumps(line) + "\n"


def _headline(scores: list[Score]) -> dict[str, float]:
    by_domain = {score.domain: score.pass_at[1].mean for score in scores if 1 in score.pass_at}
    mean = by_domain.get(MATH_UNION, next(iter(by_domain.values())))
    return {"pass_at_1": mean} | {f"pass_at_1/{domain}": value for domain, value in by_domain.items()}


if __name__ == "__main__":
    stage_main(__file__)
