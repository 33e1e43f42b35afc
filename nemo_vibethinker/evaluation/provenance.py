"""What a benchmark score rests on: the conditions that published numbers often leave out."""

import functools
import hashlib
import importlib.metadata
from dataclasses import dataclass
from pathlib import Path

import nemo_vibethinker


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Two scores compare where these agree; `shard`, `seed` and `code_version` aside.

    Hashes are SHA-256 (hex). `template_hash` is of the whole prompt around a problem, chat markup included;
    `benchmark_hash` of all prompts, answers and tests in order. `max_tokens` 0 means up to the model's window.
    `window` 0: not known here (a served model). `shuffle_seed` is the seed of the order of the options of a choice
    benchmark, None where there are none.
    """

    protocol: str
    samples: int  # per problem
    temperature: float
    top_p: float
    top_k: int  # -1: off
    max_tokens: int
    system_prompt: str
    template_hash: str
    benchmark_source: str
    benchmark_hash: str
    benchmark_problems: int  # in the whole set, all shards together
    expected_problems: int  # of the published set
    date_window: str  # "2025-02-01/" and the like where problems are chosen by date, else ""
    shuffle_seed: int | None
    model: str
    model_hash: str
    window: int
    engine: str
    engine_version: str
    verifier_version: str
    code_version: str
    seed: int
    shard: str


@functools.cache
def verifier_version() -> str:
    """Names the verifier's code, not only its release: two equal texts grade alike."""
    folder = Path(nemo_vibethinker.__file__).parent / "reward"
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.py")):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    libraries = f"math-verify {importlib.metadata.version('math-verify')}"
    return f"nemo_vibethinker {nemo_vibethinker.__version__} reward {digest.hexdigest()[:12]}, {libraries}"
