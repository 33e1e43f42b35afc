"""Scores per domain from graded samples, their JSON and their table."""

import re

import pytest

from nemo_vibethinker.evaluation.scores import (
    ProblemSamples,
    Score,
    format_score_table,
    score_samples,
    scores_from_json,
    scores_to_json,
)
from nemo_vibethinker.reward.verdict import Kind
from nemo_vibethinker.spectrum.pass_at_k import estimate_pass_at_k, pass_at_k

VERDICTS: dict[str, Kind] = {"r": "right", "w": "wrong", "u": "ungraded"}


def problem(domain: str, verdicts: str, lengths: list[int] | None = None, truncated: str = "") -> ProblemSamples:
    """`verdicts` has one letter per sample; `truncated` one t per truncated sample, counted from the first."""
    flags = [index < len(truncated) for index in range(len(verdicts))]
    return ProblemSamples(domain, [VERDICTS[letter] for letter in verdicts], lengths or [10] * len(verdicts), flags)


def by_domain(problems: list[ProblemSamples], ks: tuple[int, ...] = (1, 4)) -> dict[str, Score]:
    return {score.domain: score for score in score_samples("m", problems, ks)}


def test_fully_graded_scores_are_the_pass_at_k_estimates() -> None:
    scores = by_domain([problem("algebra", "rwww"), problem("algebra", "rrww"), problem("algebra", "wwww")])
    for k in (1, 4):
        expected = estimate_pass_at_k([1, 2, 0], 4, k)
        assert scores["algebra"].pass_at[k].mean == pytest.approx(expected.mean, abs=1e-15)
        assert scores["algebra"].pass_at[k].low == expected.low
        assert scores["algebra"].pass_at[k].high == expected.high
    assert scores["algebra"].left_out == {1: 0, 4: 0}
    assert (scores["algebra"].num_problems, scores["algebra"].samples_per_problem) == (3, 4)


def test_math_is_the_union_of_all_domains_but_code() -> None:
    scores = by_domain(
        [problem("code", "rr"), problem("geometry", "ww"), problem("algebra", "rw"), problem("algebra", "rr")], (1,)
    )
    assert list(scores) == ["math", "geometry", "algebra", "code"]
    assert scores["math"].num_problems == 3
    assert scores["math"].pass_at[1].mean == pytest.approx(0.5)
    assert scores["algebra"].pass_at[1].mean == pytest.approx(0.75)
    assert scores["code"].pass_at[1].mean == 1.0


def test_a_union_without_problems_gets_no_score() -> None:
    assert list(by_domain([problem("code", "r")], (1,))) == ["code"]


def test_a_domain_named_math_joins_the_union() -> None:
    scores = by_domain([problem("math", "r"), problem("algebra", "w")], (1,))
    assert {domain: score.num_problems for domain, score in scores.items()} == {"math": 2, "algebra": 1}


def test_ungraded_samples_leave_the_denominator_and_are_counted() -> None:
    scores = by_domain([problem("algebra", "rwuu"), problem("algebra", "rrww"), problem("algebra", "uuuu")], (1, 2, 4))
    algebra = scores["algebra"]
    assert algebra.num_ungraded == 6
    assert algebra.left_out == {1: 1, 2: 1, 4: 2}
    assert algebra.pass_at[1].mean == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert algebra.pass_at[2].mean == pytest.approx((1.0 + pass_at_k(4, 2, 2)) / 2)
    assert algebra.pass_at[4].mean == 1.0


def test_a_k_that_no_problem_reaches_has_no_estimate() -> None:
    algebra = by_domain([problem("algebra", "rw")], (1, 8))["algebra"]
    assert list(algebra.pass_at) == [1]
    assert algebra.left_out == {1: 0, 8: 1}


def test_lengths_and_truncation_are_over_all_samples() -> None:
    algebra = by_domain([problem("algebra", "ru", [100, 200], "t"), problem("algebra", "ww", [300, 1000], "tt")], (1,))[
        "algebra"
    ]
    assert algebra.mean_tokens == 400.0
    assert algebra.truncated_share == 0.75


def test_malformed_samples_are_rejected() -> None:
    with pytest.raises(ValueError, match="as many verdicts"):
        ProblemSamples("algebra", ["right"], [1, 2], [False])
    with pytest.raises(ValueError, match="at least one"):
        ProblemSamples("algebra", [], [], [])
    with pytest.raises(ValueError, match=r"got \['correct'\]"):
        ProblemSamples("algebra", ["correct"], [1], [False])  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"'math' must have equally many samples, got \[1, 2\]"):
        score_samples("m", [problem("code", "rww"), problem("algebra", "r"), problem("algebra", "rw")], (1,))
    with pytest.raises(ValueError, match="needs problems"):
        score_samples("m", [], (1,))
    with pytest.raises(ValueError, match="ks >= 1"):
        score_samples("m", [problem("algebra", "r")], (0, 1))


def several_scores(domains: tuple[str, ...], models: tuple[str, ...] = ("base", "sft", "fused", "mgpo")) -> list[Score]:
    scores = []
    for rights, model in enumerate(models):
        verdicts = "r" * rights + "w" * (4 - rights)
        problems = [problem(domain, verdicts, [12345] * 4) for domain in domains for _ in range(3)]
        scores += score_samples(model, problems, (1, 4))
    return scores


def test_scores_round_trip_through_json() -> None:
    scores = several_scores(("algebra", "code"))
    assert scores_from_json(scores_to_json(scores)) == scores


def test_table_shows_every_model_and_column_within_the_width() -> None:
    table = format_score_table(several_scores(("algebra", "geometry", "calculus", "statistics", "code")))
    lines = table.splitlines()
    assert max(map(len, lines)) <= 140
    assert len(lines) == 5
    columns = [re.split(r"  +", line) for line in lines]
    assert columns[0] == [
        *("model", "math pass@1", "math pass@4", "code pass@1", "code pass@4", "tokens", "trunc", "ungraded"),
        *("algebra", "geometry", "calculus", "statistics"),
    ]
    assert [row[0] for row in columns[1:]] == ["base", "sft", "fused", "mgpo"]
    quarter = "25.0 [25.0, 25.0]"
    assert columns[2][1:] == [quarter, "100.0", quarter, "100.0", "12345", "0.0", "0", *["25.0"] * 4]
    assert all(line.index("12345") == lines[0].index("tokens") for line in lines[1:])


def test_table_wraps_columns_that_do_not_fit_and_shortens_labels() -> None:
    domains = tuple(f"intermediate_topic_{index}" for index in range(9))
    label = "runs/very/long/path/to/a/checkpoint/folder"
    table = format_score_table(several_scores(domains, (label, "sft")))
    blocks = table.split("\n\n")
    assert len(blocks) > 1
    assert max(map(len, table.splitlines())) <= 140
    assert all(block.splitlines()[1].startswith(label[:27] + "~ ") for block in blocks)
    assert [name for block in blocks for name in block.splitlines()[0].split() if name in domains] == list(domains)


def test_table_marks_missing_scores_and_left_out_problems() -> None:
    full = score_samples("full", [problem("algebra", "rw"), problem("code", "rw")], (1,))
    partial = score_samples("partial", [problem("code", "rw"), problem("code", "uu")], (1,))
    table, notes = format_score_table(full + partial).split("\n\n")
    assert table.splitlines()[2].split()[:2] == ["partial", "-"]
    assert notes == "partial, code: pass@1 leaves out 1 of 2 problems (fewer than 1 graded samples)"


def test_table_weights_tokens_by_samples_and_adds_up_ungraded() -> None:
    problems = [problem("algebra", "ru", [100, 100])] * 3 + [problem("code", "rwwu", [400] * 4)]
    lines = format_score_table(score_samples("m", problems, (1,))).splitlines()
    columns = dict(
        zip(
            lines[0].replace(" pass", "_pass").split(),
            lines[1].replace(" [", "[").replace(", ", ",").split(),
            strict=True,
        )
    )
    assert columns["tokens"] == "220"
    assert columns["ungraded"] == "4"


def test_table_rejects_two_scores_for_one_cell() -> None:
    scores = score_samples("m", [problem("algebra", "r")], (1,))
    with pytest.raises(ValueError, match="distinct labels"):
        format_score_table(scores + scores)
