"""The model card of an exported model: front matter that the Hugging Face Hub reads, and the facts of the run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from nemo_vibethinker.config import Config, MgpoConfig
from nemo_vibethinker.data.readers.files import is_hub_name
from nemo_vibethinker.evaluation.scores import Score
from nemo_vibethinker.ledger import StageCost, total
from nemo_vibethinker.report.numbers import format_estimate, percent

_TEMPLATE = Path(__file__).with_name("page") / "model_card.md"
NOT_STATED = "not stated"


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What the card tells besides the configuration; what is empty or None is said to be missing."""

    name: str
    model: str  # label of the exported model in the scores, such as `mgpo.code`
    scores: Sequence[Score] = ()
    funnel: Mapping[str, Any] | None = None
    costs: Sequence[StageCost] = ()
    versions: Mapping[str, str] | None = None


def model_card(config: Config, facts: CardFacts) -> str:
    """The text of README.md."""
    scores = [score for score in facts.scores if score.model == facts.model]
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    body = environment.from_string(_TEMPLATE.read_text()).render(
        name=facts.name,
        base=config.scale.model.path or "none: trained from scratch",
        config=config,
        stages=[_stage_text(config, stage) for stage in config.stages],
        scores=[_score_row(score) for score in scores],
        model=facts.model,
        earlier=[_score_row(score) for score in facts.scores if score.model != facts.model and score.domain == "math"],
        funnel=_funnel_rows(facts.funnel),
        disjoint=bool(facts.funnel and facts.funnel.get("disjoint")),
        cost=_cost_text(config, facts.costs),
        data=_data_text(config),
        licences=_licences(config),
        sampling=config.evaluate.sampling,
        instruction=config.data.instruction,
        versions=sorted((facts.versions or {}).items()),
    )
    return f"---\n{_front_matter(config, facts.name, scores)}\n---\n\n{body.rstrip()}\n"


def _front_matter(config: Config, name: str, scores: Sequence[Score]) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    base = config.scale.model.path
    named = [path for path in (config.data.sft, config.data.rl) if path and is_hub_name(path)]
    data = ModelCardData(
        license=config.export.license,
        library_name="transformers",
        pipeline_tag="text-generation",
        base_model=base if base and is_hub_name(base) else None,
        datasets=sorted({path.partition(":")[0] for path in named}) or None,
        tags=["reasoning", "reinforcement-learning", "mgpo", "spectrum-to-signal", "megatron-core"],
        model_name=name,
        eval_results=[
            EvalResult(
                task_type="text-generation",
                dataset_type=score.benchmark or "held-out",
                dataset_config=None if score.benchmark else score.domain,  # results of one set are merged
                dataset_name=score.benchmark or f"held-out problems, {score.domain}",
                metric_type="pass@1",
                metric_name="pass@1, percent",
                metric_value=round(100 * score.pass_at[1].mean, 2),
            )
            for score in scores
            if 1 in score.pass_at
        ]
        or None,
    )
    return data.to_yaml()


def _stage_text(config: Config, stage: str) -> str:
    """A line for the recipe."""
    if stage == "sft":
        sft = config.sft
        rows = f"{sft.steps:,} steps of {sft.global_batch_size} rows of {sft.seq_length:,} tokens"
        return f"`sft`: {rows}, learning rate {sft.optimizer.lr:g}"
    if stage == "probe":
        return f"`probe`: Pass@{config.probe.select_k} of the checkpoints per domain, {config.probe.samples} samples"
    if stage.startswith("mgpo."):
        mgpo: MgpoConfig = getattr(config.signal, stage.removeprefix("mgpo."))
        size = f"{mgpo.steps} steps of {mgpo.prompts_per_step} prompts x {mgpo.group_size} responses"
        window = f"window {mgpo.sampling.max_response_length:,} tokens"
        return f"`{stage}`: {size}, {window}, lambda {mgpo.lambda_me:g}, learning rate {mgpo.optimizer.lr:g}"
    return f"`{stage}`"


def _score_row(score: Score) -> list[str]:
    """Model, set, pass@1 with interval, problems x samples, mean tokens, truncated percent."""
    size = f"{score.num_problems:,} x {score.samples_per_problem}"
    lengths = [f"{score.mean_tokens:,.0f}", percent(score.truncated_share)]
    return [score.model, score.benchmark or score.domain, format_estimate(score.pass_at.get(1)), size, *lengths]


def _funnel_rows(funnel: Mapping[str, Any] | None) -> list[list[str]]:
    """Set, read, dropped, removed for overlap, kept."""
    rows = []
    for name, counts in (funnel or {"sets": {}})["sets"].items():
        dropped = counts.get("dropped_count", len(counts["dropped"]))
        removed = counts["read"] - counts["kept"] - dropped
        rows.append([name, *(f"{value:,}" for value in (counts["read"], dropped, removed, counts["kept"]))])
    return rows


def _cost_text(config: Config, costs: Sequence[StageCost]) -> str:
    if not costs:
        return "not on record"
    whole = total(costs)
    unit = "GPU-hours" if whole.device == "gpu" else "CPU process-hours"
    text = f"{whole.process_hours:,.2f} {unit} before the export, {whole.lost_hours:,.2f} of them lost"
    if whole.device != "gpu":
        return text
    rate = config.budget.dollars_per_gpu_hour
    return f"{text}; ${rate * whole.process_hours:,.0f} at ${rate:g} a GPU-hour"


def _data_text(config: Config) -> str:
    if config.run.from_run and "prepare" not in config.stages:
        return f"that of the run {Path(config.run.from_run).name}"
    names = [f"{kind} from `{path}`" for kind, path in (("SFT", config.data.sft), ("RL", config.data.rl)) if path]
    return ", ".join(names) or "problems generated by the project itself, which are toys"


def _licences(config: Config) -> list[tuple[str, str]]:
    export = config.export
    named = (("this model", export.license), ("the base model", export.base_license), ("the data", export.data_license))
    return [(what, value or NOT_STATED) for what, value in named]
