"""The command line of difficulty: sample, grade, keep, and filter a dataset by it."""

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import get_args

from nemo_vibethinker.atomic_files import atomic_write_text
from nemo_vibethinker.command import run_command
from nemo_vibethinker.config import DataConfig, RewardConfig, SamplingConfig
from nemo_vibethinker.data.readers import Kind, iterate_dataset
from nemo_vibethinker.data.records import Record
from nemo_vibethinker.reward.grader import Grader
from nemo_vibethinker.run_folder import hash_path
from nemo_vibethinker.spectrum.difficulty import (
    MIN_ERROR_RATE,
    MIN_TRACE_TOKENS,
    Difficulty,
    SolveClass,
    difficulties_from,
    difficulty_lines,
    read_difficulties,
    solve_class,
    task_hash,
)
from nemo_vibethinker.spectrum.difficulty_filter import Rule, filter_dataset, hard_sft_rule, rl_rule, token_counter
from nemo_vibethinker.spectrum.difficulty_sampling import (
    DifficultyMeter,
    Sample,
    SamplingPlan,
    measure_all,
    sample_from_endpoint,
    sample_locally,
    sampling_requests,
)
from nemo_vibethinker.spectrum.endpoint import Endpoint
from nemo_vibethinker.spectrum.endpoint_arguments import (
    add_endpoint_arguments,
    endpoint_of,
    print_estimate,
    spending_of,
)
from nemo_vibethinker.spectrum.resume_file import ResumeFile
from nemo_vibethinker.spectrum.spending import Spending, Usage

NAME = "nemo_vibethinker.spectrum.difficulty"
_EPILOG = """examples:
  vllm serve runs/mine/hf --served-model-name mine --generation-config vllm
  python -m nemo_vibethinker.spectrum.difficulty --data rl.jsonl --out rl-difficulty.jsonl \\
      --base-url http://localhost:8000/v1 --model mine --filter rl --out-data rl-filtered.jsonl
  python -m nemo_vibethinker.spectrum.difficulty --data sft.jsonl --out sft-difficulty.jsonl --model runs/mine/hf
  python -m nemo_vibethinker.spectrum.difficulty --data sft.jsonl --out sft-difficulty.jsonl \\
      --filter hard-sft --tokenizer runs/mine/hf --out-data sft-hard.jsonl

Without `--generation-config vllm`, vLLM adds top-k and penalties that a model's own generation_config.json may hold.
Stopped or killed, the same command goes on. Exit code 2: wrong use; 1: a fault on the way, run again to go on."""


def build_parser() -> argparse.ArgumentParser:
    """The flags; `--help` teaches them."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {NAME}",
        description="Pass rate of every prompt of a dataset under a checkpoint, and filters by it.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, required=True, metavar="FILE", help="dataset with answers or tests")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="difficulties, JSON lines by prompt")
    parser.add_argument(
        "--model",
        default="",
        metavar="NAME_OR_FOLDER",
        help="the endpoint's name of the model, or, without --base-url, a Hugging Face folder to sample from here; "
        "without --model nothing is sampled and --out is read",
    )
    sampling = parser.add_argument_group("sampling")
    sampling.add_argument("--samples", type=int, default=8, help="responses per prompt (default: %(default)s)")
    sampling.add_argument("--temperature", type=float, default=1.0, help="(default: %(default)s)")
    sampling.add_argument("--top-p", type=float, default=1.0, help="(default: %(default)s)")
    sampling.add_argument("--max-tokens", type=int, default=8192, help="per response (default: %(default)s)")
    sampling.add_argument("--instruction", default=DataConfig().instruction, help=_INSTRUCTION_HELP)
    sampling.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    sampling.add_argument("--api", choices=("completions", "chat"), default="completions", help=_API_HELP)
    sampling.add_argument("--weights", type=Path, metavar="FOLDER", help="the served model's folder, to be hashed")
    sampling.add_argument("--workers", type=int, default=2, help="grading processes (default: %(default)s)")
    _add_filter_arguments(parser)
    add_endpoint_arguments(parser)
    return parser


_INSTRUCTION_HELP = "follows every prompt; give the run's data.instruction (default: the published model's)"
_API_HELP = (
    "completions: the pipeline's own ChatML, the same tokens as in training; chat: the server's template "
    "(default: %(default)s)"
)


def _add_filter_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("filter")
    group.add_argument(
        "--filter",
        choices=("rl", "hard-sft"),
        help="rl: drop prompts solved always or never; hard-sft: keep long traces of prompts that are mostly failed",
    )
    group.add_argument("--out-data", type=Path, metavar="FILE", help="the rows of --data that are kept, as they are")
    group.add_argument("--tokenizer", type=Path, metavar="FOLDER", help="counts the tokens of traces for hard-sft")
    group.add_argument("--min-trace-tokens", type=int, default=MIN_TRACE_TOKENS, help="(default: %(default)s)")
    group.add_argument("--min-error-rate", type=float, default=MIN_ERROR_RATE, help="(default: %(default)s)")


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code."""
    options = build_parser().parse_args(arguments)
    return run_command(NAME, lambda: _run(options), stopped="the same command goes on")


def _run(options: argparse.Namespace) -> None:
    _check_filter(options)
    if not options.model and not options.filter:
        raise ValueError("give --model to sample, or --filter to filter by an existing --out")
    if options.model and not _measure(options):
        return
    difficulties = read_difficulties(options.out)
    print(summary(list(difficulties.values())))
    if options.filter == "rl":
        _filter(options, "rl", rl_rule(difficulties))
    elif options.filter:
        limits = options.min_trace_tokens, options.min_error_rate
        _filter(options, "sft", hard_sft_rule(difficulties, options.tokenizer, *limits))


def _check_filter(options: argparse.Namespace) -> None:
    """Before hours of sampling, not after."""
    if options.filter and not options.out_data:
        raise ValueError("--filter needs --out-data FILE for the rows that are kept")
    files = [path.resolve() for path in (options.data, options.out, options.out_data) if path]
    if len(set(files)) < len(files):
        raise ValueError("--data, --out and --out-data must be different files")
    if options.filter == "hard-sft":
        if not options.tokenizer:
            raise ValueError("--filter hard-sft needs --tokenizer FOLDER to count the tokens of traces")
        token_counter(options.tokenizer)


def _filter(options: argparse.Namespace, kind: Kind, rule: Rule) -> None:
    counts = filter_dataset(options.data, kind, rule, options.out_data)
    dropped = ", ".join(f"{reason} {count:,}" for reason, count in counts.most_common() if reason)
    print(f"{options.out_data}: {counts['']:,} of {counts.total():,} rows; dropped: {dropped or 'none'}")


def _plan(options: argparse.Namespace) -> SamplingPlan:
    if options.samples < 1 or options.max_tokens < 1:
        raise ValueError("--samples and --max-tokens must be at least 1")
    if options.temperature < 0 or not 0 < options.top_p <= 1:
        raise ValueError("--temperature must not be negative, and --top-p lie in (0, 1]")
    if options.temperature == 0 and options.samples > 1:
        raise ValueError("--temperature 0 gives the same response every time: use --samples 1")
    return SamplingPlan(
        samples=options.samples,
        sampling=SamplingConfig(
            temperature=options.temperature, top_p=options.top_p, max_response_length=options.max_tokens
        ),
        instruction=options.instruction,
        seed=options.seed,
        is_chat=options.api == "chat",
    )


def _measure(options: argparse.Namespace) -> bool:
    """Sample what is missing and write `--out`; False where only the plan was asked for."""
    plan, tasks = _plan(options), _read_tasks(options.data)
    endpoint = endpoint_of(options) if options.base_url else None
    identity = _identity(options, endpoint)
    with ResumeFile(Path(f"{options.out}.partial")) as resume:
        done = _finished(options.out, resume, plan, *identity)
        missing = [record for task, record in tasks.items() if task not in done]
        spending = spending_of(options, _used(done.values()))
        print(f"{len(tasks):,} prompts, {len(tasks) - len(missing):,} of them done", file=sys.stderr)
        if endpoint:
            print_estimate("sampling", sampling_requests(missing, plan), spending)
        if options.plan:
            return False

        def keep(row: Difficulty) -> None:
            done[row.task] = row
            resume.append(asdict(row))

        with Grader(RewardConfig(workers=options.workers), options.workers) as grader:
            meter = DifficultyMeter(grader, plan, *identity)
            failed = measure_all(_sampler(options, endpoint, plan, spending), missing, meter, keep)
        atomic_write_text(options.out, difficulty_lines([done[task] for task in tasks if task in done]))
        resume.remove()
    if endpoint:
        print(f"sampled: {spending}", file=sys.stderr)
    for reason, count in failed.most_common():
        print(f"{count:,} prompts without responses: {reason}", file=sys.stderr)
    return True


def _sampler(options: argparse.Namespace, endpoint: Endpoint | None, plan: SamplingPlan, spending: Spending) -> Sample:
    if endpoint:
        return lambda records, handle: sample_from_endpoint(endpoint, records, plan, handle, spending)
    return lambda records, handle: sample_locally(Path(options.model), records, plan, handle)


def _identity(options: argparse.Namespace, endpoint: Endpoint | None) -> tuple[str, str]:
    """The model's name and the SHA-256 of its folder, "" where the endpoint's weights are not on this machine."""
    folder = options.weights
    if endpoint is None and not Path(options.model).is_dir():
        raise ValueError(f"--model {options.model} is not a folder; give --base-url for a served model")
    if endpoint and not folder:
        folder = Path(endpoint.served_from() or options.model)
    elif endpoint is None:
        folder = Path(options.model)
    if options.weights and not folder.is_dir():
        raise ValueError(f"--weights {folder} is not a folder")
    return options.model, hash_path(folder) if folder.is_dir() else ""


def _read_tasks(path: Path) -> dict[str, Record]:
    """The distinct tasks in file order, each by its first record. Unusable rows are counted on standard error."""
    tasks: dict[str, Record] = {}
    unusable: Counter[str] = Counter()
    for row in iterate_dataset(path, kind="rl"):
        if row.record:
            tasks.setdefault(task_hash(row.record), row.record)
        else:
            unusable[row.reason] += 1
    for reason, count in unusable.most_common(5):
        print(f"{path}: {count:,} rows cannot be graded: {reason}", file=sys.stderr)
    if not tasks:
        raise ValueError(f"{path} has no row that can be graded")
    return tasks


def _finished(out: Path, resume: ResumeFile, plan: SamplingPlan, model: str, model_hash: str) -> dict[str, Difficulty]:
    """What earlier attempts have settled; prompts of unknown difficulty are asked again."""
    earlier = read_difficulties(out) if out.exists() else {}
    earlier |= difficulties_from(resume.rows, resume.path)
    wanted = (model, model_hash, plan.samples, plan.facts())
    for row in earlier.values():
        if (row.model, row.model_hash, row.n, row.sampling) != wanted:
            raise ValueError(f"{out} holds difficulties under another model or sampling ({row.model}): another --out")
    return {task: row for task, row in earlier.items() if row.pass_rate is not None}


def _used(rows: Iterable[Difficulty]) -> Usage:
    return sum((Usage(1, row.prompt_tokens, round(row.n * row.mean_response_tokens)) for row in rows), Usage())


def summary(rows: Sequence[Difficulty]) -> str:
    """Counts of prompts by solve class, and means over all responses."""
    if not rows:
        return "no prompts"
    known = [row for row in rows if row.pass_rate is not None]
    classes = Counter(solve_class(row.right, row.n - row.ungraded) for row in known)
    counts = ", ".join(f"{name.replace('_', ' ')} {classes[name]:,}" for name in get_args(SolveClass))
    samples = sum(row.n for row in rows)
    tokens = sum(row.n * row.mean_response_tokens for row in rows) / samples
    truncated = sum(row.n * row.truncated_share for row in rows) / samples
    rate = f"{sum(row.pass_rate or 0.0 for row in known) / len(known):.3f}" if known else "unknown"
    lines = [
        f"{len(rows):,} prompts: {counts}, unknown {len(rows) - len(known):,}",
        f"mean pass rate {rate}; {tokens:.1f} tokens a response, {truncated:.1%} truncated, "
        f"{sum(row.ungraded for row in rows):,} of {samples:,} ungraded",
    ]
    return "\n".join(lines)
