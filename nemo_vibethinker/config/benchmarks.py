"""Published benchmarks: which, of which model, by which protocol."""

from dataclasses import dataclass, field


@dataclass(kw_only=True)
class BenchmarkConfig:
    """Where a benchmark's problems are."""

    path: str | None = None  # file, folder, or hub name owner/name[:config[:split]]; None: the published set of the hub


@dataclass(kw_only=True)
class EvalConfig:
    """Published benchmarks by a published protocol (VibeThinker-1.5B report, section 4.1).

    None in place of a number takes the protocol's.
    """

    model: str | None = None  # Hugging Face folder or hub name, a run folder[:MODEL], or a checkpoint folder of a run
    protocol: str = "paper_1p5b"  # paper_1p5b | paper_3b | quick
    benchmarks: list[str] = field(default_factory=list)  # empty: the protocol's, where eval.model is set; else none
    every_model: bool = False  # of a run: all its models in place of the last one
    samples: int | None = None  # per problem
    max_tokens: int | None = None  # per response; the model's window ends it too
    problems: int | None = None  # the first so many of each benchmark; None: all
    batch: int = 256  # responses sampled together; a kill loses at most these
    shard: str = "0/1"  # "i/n": every n-th problem from the i-th on; shards merge to the score of the whole
    shuffle_seed: int = 0  # order of the options of multiple-choice problems
    aime24: BenchmarkConfig = field(default_factory=BenchmarkConfig)
    aime25: BenchmarkConfig = field(default_factory=BenchmarkConfig)
    aime26: BenchmarkConfig = field(default_factory=BenchmarkConfig)
    hmmt25: BenchmarkConfig = field(default_factory=BenchmarkConfig)
    brumo25: BenchmarkConfig = field(default_factory=BenchmarkConfig)
    math500: BenchmarkConfig = field(default_factory=BenchmarkConfig)
    gpqa: BenchmarkConfig = field(default_factory=BenchmarkConfig)
    lcb_v5: BenchmarkConfig = field(default_factory=BenchmarkConfig)
    lcb_v6: BenchmarkConfig = field(default_factory=BenchmarkConfig)
    lcb_v6_454: BenchmarkConfig = field(default_factory=BenchmarkConfig)

    def path(self, benchmark: str) -> str | None:
        """The path that is set for a benchmark."""
        section: BenchmarkConfig = getattr(self, benchmark)
        return section.path

    @property
    def shard_index(self) -> tuple[int, int]:
        """(i, n) of `shard`."""
        index, _, count = self.shard.partition("/")
        return int(index), int(count)
