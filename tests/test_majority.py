"""Votes, clusters of answers, and claim-level reliability, in closed form."""

import pytest

from nemo_vibethinker.evaluation.clr import read_claims, read_judgement, reliability
from nemo_vibethinker.evaluation.majority import Vote, cluster_answers, majority_at, majority_credit
from nemo_vibethinker.reward.math import MathVerifier


def votes(text: str) -> list[Vote]:
    """`a` and `b` are wrong answers, `R` the right one, `.` none."""
    return [Vote(None if letter == "." else "Rab".index(letter), letter == "R") for letter in text]


@pytest.mark.parametrize(
    ("text", "credit"),
    [("RRa", 1.0), ("Raa", 0.0), ("Ra", 0.5), ("Rab", 1 / 3), ("....", 0.0), ("..R.", 1.0), ("aabbR", 0.0)],
)
def test_the_most_frequent_answer_wins_and_ties_are_drawn(text: str, credit: float) -> None:
    assert majority_credit(votes(text)) == pytest.approx(credit)


def test_majority_at_k_averages_disjoint_blocks() -> None:
    # blocks of 3: RRa -> 1, Raa -> 0; the seventh vote fills no block
    assert majority_at(votes("RRaRaaR"), 3) == 0.5
    assert majority_at(votes("RRaRaaR"), 7) == 1.0
    assert majority_at(votes("RaR"), 1) == pytest.approx(2 / 3)  # maj@1 is pass@1


def test_weights_overrule_numbers() -> None:
    assert majority_credit(votes("Raa"), [1.0, 0.4, 0.4]) == 1.0
    assert majority_credit(votes("Raa"), [1.0, 0.5, 0.5]) == 0.5
    assert majority_credit(votes("Raa"), [0.0, 0.0, 0.0]) == 0.5  # no claim holds anywhere: any answer


def test_answers_that_mean_the_same_are_one_cluster() -> None:
    answers = ["1/2", r"\frac{1}{2}", "0.5", "2", None, "2.0", r"\sqrt{8}", r"2\sqrt{2}"]
    with MathVerifier(boxed_only=True) as verifier:
        assert cluster_answers(answers, verifier.same) == [0, 0, 0, 1, None, 1, 2, 2]


def test_reliability_is_the_mean_to_the_power_of_the_number_of_claims() -> None:
    assert reliability([1, 1, 0, 1, 1]) == pytest.approx(0.32768)
    assert reliability([1] * 5) == 1.0
    assert reliability([0] * 5) == 0.0
    assert reliability([1, 0]) == 0.25


def test_claims_are_read_by_their_numbers_after_the_reasoning() -> None:
    text = "<think>Claim 1: no</think>\n**Claim 1**: x is 3\nclaim 3. y is 4\nThat is all."
    assert read_claims(text, 3) == ["x is 3", None, "y is 4"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (r"so \boxed{1}", 1),
        (r"\boxed{0}", 0),
        (r"\boxed{\text{true}}", 1),
        ("it is true", 0),
        (r"\boxed{1}\boxed{0}", 0),
    ],
)
def test_judgements_that_cannot_be_read_are_no(text: str, value: int) -> None:
    assert read_judgement(text) == value
