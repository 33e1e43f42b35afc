"""Evaluate: held-out scores of every model on the way, with intervals."""

import json
from collections.abc import Iterator
from pathlib import Path

from nemo_vibethinker.atomic_files import atomic_write_text
from nemo_vibethinker.config import Config
from nemo_vibethinker.data.records import Record, read_jsonl
from nemo_vibethinker.evaluation.scores import (
    MATH_UNION,
    ProblemSamples,
    Score,
    format_score_table,
    score_samples,
    scores_from_json,
    scores_to_json,
)
from nemo_vibethinker.megatron.checkpoint import load_model
from nemo_vibethinker.megatron.distributed import broadcast_object
from nemo_vibethinker.pipeline import StageContext, StageResult, stage_main
from nemo_vibethinker.rollout.responses import Group, Sampler, check_groups
from nemo_vibethinker.stages.common import build_run_model, load_tokenizer, make_grader, make_sampler


def run(config: Config, inputs: dict[str, Path], folder: Path, context: StageContext) -> StageResult:
    """Score each `model.*` input on the evaluation set. Samples are kept; finished models are not sampled again."""
    tokenizer = load_tokenizer(inputs)
    chunks = build_run_model(config, inputs)
    records = read_jsonl(inputs["evaluation_data"])
    checkpoints = distinct_checkpoints(inputs)
    scores: list[Score] = []
    with make_grader(config) as grader:
        sampler = make_sampler(config, chunks, tokenizer, grader)
        done = {path: broadcast_object(_scores_path(folder, labels).exists()) for path, labels in checkpoints.items()}
        log = context.metrics_log(len(checkpoints), sum(done.values()))
        finished = sum(done.values())
        for path, labels in checkpoints.items():
            if not done[path]:
                if stop := context.stop_requested():
                    raise stop
                load_model(chunks, path)
                sampler.sync(labels[0])
                found = _evaluate(config, sampler, records, labels, folder, context)
                finished += 1
                log.log(finished, checkpoint=labels[0], **_headline(found))
            text = _scores_path(folder, labels).read_text() if context.is_main else None
            scores += scores_from_json(broadcast_object(text))
    if context.is_main:
        table = format_score_table(scores)
        atomic_write_text(folder / "scores.json", scores_to_json(scores))
        atomic_write_text(folder / "scores.txt", table + "\n")
    headline = {f"{score.model}/{score.domain}": score.pass_at[1].mean for score in scores if 1 in score.pass_at}
    return StageResult(outputs={"scores": folder / "scores.json"}, metrics=headline)


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
) -> list[Score]:
    groups = sampler.sample_all(records, config.evaluate.samples, config.evaluate.sampling, "evaluate")
    check_groups(groups, config.reward.max_ungraded_share)
    problems = [problem_samples(group) for group in groups]
    scores = [
        score for label in labels for score in score_samples(label, problems, config.evaluate.ks, seed=config.seed)
    ]
    if context.is_main:
        atomic_write_text(folder / f"samples_{labels[0]}.jsonl", "".join(_sample_lines(groups)))
        atomic_write_text(_scores_path(folder, labels), scores_to_json(scores))
    return scores


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
