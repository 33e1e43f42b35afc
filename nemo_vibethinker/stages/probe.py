"""Probe: Pass@K of every SFT checkpoint per domain; the best checkpoint of each domain is its specialist."""

import json
from pathlib import Path

from nemo_vibethinker.atomic_files import atomic_write_text
from nemo_vibethinker.config import CODE_DOMAIN, Config
from nemo_vibethinker.data.records import Record, read_jsonl
from nemo_vibethinker.megatron.checkpoint import load_model
from nemo_vibethinker.megatron.distributed import broadcast_object
from nemo_vibethinker.pipeline import StageContext, StageResult, stage_main
from nemo_vibethinker.rollout.responses import Group, Sampler, check_groups, sampling_metrics
from nemo_vibethinker.spectrum.pass_at_k import estimate_pass_at_k
from nemo_vibethinker.spectrum.selection import ProbeTable, select_specialists
from nemo_vibethinker.stages.common import build_run_model, load_tokenizer, make_grader, make_sampler
from nemo_vibethinker.stages.sft import checkpoint_folder

Counts = dict[str, list[int]]  # domain -> right samples of each problem


def run(config: Config, inputs: dict[str, Path], folder: Path, context: StageContext) -> StageResult:
    """Sample `probe.samples` responses per probing problem from each checkpoint, and choose the specialists.

    Finished checkpoints are kept in `folder`, so an interrupted probe goes on with the next one.
    """
    tokenizer = load_tokenizer(inputs)
    chunks = build_run_model(config, inputs)
    records = probing_records(config, read_jsonl(inputs["probe_data"]))
    steps = probed_steps(config, inputs["sft_checkpoints"])
    with make_grader(config) as grader, make_sampler(config, chunks, tokenizer, grader) as sampler:
        done = [broadcast_object(_counts_path(folder, step).exists()) for step in steps]
        todo = [index for index, finished in enumerate(done) if not finished and context.is_mine(index)]
        log = context.metrics_log(len(steps), start_step=todo[0] if todo else len(steps))
        for index in todo:
            if stop := context.stop_requested():
                raise stop
            step = steps[index]
            load_model(chunks, checkpoint_folder(inputs["sft_checkpoints"], step))
            sampler.sync(f"sft step {step}")
            found, cost = _probe(config, sampler, records)
            if context.is_main:
                atomic_write_text(_counts_path(folder, step), json.dumps(found))
            context.ledger.saved()
            mean = {domain: sum(rights) / len(rights) / config.probe.samples for domain, rights in found.items()}
            pass_at_1 = sum(mean.values()) / len(mean)
            log.log(index + 1, checkpoint=step, pass_at_1=pass_at_1, **_by_domain(mean), **cost)
    if context.part:
        return StageResult(outputs={}, metrics={})
    counts: dict[int, Counts] = {
        step: broadcast_object(json.loads(_counts_path(folder, step).read_text()) if context.is_main else None)
        for step in steps
    }
    table = build_table(config, counts)
    specialists = select_specialists(table, config.probe.select_k)
    if context.is_main:
        atomic_write_text(folder / "probe_table.json", table.to_json())
        atomic_write_text(folder / "specialists.json", json.dumps(specialists, indent=1))
        print(table.format_text(config.probe.select_k), flush=True)
    outputs = {"probe_table": folder / "probe_table.json", "specialists": folder / "specialists.json"}
    for domain, step in specialists.items():
        outputs[f"model.specialist.{domain}"] = checkpoint_folder(inputs["sft_checkpoints"], step)
    return StageResult(outputs=outputs, metrics={"specialists": specialists, "problems": len(records)})


def _counts_path(folder: Path, step: int) -> Path:
    return folder / f"counts_{step:06d}.json"


def probing_records(config: Config, records: list[Record]) -> list[Record]:
    """The probing problems of the domains asked for.

    Raises:
        ValueError: a domain of `probe.domains` has no probing problem.
    """
    present = {record.domain for record in records}
    domains = config.probe.domains or sorted(present - {CODE_DOMAIN})
    missing = [domain for domain in domains if domain not in present]
    if missing:
        raise ValueError(
            f"probe.domains: no probing problem of '{missing[0]}'; the set has {', '.join(sorted(present))}"
        )
    return [record for record in records if record.domain in domains]


def probed_steps(config: Config, checkpoints: Path) -> list[int]:
    """The checkpoint steps to probe, ascending."""
    steps = sorted(int(path.name.removeprefix("step_")) for path in checkpoints.glob("step_*"))
    return [step for step in steps if step >= config.sft.first_checkpoint]


def _probe(config: Config, sampler: Sampler, records: list[Record]) -> tuple[Counts, dict[str, float]]:
    before = sampler.generate_seconds
    groups = sampler.sample_all(records, config.probe.samples, config.probe.sampling, "probe")
    check_groups(groups, config.reward.max_ungraded_share)
    counts: Counts = {}
    for group in groups:
        counts.setdefault(group.record.domain, []).append(_num_right(group))
    return counts, sampling_metrics(groups, sampler.generate_seconds - before)


def _num_right(group: Group) -> int:
    """Right responses of a group; the few that were left ungraded count as not right, the same for every checkpoint."""
    return sum(response.verdict.is_right for response in group.responses)


def build_table(config: Config, counts: dict[int, Counts]) -> ProbeTable:
    """Pass@K with bootstrap intervals for every domain, checkpoint and K."""
    domains = list(next(iter(counts.values())))
    cells = {
        domain: {
            step: {
                k: estimate_pass_at_k(by_domain[domain], config.probe.samples, k, seed=config.seed)
                for k in config.probe.ks
            }
            for step, by_domain in counts.items()
        }
        for domain in domains
    }
    return ProbeTable(domains=tuple(domains), steps=tuple(counts), ks=tuple(config.probe.ks), cells=cells)


def _by_domain(values: dict[str, float]) -> dict[str, float]:
    return {f"pass_at_1/{domain}": value for domain, value in values.items()}


if __name__ == "__main__":
    stage_main(__file__)
