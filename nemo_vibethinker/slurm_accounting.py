"""Slurm's strings: what a job was given (TRES, GRES), on which nodes, and what `sacct` says it has used.

Pure text in, values out; `accounts.py` asks sacct.
"""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

SACCT_FIELDS = ("JobIDRaw", "State", "Start", "End", "ElapsedRaw", "AllocTRES", "NodeList")
_GPU_TRES = re.compile(r"gres/gpu(?::([^=,]+))?=(\d+)")
_GRES = re.compile(r"(?:gres/)?gpu(?:[:](?P<kind>[^:=(,]*[^\d:=(,][^:=(,]*))?(?:[:=](?P<count>\d+))?(?:\([^)]*\))?")
_ELEMENT = re.compile(r"(\d+)(?:-(\d+))?")
_PLAIN = re.compile(r"[^\[\],\s]+")

Parsed = tuple[list[str] | None, str]  # what was read, and the text after it; None and the whole text where it is wrong


def gpu_count(tres: str) -> int:
    """GPUs of a TRES string such as `cpu=64,gres/gpu=8,gres/gpu:h100=8`.

    The untyped entry counts the same GPUs as the typed ones, which may be of several types.
    """
    found = [(kind, int(count)) for kind, count in _GPU_TRES.findall(tres)]
    typed = sum(count for kind, count in found if kind)
    return max([typed, *(count for kind, count in found if not kind)])


def gres_type_and_count(gres: str) -> tuple[str | None, int]:
    """Type and number of the GPUs of one GRES entry: `gpu:8`, `gpu:h100:8(S:0-1)`, `gres/gpu:h100=8`.

    (None, 0) where it names no GPU. A bare `gpu` is one.
    """
    match = _GRES.fullmatch(gres.strip())
    if match is None:
        return None, 0
    return match["kind"], int(match["count"] or 1)


def range_element(text: str) -> Parsed:
    """Numbers at the beginning of `7`, `009-011`: leading zeros are kept."""
    match = _ELEMENT.match(text)
    if match is None:
        return None, text
    first, last = match[1], match[2] or match[1]
    numbers = [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    return numbers or None, text[match.end() :] if numbers else text


def range_expression(text: str) -> Parsed:
    """Numbers of a bracket at the beginning of `[009-011,015]...`."""
    found: list[str] = []
    rest = text
    while rest.startswith("," if found else "["):
        numbers, rest = range_element(rest[1:])
        if numbers is None:
            return None, text
        found += numbers
    return (found, rest[1:]) if found and rest.startswith("]") else (None, text)


def node_expression(text: str) -> Parsed:
    """Nodes of one expression, such as `rack[1-2]-gpu[01-04]`; a name cannot go on after its last bracket."""
    parts: list[list[str]] = []
    rest = text
    while rest and not rest.startswith(","):
        plain = _PLAIN.match(rest)
        numbers, after = ([plain[0]], rest[plain.end() :]) if plain else range_expression(rest)
        if numbers is None:
            return None, text
        parts.append(numbers)
        rest = after
        if plain and len(parts) > 1 and not rest.startswith("["):
            return None, text
    return (["".join(names) for names in itertools.product(*parts)], rest) if parts else (None, text)


def node_list(text: str) -> Parsed:
    """Nodes of a whole list, such as sacct's NodeList: `gpu[001-003],login1`."""
    found: list[str] = []
    rest = text
    while True:
        nodes, rest = node_expression(rest)
        if nodes is None:
            return None, text
        found += nodes
        if not rest:
            return found, rest
        rest = rest[1:]


@dataclass(frozen=True, kw_only=True)
class JobUse:
    """What one start of a job was given, by sacct. A requeued job has one for each start."""

    job: str  # JobIDRaw: one number for each task of an array
    state: str  # without who cancelled it
    seconds: int
    gpus: int
    nodes: tuple[str, ...]

    @property
    def gpu_hours(self) -> float:
        """GPUs times hours from the start of the allocation to its end, or to now."""
        return self.gpus * self.seconds / 3600


def parse_sacct(text: str) -> list[JobUse]:
    """Job starts in the output of `sacct --parsable2 --duplicates --format=<SACCT_FIELDS>`, header line included.

    Steps (`123.batch`, `123.0`) ran inside their job's allocation and are left out.

    Raises:
        ValueError: a field of `SACCT_FIELDS` is missing, or a line has another number of fields.
    """
    lines = [line.split("|") for line in text.splitlines() if line.strip()]
    if not lines:
        return []
    header, *rows = lines
    missing = [field for field in SACCT_FIELDS if field not in header]
    if missing:
        raise ValueError(f"sacct's output has no field {missing[0]}; ask for --format={','.join(SACCT_FIELDS)}")
    torn = [row for row in rows if len(row) != len(header)]
    if torn:
        raise ValueError(f"sacct's line '{'|'.join(torn[0])}' has not the {len(header)} fields of its header")
    uses = (_use(dict(zip(header, row, strict=True))) for row in rows)
    return [use for use in uses if "." not in use.job]


def _use(fields: dict[str, str]) -> JobUse:
    return JobUse(
        job=fields["JobIDRaw"],
        state=fields["State"].partition(" ")[0],
        seconds=int(fields["ElapsedRaw"] or 0),
        gpus=gpu_count(fields["AllocTRES"]),
        nodes=tuple(node_list(fields["NodeList"])[0] or ()),
    )


def charged_hours(uses: Sequence[JobUse]) -> dict[str, float]:
    """Job -> GPU-hours of all its starts. Jobs without a GPU in their TRES are left out: it may not be tracked."""
    found: dict[str, float] = {}
    for use in uses:
        if use.gpus:
            found[use.job] = found.get(use.job, 0.0) + use.gpu_hours
    return found
