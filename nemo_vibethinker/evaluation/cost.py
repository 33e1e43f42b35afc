"""How much a benchmark evaluation generates at most, before anything is read or run."""

from dataclasses import dataclass

from nemo_vibethinker.config import Config
from nemo_vibethinker.evaluation.benchmarks import BENCHMARKS
from nemo_vibethinker.evaluation.protocols import chosen_benchmarks, protocol_of


@dataclass(frozen=True)
class BenchmarkBound:
    """One benchmark of one model: responses, and the most tokens each can have."""

    name: str
    problems: int
    samples: int
    max_tokens: int

    @property
    def tokens(self) -> int:
        """At most, of all responses."""
        return self.problems * self.samples * self.max_tokens


def benchmark_bounds(config: Config) -> list[BenchmarkBound]:
    """The benchmarks that the configuration asks for, with the published numbers of problems; this shard's part."""
    settings, protocol = config.eval, protocol_of(config.eval)
    index, count = settings.shard_index
    bounds = []
    for name in chosen_benchmarks(settings):
        benchmark = BENCHMARKS[name]
        problems = min(benchmark.problems, settings.problems or benchmark.problems)
        longest = protocol.sampling(benchmark.kind, config.scale.model.max_position_embeddings).max_response_length
        mine = len(range(index, problems, count))
        bounds.append(BenchmarkBound(name, mine, protocol.kinds[benchmark.kind].samples, longest))
    return bounds
