"""Score a served model on published benchmarks, through an OpenAI-compatible endpoint (vLLM, SGLang, hosted).

    vllm serve runs/mine/hf --served-model-name mine --generation-config vllm
    python -m nemo_vibethinker.evaluation.endpoint --base-url http://localhost:8000/v1 --model mine \\
        --served-by "vllm 0.32.0" --protocol paper_1p5b --benchmarks aime24 math500 --out evaluated

Every response is asked for on its own, with a seed of its own, and kept at once: stopped or killed, the same command
goes on. Without `--generation-config vllm`, vLLM adds top-k and penalties of a model's own generation_config.json.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from nemo_vibethinker.command import run_command
from nemo_vibethinker.config import EvalConfig, RewardConfig, SamplingConfig
from nemo_vibethinker.config.names import BENCHMARKS, PROTOCOLS
from nemo_vibethinker.data.records import Record
from nemo_vibethinker.data.tokenizer import prompt_text
from nemo_vibethinker.evaluation.benchmark_scores import model_folder, score_folder
from nemo_vibethinker.evaluation.benchmarks import LoadedBenchmark, load_benchmark
from nemo_vibethinker.evaluation.folders import write_scores
from nemo_vibethinker.evaluation.protocols import Protocol, chosen_benchmarks, protocol_of
from nemo_vibethinker.evaluation.provenance import Provenance, verifier_version
from nemo_vibethinker.evaluation.samples import SampleFolder, SampleRow, Unit, missing_units
from nemo_vibethinker.evaluation.scores import Score
from nemo_vibethinker.evaluation.seeds import request_seed
from nemo_vibethinker.progress import Progress
from nemo_vibethinker.reward.grader import Grader
from nemo_vibethinker.reward.math import MathVerifier
from nemo_vibethinker.run_folder import code_version, hash_path
from nemo_vibethinker.spectrum.endpoint import Answer, Endpoint, Failure, Request
from nemo_vibethinker.spectrum.endpoint_arguments import (
    add_endpoint_arguments,
    endpoint_of,
    print_estimate,
    spending_of,
)
from nemo_vibethinker.spectrum.resume_file import ResumeFile
from nemo_vibethinker.spectrum.spending import Spending, Usage

NAME = "nemo_vibethinker.evaluation.endpoint"


def add_benchmark_arguments(parser: argparse.ArgumentParser) -> None:
    """Which benchmarks, by which protocol."""
    group = parser.add_argument_group("benchmarks")
    group.add_argument("--benchmarks", nargs="+", choices=BENCHMARKS, metavar="NAME", help="default: the protocol's")
    group.add_argument("--protocol", choices=PROTOCOLS, default="paper_1p5b", help="(default: %(default)s)")
    group.add_argument(
        "--path", action="append", default=[], metavar="NAME=FILE", help="of a benchmark; else the hub's"
    )
    group.add_argument("--samples", type=int, help="per problem (default: the protocol's)")
    group.add_argument("--max-tokens", type=int, help="per response (default: the protocol's)")
    group.add_argument("--problems", type=int, help="the first so many of each benchmark (default: all)")
    group.add_argument("--window", type=int, default=131072, help="tokens of the served model (default: %(default)s)")
    group.add_argument("--shuffle-seed", type=int, default=0, help="order of options (default: %(default)s)")
    group.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    group.add_argument("--workers", type=int, default=2, help="grading processes (default: %(default)s)")


def settings_of(options: argparse.Namespace) -> EvalConfig:
    """The flags as the schema has them. ValueError for a --path that names no benchmark."""
    settings = EvalConfig(
        model=options.model,
        protocol=options.protocol,
        benchmarks=list(options.benchmarks or ()),
        samples=options.samples,
        max_tokens=options.max_tokens,
        problems=options.problems,
        shuffle_seed=options.shuffle_seed,
    )
    for given in options.path:
        name, _, path = given.partition("=")
        if name not in BENCHMARKS or not path:
            raise ValueError(f"--path {given}: give NAME=FILE with one of {', '.join(BENCHMARKS)}")
        getattr(settings, name).path = path
    return settings


def load_chosen(settings: EvalConfig) -> list[LoadedBenchmark]:
    """The chosen benchmarks; where one differs from the published set, standard error says so."""
    loaded = []
    for name in chosen_benchmarks(settings):
        part = load_benchmark(name, settings.path(name), settings.shuffle_seed).part(settings.problems, (0, 1))
        for note in part.notes:
            print(note, file=sys.stderr)
        loaded.append(part)
    return loaded


def served_model_hash(endpoint: Endpoint) -> str:
    """SHA-256 of the served folder where it lies on this machine, else ""."""
    folder = Path(endpoint.served_from() or "")
    return hash_path(folder) if folder.name and folder.is_dir() else ""


def unit_requests(
    units: Sequence[Unit], benchmark: str, sampling: SamplingConfig, seed: int, is_chat: bool
) -> list[Request]:
    """One request a response."""
    return [
        Request(
            text=record.prompt if is_chat else prompt_text(record.prompt, ""),
            version=f"{benchmark}/{record.id}#{sample}",
            max_tokens=sampling.max_response_length,
            is_chat=is_chat,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=request_seed(seed, benchmark, record.id, sample),
        )
        for record, sample in units
    ]


class _Work:
    """Scoring one endpoint's model."""

    def __init__(self, options: argparse.Namespace, endpoint: Endpoint, grader: Grader, spending: Spending) -> None:
        self.options, self.endpoint, self.grader, self.spending = options, endpoint, grader, spending
        self.protocol: Protocol = protocol_of(settings_of(options))
        self.model_hash = served_model_hash(endpoint)

    def complete(self, loaded: LoadedBenchmark) -> SampleFolder:
        """Ask for the responses that are missing."""
        name, kind = loaded.benchmark.name, loaded.benchmark.kind
        store = model_folder(self.options.out, self.options.model, name)
        store.begin(loaded.records, self._provenance(loaded))
        samples = self.protocol.kinds[kind].samples
        units = missing_units(loaded.records, samples, {(row.id, row.sample) for row in store.rows()})
        sampling = self.protocol.sampling(kind, self.options.window)
        requests = unit_requests(units, name, sampling, self.options.seed, self.options.api == "chat")
        print_estimate(name, requests, self.spending)
        if units and not self.options.plan:
            self._ask(store, dict(zip(requests, units, strict=True)), name)
        return store

    def _ask(self, store: SampleFolder, units: dict[Request, Unit], name: str) -> None:
        progress = Progress(name, len(units), unit="responses")
        failures: list[Failure] = []

        def handle(request: Request, result: Answer | Failure) -> None:
            if isinstance(result, Failure):
                failures.append(result)
            else:
                record, sample = units[request]
                store.append([self._row(record, sample, result)])
            progress.advance(note=self.spending)

        self.endpoint.answer_all(list(units), handle, self.spending)
        if failures:
            raise RuntimeError(
                f"{name}: {len(failures):,} requests failed, the same command asks again; {failures[0].reason}"
            )

    def _row(self, record: Record, sample: int, answer: Answer) -> SampleRow:
        (verdict,) = self.grader.grade([record], [answer.texts[0]])
        return SampleRow(
            id=record.id,
            sample=sample,
            response=answer.texts[0],
            tokens=answer.usage.completion_tokens,
            finish_reason=answer.finish_reasons[0],
            verdict=verdict.kind,
            reason=verdict.reason,
        )

    def _provenance(self, loaded: LoadedBenchmark) -> Provenance:
        facts = loaded.facts()
        if self.options.api == "chat":
            facts["template_hash"] = f"{facts['template_hash']} in the server's own chat template"
        return Provenance(
            **facts,
            **self.protocol.facts(loaded.benchmark.kind),
            model=self.options.model,
            model_hash=self.model_hash,
            window=self.options.window,
            engine=f"endpoint ({self.options.api})",
            engine_version=self.options.served_by,
            verifier_version=verifier_version(),
            code_version=code_version()["commit"],
            seed=self.options.seed,
            shard="0/1",
        )


def build_parser() -> argparse.ArgumentParser:
    """The flags; `--help` teaches them."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {NAME}", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, metavar="NAME", help="the endpoint's name of the model")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="evaluation folder; goes on in it")
    parser.add_argument("--served-by", default="unknown", metavar="TEXT", help="engine and version, for the record")
    parser.add_argument(
        "--api",
        choices=("completions", "chat"),
        default="completions",
        help="completions: the pipeline's own ChatML without a system prompt; chat: the server's template",
    )
    add_benchmark_arguments(parser)
    add_endpoint_arguments(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code."""
    options = build_parser().parse_args(arguments)
    return run_command(NAME, lambda: _run(options), stopped="the same command goes on")


def _run(options: argparse.Namespace) -> None:
    if not options.base_url:
        raise ValueError("give --base-url, or use `python launcher/run.py recipe=evaluate model=...` for a folder")
    benchmarks, endpoint = load_chosen(settings_of(options)), endpoint_of(options)
    options.out.mkdir(parents=True, exist_ok=True)
    with (
        ResumeFile(options.out / ".lock"),
        Grader(RewardConfig(workers=options.workers), options.workers) as grader,
        MathVerifier(boxed_only=True) as verifier,
    ):
        work = _Work(options, endpoint, grader, spending_of(options, Usage()))
        stores = [work.complete(loaded) for loaded in benchmarks]
        if options.plan:
            return
        scores: list[Score] = [score_folder(store, verifier) for store in stores]
        write_scores(options.out, scores)
    print((options.out / "scores.txt").read_text().rstrip())


if __name__ == "__main__":
    sys.exit(main())
