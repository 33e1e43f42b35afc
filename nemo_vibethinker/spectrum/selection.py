"""Domain-aware probing: its table and the specialist per domain (VibeThinker-1.5B, arXiv 2511.06221, section 3.3)."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise, product
from typing import Self

from nemo_vibethinker.spectrum.pass_at_k import Estimate


@dataclass(frozen=True)
class ProbeTable:
    """Pass@K of every checkpoint of one SFT run on every domain's probing set.

    `cells[domain][step][k]` is the estimate; `steps` are the checkpoints' training steps, ascending.
    Raises ValueError if the steps do not ascend or a cell is missing.
    """

    domains: tuple[str, ...]
    steps: tuple[int, ...]
    ks: tuple[int, ...]
    cells: Mapping[str, Mapping[int, Mapping[int, Estimate]]]

    def __post_init__(self) -> None:
        if not (self.domains and self.steps and self.ks):
            raise ValueError("a probe table needs at least one domain, one checkpoint step and one k")
        if any(earlier >= later for earlier, later in pairwise(self.steps)):
            raise ValueError(f"checkpoint steps of a probe table must ascend, got {list(self.steps)}")
        for domain, step, k in product(self.domains, self.steps, self.ks):
            if k not in self.cells.get(domain, {}).get(step, {}):
                raise ValueError(f"probe table has no cell for domain {domain!r}, step {step}, k={k}")

    def to_json(self) -> str:
        """The table as JSON text; `from_json` gives back an equal table."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Reads what `to_json` wrote. Raises ValueError for text that is not JSON or an incomplete table."""
        raw = json.loads(text)
        cells = {
            domain: {
                int(step): {int(k): Estimate(**estimate) for k, estimate in by_k.items()}
                for step, by_k in by_step.items()
            }
            for domain, by_step in raw["cells"].items()
        }
        return cls(tuple(raw["domains"]), tuple(raw["steps"]), tuple(raw["ks"]), cells)

    def format_text(self, k: int) -> str:
        """Pass@k as aligned text, one row per checkpoint, one column per domain, the chosen cells marked with *."""
        chosen = select_specialists(self, k)
        rows = [[f"pass@{k}", *self.domains]]
        for step in self.steps:
            cells = [_format_cell(self.cells[domain][step][k], step == chosen[domain]) for domain in self.domains]
            rows.append([f"step {step}", *cells])
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) for row in rows]
        return "\n".join(line.rstrip() for line in lines)


def select_specialists(table: ProbeTable, k: int) -> dict[str, int]:
    """The checkpoint step with the highest Pass@k per domain; ties go to the earlier checkpoint.

    Two domains may choose the same step. Raises ValueError if the table was not probed at `k`.
    """
    if k not in table.ks:
        raise ValueError(f"the probe table has no k={k}; it holds k in {list(table.ks)}")
    # max() keeps the first of equal items, and steps ascend.
    return {domain: max(table.steps, key=lambda step: table.cells[domain][step][k].mean) for domain in table.domains}


def _format_cell(estimate: Estimate, is_chosen: bool) -> str:
    return f"{estimate.mean:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]{'*' if is_chosen else ''}"
