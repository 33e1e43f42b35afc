"""Published tables as data, and our scores beside them."""

from dataclasses import replace
from pathlib import Path

import pytest

from nemo_vibethinker.config import Config, RunConfig
from nemo_vibethinker.evaluation.comparison import comparison_rows, format_comparison, headline_table
from nemo_vibethinker.evaluation.paper_tables import paper_costs, paper_row, paper_tables
from nemo_vibethinker.evaluation.provenance import Provenance
from nemo_vibethinker.evaluation.scores import Score, scores_from_json, scores_to_json
from nemo_vibethinker.run_folder import open_run
from nemo_vibethinker.spectrum.pass_at_k import Estimate

PROVENANCE = Provenance(
    protocol="paper_1p5b",
    samples=64,
    temperature=1.0,
    top_p=0.95,
    top_k=-1,
    max_tokens=40960,
    system_prompt="",
    template_hash="t",
    benchmark_source="aime24.jsonl",
    benchmark_hash="b",
    benchmark_problems=30,
    expected_problems=30,
    date_window="",
    shuffle_seed=None,
    model="m",
    model_hash="h",
    window=131072,
    engine="megatron",
    engine_version="megatron-core 0.16.1",
    verifier_version="v",
    code_version="c",
    seed=0,
    shard="0/1",
)


def score(benchmark: str, mean: float, low: float, high: float) -> Score:
    return Score(
        model="m",
        domain=benchmark,
        num_problems=30,
        samples_per_problem=64,
        pass_at={1: Estimate(mean, low, high)},
        left_out={1: 0},
        mean_tokens=10.0,
        truncated_share=0.0,
        num_ungraded=48,
        benchmark=benchmark,
        maj_at={64: Estimate(0.9, 0.8, 1.0)},
        provenance=PROVENANCE,
    )


def test_tables_hold_the_published_numbers_with_their_source() -> None:
    row, table = paper_row("VibeThinker-1.5B")
    assert (row.scores["aime24"], row.scores["aime25"], row.scores["hmmt25"]) == (80.3, 74.4, 50.4)
    assert "2511.06221" in table.source
    assert paper_row("VibeThinker-3B + CLR")[0].scores["lcb_v6"] is None
    assert all("arXiv" in table.source for table in paper_tables().values())
    costs = {cost.model: cost for cost in paper_costs()}
    assert (costs["VibeThinker-1.5B"].gpu_hours, costs["VibeThinker-1.5B"].dollars) == (3900, 7800)
    assert all(
        value is None or 0 <= value <= 100
        for table in paper_tables().values()
        for row in table.rows
        for value in row.scores.values()
    )


def test_unknown_reference_is_named() -> None:
    with pytest.raises(ValueError, match="no published table has 'VibeThinker-9B'"):
        comparison_rows([], "VibeThinker-9B")


def test_difference_and_whether_it_lies_outside_the_interval() -> None:
    inside, outside, *rest = comparison_rows([score("aime24", 0.79, 0.70, 0.88), score("aime25", 0.50, 0.40, 0.60)])
    assert inside.difference == pytest.approx(-0.013)
    assert inside.outside is False
    assert inside.caveats == ()
    assert outside.difference == pytest.approx(-0.244)
    assert outside.outside is True
    assert {row.benchmark for row in rest} == {"math500", "hmmt25", "lcb_v5", "lcb_v6", "gpqa"}
    assert all(row.ours is None and row.difference is None for row in rest)  # gaps stay gaps
    assert "outside" in format_comparison([inside, outside, *rest])


def test_other_conditions_are_named() -> None:
    other = replace(
        score("gpqa", 0.4, 0.3, 0.5), provenance=replace(PROVENANCE, shuffle_seed=1, max_tokens=512, window=1024)
    )
    caveats = " ".join(comparison_rows([other])[0].caveats)
    for text in ("64 samples a problem, not 16", "512 tokens", "1,024", "shuffled"):
        assert text in caveats


def test_benchmark_scores_round_trip_and_older_files_still_read() -> None:
    scores = [score("aime24", 0.79, 0.70, 0.88)]
    text = scores_to_json(scores)
    assert scores_from_json(text) == scores
    assert scores[0].ungraded_share == 48 / 1920
    older = (
        '[{"model": "m", "domain": "math", "num_problems": 1, "samples_per_problem": 1, "pass_at": {}, '
        '"left_out": {"1": 1}, "mean_tokens": 1.0, "truncated_share": 0.0, "num_ungraded": 1}]'
    )
    (old,) = scores_from_json(older)
    assert (old.benchmark, old.maj_at, old.provenance) == ("", {}, None)


def test_headline_of_a_run_without_benchmarks_has_gaps_and_the_published_rows(tmp_path: Path) -> None:
    run = open_run(Config(run=RunConfig(root=str(tmp_path), name="empty")))
    ours, *published = headline_table(run.path)
    assert ours.scores == {"aime24": None, "aime25": None, "hmmt25": None}
    assert ours.gpu_hours is None
    assert [row.model for row in published][-1] == "VibeThinker-1.5B"
    assert published[-1].scores["aime25"] == pytest.approx(0.744)
