"""Draw a whole world: SFT records, RL pools, probing sets and an evaluation set that share no 10-gram."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, fields

from nemo_vibethinker.data.decontaminate import ngrams
from nemo_vibethinker.data.records import MATH_DOMAINS, Record
from nemo_vibethinker.data.world import algebra, calculus, code, geometry, statistics
from nemo_vibethinker.data.world.problem import Family, Problem

FAMILIES: tuple[Family, ...] = (
    *algebra.FAMILIES,
    *geometry.FAMILIES,
    *calculus.FAMILIES,
    *statistics.FAMILIES,
    *code.FAMILIES,
)
LEVELS = (1, 2, 3)
MAX_DRAWS = 200  # draws without a new instance after which a (family, level) counts as used up


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldSizes:
    """Numbers of problems per mathematical domain (four) and of code problems, for each set."""

    sft_problems_per_domain: int
    rl_per_domain: int
    probe_per_domain: int
    evaluation_per_domain: int
    sft_code_problems: int
    rl_code: int
    probe_code: int
    evaluation_code: int

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) < 0:
                raise ValueError(f"world size {field.name} must not be negative, got {getattr(self, field.name)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """The generated sets. `sft` has one record per (problem, strategy), the others one per problem without response."""

    sft: list[Record]
    rl_math: list[Record]
    rl_code: list[Record]
    probe: list[Record]
    evaluation: list[Record]


@dataclass(frozen=True, slots=True)
class _Drawn:
    family: str
    level: int
    problem: Problem


class _Drawer:
    """Draws new problems round robin over (family, level); no two problems of one drawer share a key or a 10-gram."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.taken: set[object] = set()

    def stream(self, domain: str) -> Iterator[_Drawn]:
        """Problems of one domain until every family and level is used up."""
        rng = random.Random(f"{self.seed}/{domain}")
        cells = [(family, level) for level in LEVELS for family in FAMILIES if family.domain == domain]
        while cells:
            for cell in list(cells):
                problem = self._draw(*cell, rng)
                if problem is None:
                    cells.remove(cell)
                else:
                    yield _Drawn(cell[0].name, cell[1], problem)

    def _draw(self, family: Family, level: int, rng: random.Random) -> Problem | None:
        for _ in range(MAX_DRAWS):
            problem = family.make(rng, level)
            marks = {(family.name, level, problem.key), *ngrams(problem.prompt)}
            if self.taken.isdisjoint(marks):
                self.taken |= marks
                return problem
        return None


def generate_world(seed: int, sizes: WorldSizes) -> World:
    """Generate the world of `seed`, the same on every machine.

    Every set is balanced over families and levels 1 to 3. No problem, and no 10-gram of a prompt, occurs twice in the
    whole world. ValueError if a domain cannot supply as many distinct problems as `sizes` asks for.
    """
    drawer = _Drawer(seed)
    world = World(sft=[], rl_math=[], rl_code=[], probe=[], evaluation=[])
    for domain in MATH_DOMAINS:
        counts = (sizes.evaluation_per_domain, sizes.probe_per_domain, sizes.rl_per_domain)
        _fill(drawer, domain, (*counts, sizes.sft_problems_per_domain), world, world.rl_math)
    counts = (sizes.evaluation_code, sizes.probe_code, sizes.rl_code, sizes.sft_code_problems)
    _fill(drawer, "code", counts, world, world.rl_code)
    return world


def _fill(drawer: _Drawer, domain: str, counts: tuple[int, ...], world: World, rl: list[Record]) -> None:
    stream, number = drawer.stream(domain), 0
    for records, count in zip((world.evaluation, world.probe, rl, world.sft), counts, strict=True):
        for _ in range(count):
            drawn = next(stream, None)
            if drawn is None:
                raise ValueError(
                    f"{domain} has only {number} distinct problems, {sum(counts)} asked; lower the world sizes"
                )
            number += 1
            records.extend(_records(domain, number, drawn, with_solutions=records is world.sft))


def _records(domain: str, number: int, drawn: _Drawn, *, with_solutions: bool) -> list[Record]:
    problem, identity = drawn.problem, f"{domain}-{number:05d}-{drawn.family}-{drawn.level}"
    solutions = problem.solutions if with_solutions else {"": ""}
    return [
        Record(
            id=f"{identity}/{strategy}" if strategy else identity,
            domain=domain,
            prompt=problem.prompt,
            response=response,
            answer=problem.answer,
            tests=problem.tests,
            difficulty=drawn.level,
            strategy=strategy,
            source=f"world/{drawn.family}",
        )
        for strategy, response in solutions.items()
    ]
