"""Majority vote and claim-level reliability of a served model on a benchmark, with what each costs.

    python -m nemo_vibethinker.evaluation.clr_cli --base-url http://localhost:8000/v1 --model mine \\
        --benchmarks aime25 --path aime25=aime25.jsonl --out clr

By default as published: K = 32 trajectories, M = 5 claims each, the whole flow 8 times. Every answer is kept as it
comes, so the same command goes on after a stop.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from nemo_vibethinker.atomic_files import atomic_write_text
from nemo_vibethinker.command import run_command
from nemo_vibethinker.data.tokenizer import prompt_text
from nemo_vibethinker.evaluation.benchmarks import LoadedBenchmark
from nemo_vibethinker.evaluation.clr import CLAIMS, REPEATS, TRAJECTORIES, Ask, Clr, ClrResult, Completion
from nemo_vibethinker.evaluation.endpoint import add_benchmark_arguments, load_chosen, settings_of
from nemo_vibethinker.evaluation.protocols import protocol_of
from nemo_vibethinker.evaluation.provenance import verifier_version
from nemo_vibethinker.evaluation.scores import estimate
from nemo_vibethinker.evaluation.seeds import request_seed
from nemo_vibethinker.progress import Progress
from nemo_vibethinker.reward.math import MathVerifier
from nemo_vibethinker.spectrum.endpoint import Answer, Endpoint, Failure, Request
from nemo_vibethinker.spectrum.endpoint_arguments import add_endpoint_arguments, endpoint_of, spending_of
from nemo_vibethinker.spectrum.resume_file import ResumeFile
from nemo_vibethinker.spectrum.spending import Spending, Usage

NAME = "nemo_vibethinker.evaluation.clr_cli"


class KeptAnswers:
    """Completions from an endpoint, each asked for once: what an earlier attempt has got is read from its file."""

    def __init__(self, endpoint: Endpoint, kept: ResumeFile, spending: Spending) -> None:
        self._endpoint, self._kept, self._spending = endpoint, kept, spending
        self._known = {row["key"]: Completion(row["text"], row["tokens"], row["prompt_tokens"]) for row in kept.rows}
        self.seconds = 0.0  # spent waiting in this attempt

    def completions(self, requests: Sequence[Request], unit: str) -> list[Completion]:
        """In the order of the requests; RuntimeError where one is not answered."""
        keys = [request.key(self._endpoint.model) for request in requests]
        missing = [request for request, key in zip(requests, keys, strict=True) if key not in self._known]
        started = time.monotonic()
        if missing:
            self._ask(missing, unit)
        self.seconds += time.monotonic() - started
        return [self._known[key] for key in keys]

    def _ask(self, requests: Sequence[Request], unit: str) -> None:
        progress = Progress("clr", len(requests), unit=unit)
        failures: list[Failure] = []

        def handle(request: Request, result: Answer | Failure) -> None:
            progress.advance(note=self._spending)
            if isinstance(result, Failure):
                failures.append(result)
                return
            found = Completion(result.texts[0], result.usage.completion_tokens, result.usage.prompt_tokens)
            self._kept.append({"key": request.key(self._endpoint.model)} | asdict(found))
            self._known[request.key(self._endpoint.model)] = found

        self._endpoint.answer_all(requests, handle, self._spending)
        if failures:
            raise RuntimeError(f"{len(failures):,} requests failed, the same command asks again; {failures[0].reason}")


def _run(options: argparse.Namespace) -> None:
    if not options.base_url:
        raise ValueError("give --base-url of a served model")
    for name in ("trajectories", "claims", "repeats"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name} must be at least 1")
    benchmarks = load_chosen(settings_of(options))
    if programs := [each.benchmark.name for each in benchmarks if each.benchmark.kind == "code"]:
        raise ValueError(
            f"{programs[0]}: programs have no answers to vote on; choose benchmarks of mathematics or choices"
        )
    options.out.mkdir(parents=True, exist_ok=True)
    with ResumeFile(options.out / "answers.jsonl") as kept, MathVerifier(boxed_only=True) as verifier:
        asked = KeptAnswers(endpoint_of(options), kept, spending_of(options, Usage()))
        reports = [_report(options, loaded, asked, verifier) for loaded in benchmarks]
    atomic_write_text(options.out / "clr.json", json.dumps(reports, indent=1) + "\n")
    print("\n".join(map(_text, reports)))


def _report(options: argparse.Namespace, loaded: LoadedBenchmark, asked: KeptAnswers, verifier: MathVerifier) -> dict:
    protocol, kind, before = protocol_of(settings_of(options)), loaded.benchmark.kind, asked.seconds
    sampling = protocol.sampling(kind, options.window)

    def generate(asks: Sequence[Ask]) -> list[Completion]:
        requests = [
            Request(
                text=ask.prompt if options.api == "chat" else prompt_text(ask.prompt, ""),
                version=f"{loaded.benchmark.name}/{ask.purpose}/{ask.seed_parts}",
                max_tokens=sampling.max_response_length,
                is_chat=options.api == "chat",
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                seed=request_seed(options.seed, loaded.benchmark.name, ask.purpose, *ask.seed_parts),
            )
            for ask in asks
        ]
        return asked.completions(requests, asks[0].purpose) if asks else []

    flow = Clr(generate, verifier, options.trajectories, options.claims)
    repeats = [flow.solve(loaded.records, repeat) for repeat in range(options.repeats)]
    rates = {name: _mean(repeats, name, options.seed) for name in ("mean", "majority", "clr")}
    return {
        "benchmark": loaded.benchmark.name,
        "model": options.model,
        "problems": len(loaded.records),
        "trajectories": options.trajectories,
        "claims": options.claims,
        "repeats": options.repeats,
        "pass_at_1": rates["mean"],
        "majority": rates["majority"],
        "clr": rates["clr"],
        "cost_of_trajectories": asdict(flow.sampling_cost),
        "cost_of_claims_and_judgements": asdict(flow.own_cost),
        "seconds_of_this_attempt": round(asked.seconds - before, 3),
        **{key: value for key, value in loaded.facts().items() if key.startswith(("benchmark", "template"))},
        **protocol.facts(kind),
        "verifier_version": verifier_version(),
        "seed": options.seed,
        "weights": {result.problem: result.weights for result in repeats[0]},
    }


def _mean(repeats: Sequence[Sequence[ClrResult]], name: str, seed: int) -> dict[str, float]:
    """Over repeats of each problem, then over problems, with the bootstrap interval over problems."""
    columns = zip(*repeats, strict=True)
    return asdict(estimate([sum(getattr(each, name) for each in column) / len(column) for column in columns], seed))


def _text(report: dict) -> str:
    rates = ", ".join(
        f"{name} {100 * report[key]['mean']:.1f} [{100 * report[key]['low']:.1f}, {100 * report[key]['high']:.1f}]"
        for name, key in (("pass@1", "pass_at_1"), (f"maj@{report['trajectories']}", "majority"), ("CLR", "clr"))
    )
    own, base = report["cost_of_claims_and_judgements"], report["cost_of_trajectories"]
    return (
        f"{report['benchmark']}: {rates}\n  trajectories: {base['tokens']:,} tokens; CLR's own: "
        f"{own['calls']:,} calls, {own['prompt_tokens']:,} prompt and {own['tokens']:,} response tokens"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {NAME}", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, metavar="NAME", help="the endpoint's name of the model")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder for answers and clr.json")
    parser.add_argument("--trajectories", type=int, default=TRAJECTORIES, help="K (default: %(default)s)")
    parser.add_argument("--claims", type=int, default=CLAIMS, help="M of each (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=REPEATS, help="of the whole flow (default: %(default)s)")
    parser.add_argument("--api", choices=("completions", "chat"), default="completions", help="(default: %(default)s)")
    add_benchmark_arguments(parser)
    add_endpoint_arguments(parser)
    options = parser.parse_args(arguments)
    return run_command(NAME, lambda: _run(options), stopped="the same command goes on")


if __name__ == "__main__":
    sys.exit(main())
