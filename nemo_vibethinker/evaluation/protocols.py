"""How each kind of benchmark is sampled, by the published protocols."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from nemo_vibethinker.config import EvalConfig, SamplingConfig
from nemo_vibethinker.config.names import BENCHMARKS

BenchmarkKind = Literal["math", "choice", "code"]
TOP_K = -1  # off
TO_THE_WINDOW = 0  # max_tokens without a limit of its own


@dataclass(frozen=True, kw_only=True)
class KindProtocol:
    """Responses per problem and their temperature."""

    samples: int
    temperature: float


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """No system prompt; one user turn; each response is right or wrong, and pass@1 is the mean over all of them.

    `max_tokens` 0: up to the model's window.
    """

    name: str
    source: str
    kinds: Mapping[BenchmarkKind, KindProtocol]
    top_p: float
    max_tokens: int
    benchmarks: tuple[str, ...]

    def sampling(self, kind: BenchmarkKind, window: int) -> SamplingConfig:
        """Sampling of this kind of benchmark, for a model of this window (tokens)."""
        longest = self.max_tokens if self.max_tokens != TO_THE_WINDOW else window
        return SamplingConfig(
            temperature=self.kinds[kind].temperature, top_p=self.top_p, max_response_length=min(longest, window)
        )

    def facts(self, kind: BenchmarkKind) -> dict[str, Any]:
        """The fields of a score's provenance that are this protocol's."""
        return {
            "protocol": self.name,
            "samples": self.kinds[kind].samples,
            "temperature": self.kinds[kind].temperature,
            "top_p": self.top_p,
            "top_k": TOP_K,
            "max_tokens": self.max_tokens,
        }


_OF_1P5B = ("aime24", "aime25", "hmmt25", "math500", "gpqa", "lcb_v5", "lcb_v6")

PROTOCOLS = {
    "paper_1p5b": Protocol(
        name="paper_1p5b",
        source="arXiv 2511.06221, section 4.1; temperature of GPQA by the published evaluation script",
        kinds={
            "math": KindProtocol(samples=64, temperature=1.0),
            "choice": KindProtocol(samples=16, temperature=1.0),
            "code": KindProtocol(samples=8, temperature=0.6),
        },
        top_p=0.95,
        max_tokens=40960,
        benchmarks=_OF_1P5B,
    ),
    "paper_3b": Protocol(
        name="paper_3b",
        source="arXiv 2606.16140, section 3.1",
        kinds={
            "math": KindProtocol(samples=64, temperature=1.0),
            "choice": KindProtocol(samples=16, temperature=1.0),
            "code": KindProtocol(samples=8, temperature=1.0),
        },
        top_p=0.95,
        max_tokens=TO_THE_WINDOW,
        benchmarks=("aime25", "aime26", "hmmt25", "brumo25", "gpqa", "lcb_v6"),
    ),
    "quick": Protocol(
        name="quick",
        source="ours: the 1.5B protocol with fewer and shorter responses, for a first look",
        kinds={
            "math": KindProtocol(samples=4, temperature=1.0),
            "choice": KindProtocol(samples=4, temperature=1.0),
            "code": KindProtocol(samples=2, temperature=0.6),
        },
        top_p=0.95,
        max_tokens=16384,
        benchmarks=("aime24", "aime25", "math500"),
    ),
}


def protocol_of(settings: EvalConfig) -> Protocol:
    """The protocol that is named, with the settings' own number of samples and of tokens."""
    protocol = PROTOCOLS[settings.protocol]
    if settings.samples is not None:
        kinds = {kind: replace(each, samples=settings.samples) for kind, each in protocol.kinds.items()}
        protocol = replace(protocol, kinds=kinds)
    return protocol if settings.max_tokens is None else replace(protocol, max_tokens=settings.max_tokens)


def chosen_benchmarks(settings: EvalConfig) -> tuple[str, ...]:
    """The benchmarks to score, in the order of the schema; none for a run that names none."""
    names = settings.benchmarks or (PROTOCOLS[settings.protocol].benchmarks if settings.model else ())
    return tuple(name for name in BENCHMARKS if name in names)
