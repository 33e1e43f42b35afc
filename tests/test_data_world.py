import random
import re
import subprocess
import sys
from collections import Counter, defaultdict
from itertools import combinations

import pytest

from nemo_vibethinker.data.boxed import last_boxed
from nemo_vibethinker.data.decontaminate import find_overlaps, ngrams
from nemo_vibethinker.data.records import MATH_DOMAINS, Record
from nemo_vibethinker.data.world import FAMILIES, World, WorldSizes, generate, generate_world
from nemo_vibethinker.data.world.problem import add, div, mul, poly, sub

SIZES = WorldSizes(
    sft_problems_per_domain=1000,
    rl_per_domain=300,
    probe_per_domain=48,
    evaluation_per_domain=96,
    sft_code_problems=1000,
    rl_code=300,
    probe_code=48,
    evaluation_code=96,
)
EQUALITIES = re.compile(r"(?<![\w.^*/+-])[\d.]+(?:[-+*/][\d.]+)*(?:=[\d.]+(?:[-+*/][\d.]+)*)+(?![\w(*/+-])")


@pytest.fixture(scope="module")
def world() -> World:
    return generate_world(0, SIZES)


def problem_sets(world: World) -> dict[str, list[Record]]:
    return {"sft": world.sft, "rl": world.rl_math + world.rl_code, "probe": world.probe, "evaluation": world.evaluation}


def run_python(program: str) -> str:
    result = subprocess.run([sys.executable, "-I", "-"], input=program, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


def code_of(response: str) -> str:
    return response.split("```python\n")[1].removesuffix("```")


@pytest.mark.parametrize(
    ("chain", "text"),
    [
        (add(47, 38), "47+38=77+8=85"),
        (add(4, 5), "4+5=9"),
        (add(247, 130), "247+130=347+30=377"),
        (add(12, 0), "12+0=12"),
        (add(3, 0), "3+0=3"),
        (sub(85, 38), "85-38=55-8=47"),
        (sub(20, 20), "20-20=0"),
        (mul(23, 4), "23*4=80+12=92"),
        (mul(4, 20), "4*20=80"),
        (div(92, 4), "92/4=20+3=23"),
        (div(15, 3), "15/3=5"),
        (poly((1, "x^2"), (-3, "x"), (0, ""), (2, "")), "x^2 - 3x + 2"),
        (poly((-1, "x"), (1, "")), "-x + 1"),
    ],
)
def test_worked_arithmetic(chain: str, text: str) -> None:
    assert chain == text


def test_counts_and_ids(world: World) -> None:
    problems = {record.id.split("/")[0]: record for record in world.sft}
    assert Counter(record.domain for record in problems.values()) == dict.fromkeys((*MATH_DOMAINS, "code"), 1000)
    assert Counter(record.domain for record in world.rl_math) == dict.fromkeys(MATH_DOMAINS, 300)
    assert len(world.rl_code) == 300
    assert Counter(record.domain for record in world.probe) == dict.fromkeys((*MATH_DOMAINS, "code"), 48)
    assert Counter(record.domain for record in world.evaluation) == dict.fromkeys((*MATH_DOMAINS, "code"), 96)
    ids = [record.id for records in problem_sets(world).values() for record in records]
    assert len(set(ids)) == len(ids)


def test_same_seed_same_world_other_seed_other_world(world: World) -> None:
    assert generate_world(0, SIZES) == world
    other = generate_world(1, SIZES)
    assert {r.prompt for r in other.evaluation} != {r.prompt for r in world.evaluation}


def test_every_set_is_balanced_over_families_and_levels(world: World) -> None:
    for records in (world.rl_math, world.rl_code, world.evaluation):
        cells = Counter((record.source, record.difficulty) for record in records)
        for domain in {record.domain for record in records}:
            names = [f"world/{family.name}" for family in FAMILIES if family.domain == domain]
            counts = [cells[name, level] for name in names for level in (1, 2, 3)]
            assert max(counts) - min(counts) <= 1, (domain, cells)


def test_no_ten_gram_is_shared_between_sets(world: World) -> None:
    for (_, left), (_, right) in combinations(problem_sets(world).items(), 2):
        assert find_overlaps(left, right) == []


def test_no_ten_gram_is_free_of_numbers(world: World) -> None:
    for record in world.sft:
        for gram in ngrams(record.prompt):
            assert len(gram.split()) < 10 or re.search(r"\d", gram), gram


def test_prompts_are_short(world: World) -> None:
    for records in problem_sets(world).values():
        assert max(len(record.prompt.split()) for record in records) <= 16


def test_every_response_boxes_its_answer(world: World) -> None:
    maths = [record for record in world.sft if record.domain != "code"]
    assert len(maths) >= 8_000
    for record in maths:
        assert last_boxed(record.response) == record.answer, record
        assert re.fullmatch(r"\d{1,3}(\.5)?", record.answer), record
        assert not record.tests


def test_every_written_equality_is_true(world: World) -> None:
    checked = 0
    for record in world.sft:
        for chain in EQUALITIES.findall(record.response) if record.domain != "code" else []:
            values = {eval(side) for side in chain.split("=")}
            assert max(values) - min(values) < 1e-9, (chain, record)
            checked += 1
    assert checked > 20_000


def test_strategies_differ_and_every_family_has_two(world: World) -> None:
    responses: dict[str, dict[str, str]] = defaultdict(dict)
    for record in world.sft:
        responses[record.id.split("/")[0]][record.strategy] = record.response
    for identity, by_strategy in responses.items():
        assert len(by_strategy) == 2, identity
        assert len(set(by_strategy.values())) == 2, (identity, by_strategy)
    families = Counter(family.domain for family in FAMILIES)
    assert all(families[domain] >= 4 for domain in MATH_DOMAINS)
    assert families["code"] >= 5


def test_difficulty_grows_with_the_length_of_the_solution(world: World) -> None:
    for family in FAMILIES:
        sizes = {level: [] for level in (1, 2, 3)}
        for record in world.sft:
            if record.source == f"world/{family.name}":
                sizes[record.difficulty].append(len(record.prompt) + len(record.response))
        means = [sum(sizes[level]) / len(sizes[level]) for level in (1, 2, 3)]
        assert means[0] < means[2], (family.name, means)


def test_every_program_passes_its_own_tests(world: World) -> None:
    programs = [f"{code_of(r.response)}\n" + "\n".join(r.tests) for r in world.sft if r.domain == "code"]
    assert len(programs) == 2_000
    assert all(len(record.tests) in (3, 4) for record in world.rl_code)
    output = run_python(f"for p in {programs!r}:\n    exec(p, {{}})\nprint('ran', {len(programs)})")
    assert output.split() == ["ran", "2000"]


def test_tests_tell_the_parameters_apart(world: World) -> None:
    """A program that passes the tests of another task must be the same function of every integer tried."""
    groups: dict[tuple[str, int], list[Record]] = defaultdict(list)
    for record in world.sft:
        if record.domain == "code":
            groups[record.source, record.difficulty].append(record)
    rng = random.Random(0)
    samples = [rng.sample(group, 2) for group in groups.values() for _ in range(100)]
    pairs = [
        (code_of(left.response), code_of(right.response), "\n".join(right.tests))
        for left, right in samples
        if left.prompt != right.prompt
    ]
    program = f"""
for left, right, tests in {pairs!r}:
    wrong, reference = {{}}, {{}}
    exec(left, wrong)
    exec(right, reference)
    try:
        exec(tests, wrong)
    except Exception:
        continue
    if any(wrong["f"](x) != reference["f"](x) for x in range(-300, 300)):
        print(left, right, tests)
"""
    assert len(pairs) > 1_400
    assert run_python(program) == ""


def test_asking_for_too_much_names_the_domain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "FAMILIES", [family for family in FAMILIES if family.name == "list_total"])
    sizes = WorldSizes(
        sft_problems_per_domain=0,
        rl_per_domain=0,
        probe_per_domain=0,
        evaluation_per_domain=0,
        sft_code_problems=20_000,
        rl_code=0,
        probe_code=0,
        evaluation_code=0,
    )
    with pytest.raises(ValueError, match=r"code has only \d+ distinct problems, 20000 asked"):
        generate_world(0, sizes)


def test_negative_size_is_named() -> None:
    with pytest.raises(ValueError, match="probe_code must not be negative"):
        WorldSizes(
            sft_problems_per_domain=1,
            rl_per_domain=1,
            probe_per_domain=1,
            evaluation_per_domain=1,
            sft_code_problems=1,
            rl_code=1,
            probe_code=-1,
            evaluation_code=1,
        )
