"""Benchmark scores beside the published ones in the page."""

from pathlib import Path

from report_run import finished_run

from nemo_vibethinker.evaluation.scores import Score
from nemo_vibethinker.report.paper_views import paper_view
from nemo_vibethinker.spectrum.pass_at_k import Estimate


def score(benchmark: str, mean: float) -> Score:
    return Score(
        model="mgpo.code",
        domain=benchmark or "math",
        num_problems=30,
        samples_per_problem=64,
        pass_at={1: Estimate(mean, mean - 0.1, mean + 0.1)},
        left_out={},
        mean_tokens=9000.0,
        truncated_share=0.0,
        num_ungraded=0,
        benchmark=benchmark,
        maj_at={64: Estimate(0.9, 0.8, 1.0)} if benchmark else {},
    )


def test_the_papers_numbers_stand_beside_ours_and_fill_no_gap(tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    view = paper_view([score("", 0.5), score("aime24", 0.75), score("aime25", 0.2)], run.path)
    assert view is not None
    rows = {row[0]: row[1:] for row in view["comparison"]["rows"]}
    assert rows["AIME24"][:5] == ["mgpo.code", "75.0 [65.0, 85.0]", "80.3", "-5.3", "inside"]
    assert rows["AIME25"][:5] == ["mgpo.code", "20.0 [10.0, 30.0]", "74.4", "-54.4", "outside"]
    assert rows["HMMT25"][:5] == ["-", "-", "50.4", "-", "-"]
    assert view["headline"]["rows"][0][0].startswith(run.path.name)
    assert "VibeThinker-1.5B" in {row[0] for row in view["headline"]["rows"]}
    assert view["conditions"]["rows"][0][:5] == ["AIME24", "mgpo.code", "30 x 64", "64: 90.0", "0.0"]


def test_without_a_benchmark_there_is_nothing_beside() -> None:
    assert paper_view([score("", 0.5)], Path("unused")) is None
