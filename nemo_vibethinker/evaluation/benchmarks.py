"""The published benchmarks: where they are, how their problems become prompts, what identifies them."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nemo_vibethinker.data.readers import Dataset
from nemo_vibethinker.data.records import Record, record_to_json
from nemo_vibethinker.data.tokenizer import prompt_text, user_turn
from nemo_vibethinker.evaluation.gpqa import read_gpqa
from nemo_vibethinker.evaluation.livecodebench import code_turn, read_livecodebench
from nemo_vibethinker.evaluation.protocols import BenchmarkKind

INSTRUCTION = (
    r"Let's think step by step and output the final answer within \boxed{}."  # of the authors' evaluation code
)


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A published set: its hub name, and how many problems it has there.

    `since` and `release` are LiveCodeBench's: problems from this date (YYYY-MM-DD) on, of the files up to this release.
    """

    name: str
    title: str
    kind: BenchmarkKind
    hub: str
    problems: int
    since: str = ""
    release: int = 0


_CODE = "livecodebench/code_generation_lite"
_ALL = (
    Benchmark(name="aime24", title="AIME24", kind="math", hub="HuggingFaceH4/aime_2024", problems=30),
    Benchmark(name="aime25", title="AIME25", kind="math", hub="MathArena/aime_2025", problems=30),
    Benchmark(name="aime26", title="AIME26", kind="math", hub="MathArena/aime_2026", problems=30),
    Benchmark(name="hmmt25", title="HMMT25", kind="math", hub="MathArena/hmmt_feb_2025", problems=30),
    Benchmark(name="brumo25", title="BruMO25", kind="math", hub="MathArena/brumo_2025", problems=30),
    Benchmark(name="math500", title="MATH-500", kind="math", hub="HuggingFaceH4/MATH-500::test", problems=500),
    Benchmark(name="gpqa", title="GPQA-Diamond", kind="choice", hub="Idavidrein/gpqa:gpqa_diamond", problems=198),
    # Release 6 added 44 problems of January 2025, so dates alone do not tell the 279 of release 5.
    Benchmark(
        name="lcb_v5", title="LiveCodeBench v5", kind="code", hub=_CODE, problems=279, since="2024-08-01", release=5
    ),
    # The report's definition (section 4.1), and the other one in use.
    Benchmark(
        name="lcb_v6", title="LiveCodeBench v6", kind="code", hub=_CODE, problems=131, since="2025-02-01", release=6
    ),
    Benchmark(
        name="lcb_v6_454",
        title="LiveCodeBench v6 (454 problems)",
        kind="code",
        hub=_CODE,
        problems=454,
        since="2024-08-01",
        release=6,
    ),
)
BENCHMARKS = {benchmark.name: benchmark for benchmark in _ALL}


@dataclass(frozen=True, kw_only=True)
class LoadedBenchmark:
    """A benchmark's problems in their order. A record's `prompt` is the whole user turn, instruction included.

    `sha256` is of all problems, their answers and tests; `template_sha256` of what surrounds a problem, chat markup
    included. `total` counts the whole set, of which `records` may be a shard.
    """

    benchmark: Benchmark
    source: str
    records: tuple[Record, ...]
    total: int
    sha256: str
    template_sha256: str
    shuffle_seed: int | None
    notes: tuple[str, ...] = field(default=())

    def facts(self) -> dict[str, Any]:
        """The fields of a score's provenance that are this benchmark's."""
        return {
            "system_prompt": "",
            "template_hash": self.template_sha256,
            "benchmark_source": self.source,
            "benchmark_hash": self.sha256,
            "benchmark_problems": self.total,
            "expected_problems": self.benchmark.problems,
            "date_window": f"{self.benchmark.since}/" if self.benchmark.since else "",
            "shuffle_seed": self.shuffle_seed,
        }

    def part(self, problems: int | None, shard: tuple[int, int]) -> "LoadedBenchmark":
        """The first `problems` of them (None: all), and of these every n-th from the i-th on, of shard (i, n)."""
        index, count = shard
        chosen = self.records[:problems]
        return replace(self, records=chosen[index::count], total=len(chosen))


def load_benchmark(name: str, path: str | None = None, shuffle_seed: int = 0) -> LoadedBenchmark:
    """Read a benchmark from a file, a folder or a hub name; from its published place where `path` is None.

    Raises:
        ValueError: it cannot be read, or a row of it cannot be used.
    """
    benchmark = BENCHMARKS[name]
    source = path or benchmark.hub
    records = tuple(_READERS[benchmark.kind](benchmark, source, shuffle_seed))
    if not records:
        raise ValueError(
            f"benchmark {name}: {source} has no problem{f' since {benchmark.since}' * bool(benchmark.since)}"
        )
    ids = [record.id for record in records]
    if twice := {identity for identity in ids if ids.count(identity) > 1}:
        raise ValueError(f"benchmark {name}: {source} has the id {min(twice)} twice")
    expected = f"{benchmark.title} is published with {benchmark.problems} problems, {source} has {len(records)}"
    return LoadedBenchmark(
        benchmark=benchmark,
        source=str(Path(source).resolve()) if Path(source).exists() else source,
        records=records,
        total=len(records),
        sha256=_sha256("\n".join(map(record_to_json, records))),
        template_sha256=_sha256(prompt_text(_TEMPLATES[benchmark.kind], "")),
        shuffle_seed=shuffle_seed if benchmark.kind == "choice" else None,
        notes=() if len(records) == benchmark.problems else (expected,),
    )


def _read_math(benchmark: Benchmark, source: str, _: int) -> Iterator[Record]:
    for row in Dataset(source).rows("rl"):
        if row.record is None:
            raise ValueError(f"benchmark {benchmark.name}: {source}, row {row.line}: {row.reason}")
        turn = user_turn(row.record.prompt, INSTRUCTION)
        yield Record(id=row.id, domain="math", prompt=turn, answer=row.record.answer)


def _read_choice(benchmark: Benchmark, source: str, seed: int) -> Iterator[Record]:
    for record in read_gpqa(source, seed):
        yield replace(record, prompt=user_turn(record.prompt, INSTRUCTION))


def _read_code(benchmark: Benchmark, source: str, _: int) -> Iterator[Record]:
    return read_livecodebench(source, benchmark.since, benchmark.release)


_READERS: dict[BenchmarkKind, Callable[[Benchmark, str, int], Iterator[Record]]] = {
    "math": _read_math,
    "choice": _read_choice,
    "code": _read_code,
}
_TEMPLATES: dict[BenchmarkKind, str] = {
    "math": user_turn("{problem}", INSTRUCTION),
    "choice": user_turn("{question}\n\nA. {option}\nB. {option}\nC. {option}\nD. {option}\n", INSTRUCTION),
    "code": json.dumps([code_turn("{question}", ""), code_turn("{question}", "{starter code}")]),
}


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
