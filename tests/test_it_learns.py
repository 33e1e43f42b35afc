"""The acceptance of a finished `recipe=ssp_full` run at tiny scale: it learned, by held-out scores with intervals."""

import os
from pathlib import Path

import pytest

from nemo_vibethinker.evaluation.scores import MATH_UNION, Score, scores_from_json
from nemo_vibethinker.run_folder import RunFolder

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def scores() -> dict[tuple[str, str], Score]:
    """(model label, domain) -> score of the run in NVT_FINISHED_RUN."""
    folder = os.environ.get("NVT_FINISHED_RUN")
    if not folder:
        pytest.skip("NVT_FINISHED_RUN names no finished run of `python launcher/run.py recipe=ssp_full`")
    run = RunFolder.load(Path(folder))
    found = scores_from_json((run.stage_folder("evaluate") / "scores.json").read_text())
    return {(score.model, score.domain): score for score in found}


def test_fused_model_is_neither_hopeless_nor_finished(scores: dict[tuple[str, str], Score]) -> None:
    assert 0.20 <= scores["fused", MATH_UNION].pass_at[1].mean <= 0.70


def test_signal_gains_ten_points_of_maths_outside_the_intervals(scores: dict[tuple[str, str], Score]) -> None:
    fused, final = scores["fused", MATH_UNION].pass_at[1], scores["mgpo.code", MATH_UNION].pass_at[1]
    assert final.mean >= fused.mean + 0.10
    assert final.low > fused.high


def test_code_stage_gains_code(scores: dict[tuple[str, str], Score]) -> None:
    before, after = scores["mgpo.math_32k", "code"].pass_at[1], scores["mgpo.code", "code"].pass_at[1]
    assert after.mean > before.mean
