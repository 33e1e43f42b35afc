"""Pass@K against brute force, specialist selection and its table, and checkpoint fusion."""

import itertools
import math
import weakref
from fractions import Fraction

import numpy as np
import pytest
import torch

from nemo_vibethinker.spectrum.fusion import fuse_state_dicts
from nemo_vibethinker.spectrum.pass_at_k import (
    Estimate,
    bootstrap_interval,
    estimate_pass_at_k,
    pass_at_k,
    pass_at_k_mean,
)
from nemo_vibethinker.spectrum.selection import ProbeTable, select_specialists

# Pass@K


@pytest.mark.parametrize("num_samples", range(1, 9))
def test_pass_at_k_equals_the_share_of_passing_subsets(num_samples: int) -> None:
    for num_correct, k in itertools.product(range(num_samples + 1), range(1, num_samples + 1)):
        subsets = list(itertools.combinations([index < num_correct for index in range(num_samples)], k))
        assert pass_at_k(num_samples, num_correct, k) == sum(map(any, subsets)) / len(subsets)


def test_pass_at_k_known_value() -> None:
    assert pass_at_k(16, 2, 8) == pytest.approx(0.76667, abs=5e-6)


def test_pass_at_k_is_exact_for_large_n() -> None:
    passing = 1 - Fraction(math.comb(9999, 5000), math.comb(10000, 5000))
    assert pass_at_k(10000, 1, 5000) == float(passing) == 0.5
    # Written as 1 - product, this would lose the digits below 1e-16.
    assert pass_at_k(10**9, 1, 1) == 1e-9


@pytest.mark.parametrize(("num_samples", "num_correct", "k"), [(4, 1, 5), (4, 1, 0), (4, 5, 1), (4, -1, 1)])
def test_pass_at_k_rejects_impossible_counts(num_samples: int, num_correct: int, k: int) -> None:
    with pytest.raises(ValueError, match="samples"):
        pass_at_k(num_samples, num_correct, k)


def test_pass_at_k_mean_averages_problems_and_keeps_ties_exact() -> None:
    assert pass_at_k_mean([0, 2, 16], 16, 8) == pytest.approx((0 + pass_at_k(16, 2, 8) + 1) / 3)
    # Float addition of the per-problem values would depend on their order.
    counts = [1, 3, 5, 7, 2, 2, 6, 1, 0, 4]
    for permuted in itertools.islice(itertools.permutations(counts), 0, 50000, 997):
        assert pass_at_k_mean(permuted, 7, 1) == pass_at_k_mean(counts, 7, 1)
    # The same total of correct samples is the same Pass@1, however it is spread over problems.
    assert pass_at_k_mean([1, 1, 1], 10, 1) == pass_at_k_mean([3, 0, 0], 10, 1) == pass_at_k_mean([2, 1, 0], 10, 1)
    with pytest.raises(ValueError, match="at least one problem"):
        pass_at_k_mean([], 4, 1)


def test_bootstrap_interval_matches_the_normal_approximation() -> None:
    values = np.random.default_rng(1).random(400)
    low, high = bootstrap_interval(values.tolist(), resamples=20000)
    half_width = 1.96 * values.std() / math.sqrt(len(values))
    assert low == pytest.approx(values.mean() - half_width, abs=0.05 * half_width)
    assert high == pytest.approx(values.mean() + half_width, abs=0.05 * half_width)


def test_bootstrap_interval_of_two_problems_follows_the_binomial() -> None:
    # Resampled means of (0, 1) are 0, 1/2, 1 with probabilities 1/4, 1/2, 1/4.
    assert bootstrap_interval([0.0, 1.0], confidence=0.95) == (0.0, 1.0)
    assert bootstrap_interval([0.0, 1.0], confidence=0.4) == (0.5, 0.5)


def test_bootstrap_interval_is_seeded_and_widens_with_confidence() -> None:
    values = [0.1, 0.9, 0.4, 0.4, 0.7, 0.2]
    assert bootstrap_interval(values, seed=3) == bootstrap_interval(values, seed=3)
    low, high = bootstrap_interval(values, confidence=0.8)
    wide_low, wide_high = bootstrap_interval(values, confidence=0.99)
    assert wide_low < low < sum(values) / len(values) < high < wide_high
    assert bootstrap_interval([0.5, 0.5]) == (0.5, 0.5)
    with pytest.raises(ValueError, match="at least one problem"):
        bootstrap_interval([])
    with pytest.raises(ValueError, match="confidence"):
        bootstrap_interval(values, confidence=95)


def test_bootstrap_interval_covers_the_truth_at_its_confidence() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(300):
        low, high = bootstrap_interval((generator.random(60) < 0.4).astype(float).tolist(), resamples=500)
        covered += low <= 0.4 <= high
    assert 0.90 <= covered / 300 <= 0.98


def test_estimate_pass_at_k_joins_mean_and_interval() -> None:
    counts = [0, 1, 2, 8, 16, 3]
    per_problem = [pass_at_k(16, count, 4) for count in counts]
    assert estimate_pass_at_k(counts, 16, 4, seed=5) == Estimate(
        pass_at_k_mean(counts, 16, 4), *bootstrap_interval(per_problem, seed=5)
    )


# Selection


def probe_table(pass_at_1: dict[str, list[float]], steps: tuple[int, ...] = (10, 20, 30)) -> ProbeTable:
    cells = {
        domain: {
            step: {1: Estimate(mean, mean / 2, mean), 8: Estimate(1 - mean, 0.0, 1.0)}
            for step, mean in zip(steps, means, strict=True)
        }
        for domain, means in pass_at_1.items()
    }
    return ProbeTable(tuple(pass_at_1), steps, (1, 8), cells)


def test_specialists_are_the_argmax_of_the_asked_k() -> None:
    table = probe_table({"algebra": [0.1, 0.5, 0.3], "geometry": [0.2, 0.3, 0.9]})
    assert select_specialists(table, 1) == {"algebra": 20, "geometry": 30}
    assert select_specialists(table, 8) == {"algebra": 10, "geometry": 10}


def test_ties_go_to_the_earlier_checkpoint_and_domains_may_agree() -> None:
    table = probe_table({"algebra": [0.1, 0.5, 0.5], "geometry": [0.4, 0.4, 0.4], "calculus": [0.0, 0.6, 0.1]})
    assert select_specialists(table, 1) == {"algebra": 20, "geometry": 10, "calculus": 20}


def test_tie_of_equal_totals_goes_to_the_earlier_checkpoint() -> None:
    # Summed as floats, the later checkpoint's 7 * 0.1 would win or lose by a rounding.
    earlier, later = estimate_pass_at_k([7, 0, 0], 10, 1), estimate_pass_at_k([1, 2, 4], 10, 1)
    table = ProbeTable(("algebra",), (1, 2), (1,), {"algebra": {1: {1: earlier}, 2: {1: later}}})
    assert select_specialists(table, 1) == {"algebra": 1}


def test_selection_at_an_unprobed_k_names_the_probed_ones() -> None:
    with pytest.raises(ValueError, match=r"no k=4; it holds k in \[1, 8\]"):
        select_specialists(probe_table({"algebra": [0.1, 0.2, 0.3]}), 4)


def test_probe_table_round_trips_through_json() -> None:
    table = probe_table({"algebra": [0.1, 1 / 3, 0.3], "geometry": [0.2, 0.3, 0.9]})
    assert ProbeTable.from_json(table.to_json()) == table


def test_probe_table_rejects_missing_cells_and_unordered_steps() -> None:
    with pytest.raises(ValueError, match="must ascend"):
        probe_table({"algebra": [0.1, 0.2, 0.3]}, steps=(10, 30, 20))
    complete = probe_table({"algebra": [0.1, 0.2, 0.3]})
    with pytest.raises(ValueError, match="no cell for domain 'geometry', step 10, k=1"):
        ProbeTable(("algebra", "geometry"), complete.steps, complete.ks, complete.cells)


def test_probe_table_text_marks_the_chosen_cells() -> None:
    lines = probe_table({"algebra": [0.1, 0.5, 0.3], "geometry": [0.2, 0.5, 0.9]}).format_text(1).splitlines()
    assert lines[0].split() == ["pass@1", "algebra", "geometry"]
    assert lines[2].split("  ")[1:] == ["0.500 [0.250, 0.500]*", "0.500 [0.250, 0.500]"]
    assert [line.count("*") for line in lines] == [0, 0, 1, 1]
    assert len({line.index("  0.") for line in lines[1:]}) == 1


# Fusion


def random_state_dict(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    floats = {"weight": torch.randn(64, 33, generator=generator), "bias": 1e-3 * torch.randn(33, generator=generator)}
    return {key: tensor.to(dtype) for key, tensor in floats.items()} | {"positions": torch.arange(5)}


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.uint8)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weights", [None, [1 / 3] * 3, [1 / 5] * 5, [1 / 7] * 7, [0.2, 0.5, 0.3], [0.0, 0.9, 0.1]])
def test_fusing_identical_checkpoints_is_the_bit_exact_identity(
    dtype: torch.dtype, weights: list[float] | None
) -> None:
    state_dict = random_state_dict(0, dtype)
    state_dict["edges"] = torch.tensor([0.0, -0.0, 1e-40, -3.4e38, math.inf], dtype=torch.float32).to(dtype)
    fused = fuse_state_dicts([state_dict] * (len(weights) if weights else 3), weights)
    assert list(fused) == list(state_dict)
    for key, tensor in state_dict.items():
        assert fused[key].dtype == tensor.dtype
        assert torch.equal(bits(fused[key]), bits(tensor)), key


@pytest.mark.parametrize(
    "weights", [None, [0.25] * 4, [0.1, 0.2, 0.3, 0.4], [0.0, 0.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0]]
)
def test_fusion_is_the_weighted_mean(weights: list[float] | None) -> None:
    state_dicts = [random_state_dict(seed) for seed in range(4)]
    fused = fuse_state_dicts(state_dicts, weights)
    for key in ("weight", "bias"):
        terms = [w * s[key].double() for w, s in zip(weights or [0.25] * 4, state_dicts, strict=True)]
        expected = torch.stack(terms).sum(dim=0)
        torch.testing.assert_close(fused[key].double(), expected, rtol=1e-6, atol=1e-6 * expected.abs().max().item())
    assert torch.equal(fused["positions"], torch.arange(5))


def test_weight_one_returns_that_checkpoint_exactly() -> None:
    state_dicts = [random_state_dict(seed) for seed in range(3)]
    for chosen in range(3):
        fused = fuse_state_dicts(state_dicts, [float(index == chosen) for index in range(3)])
        assert torch.equal(fused["weight"], state_dicts[chosen]["weight"])


def test_a_checkpoint_chosen_by_two_domains_counts_twice() -> None:
    first, second = random_state_dict(0), random_state_dict(1)
    fused = fuse_state_dicts([first, first, second])
    torch.testing.assert_close(fused["weight"], (2 * first["weight"] + second["weight"]) / 3)


def test_bfloat16_is_accumulated_in_fp32() -> None:
    # No step of the running mean exceeds half a unit in the last place: in bfloat16 all would vanish.
    state_dicts = [{"weight": torch.tensor([value], dtype=torch.bfloat16)} for value in (1.0, 1.0, 1.0078125, 1.015625)]
    assert fuse_state_dicts(state_dicts)["weight"].item() == 1.0078125


def test_fusion_shares_no_memory_and_takes_parameters() -> None:
    source = {"weight": torch.nn.Parameter(torch.ones(2)), "positions": torch.arange(2)}
    fused = fuse_state_dicts([source])
    assert not fused["weight"].requires_grad
    assert all(fused[key].data_ptr() != source[key].data_ptr() for key in source)
    assert torch.equal(fused["weight"], torch.ones(2))


def test_fusion_holds_one_state_dict_at_a_time() -> None:
    alive: list[weakref.ref] = []

    def load(seed: int) -> dict[str, torch.Tensor]:
        assert all(reference() is None for reference in alive), "an earlier checkpoint is still in memory"
        state_dict = random_state_dict(seed)
        alive.extend(weakref.ref(tensor) for tensor in state_dict.values())
        return state_dict

    fuse_state_dicts(map(load, range(4)), [0.25] * 4)
    assert len(alive) == 12


@pytest.mark.parametrize("weights", [[0.5, 0.6], [1.5, -0.5], [math.nan, 1.0], [1.0], [0.2, 0.3, 0.5], []])
def test_wrong_weights_are_rejected(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="weight"):
        fuse_state_dicts([random_state_dict(0), random_state_dict(1)], weights)


def test_fusing_nothing_is_rejected() -> None:
    with pytest.raises(ValueError, match="at least one checkpoint"):
        fuse_state_dicts([])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"extra": torch.ones(1)}, "'extra' is missing from checkpoint 0"),
        ({"bias": None}, "'bias' is missing from checkpoint 1"),
        ({"bias": torch.ones(1)}, r"'bias' has shapes \(33,\) and \(1,\)"),
        ({"bias": torch.ones(33).half()}, r"'bias' has dtypes torch\.float32 and torch\.float16"),
        ({"positions": torch.arange(5) + 1}, r"'positions' is not floating point"),
    ],
)
def test_checkpoints_that_do_not_match_are_rejected(change: dict[str, torch.Tensor | None], message: str) -> None:
    changed = {key: tensor for key, tensor in {**random_state_dict(1), **change}.items() if tensor is not None}
    with pytest.raises(ValueError, match=message):
        fuse_state_dicts([random_state_dict(0), changed])
