"""FLOPs of a token, peaks of GPUs, and MFU."""

import math
import re

import pytest

from nemo_vibethinker.config import ModelConfig
from nemo_vibethinker.costs.flops import segment_length, token_flops
from nemo_vibethinker.costs.gpus import GPUS, find_gpu, mfu

VOCAB = 151936
QWEN_1P5B = ModelConfig(
    num_layers=28, hidden_size=1536, ffn_hidden_size=8960, num_attention_heads=12, num_query_groups=2
)


@pytest.mark.parametrize(
    ("tokens", "gflop"), [(4 * 1024, 10.3), (16 * 1024, 13.5), (32 * 1024, 17.7), (40 * 1024, 19.8)]
)
def test_gflop_of_a_token_by_length(tokens: int, gflop: float) -> None:
    """Of Qwen2.5-1.5B, forward and backward: attention is nearly half of it at 32K."""
    assert round(token_flops(QWEN_1P5B, VOCAB, tokens).model / 1e9, 1) == gflop


def test_flops_of_a_tiny_model_by_hand() -> None:
    model = ModelConfig(num_layers=1, hidden_size=2, ffn_hidden_size=3, num_attention_heads=2, num_query_groups=1)
    query_key_value_projection = 2 * 2 + 2 * 1 * 2 + 2 * 2
    products = query_key_value_projection + 3 * 2 * 3 + 2 * 5  # and gate, up, down, the output layer
    attention = 2 * 2 * 2 * 4 / 2  # two products of 2 FLOPs, 2 channels, half of 4 tokens
    found = token_flops(model, 5, 4)
    assert found.forward == 2 * products + attention
    assert (found.backward, found.recompute, found.hardware) == (2 * found.forward, 0, 3 * found.forward)


def test_recompute_adds_what_is_computed_again() -> None:
    output = 2 * 1536 * VOCAB
    plain, selective, full = (token_flops(QWEN_1P5B, VOCAB, 32768, recompute=r) for r in ("none", "selective", "full"))
    assert plain.model == selective.model == full.model
    assert full.recompute == plain.forward - output
    assert selective.recompute == plain.forward - token_flops(QWEN_1P5B, VOCAB, 0).forward
    assert token_flops(QWEN_1P5B, VOCAB, 32768, chunked_logits=True).recompute == output


def test_packed_samples_count_by_their_own_length() -> None:
    assert segment_length([8, 8, 8, 8]) == 8
    assert segment_length([32]) == 32
    assert segment_length([1, 3]) == 2.5
    whole = sum(n * token_flops(QWEN_1P5B, VOCAB, n).forward for n in (100, 700, 3000))
    assert math.isclose(3800 * token_flops(QWEN_1P5B, VOCAB, segment_length([100, 700, 3000])).forward, whole)


def test_unknown_gpus_have_no_mfu() -> None:
    for name in ("", "H100", "NVIDIA GH200 480GB", "NVIDIA GeForce RTX 4090", "nvidia h800"):
        assert find_gpu(name) is None
        assert mfu(1e14, name) is None


def test_mfu_is_of_the_dense_bf16_peak() -> None:
    assert mfu(989.4e12 / 4, "H800-SXM") == pytest.approx(0.25)
    assert mfu(312e12, "NVIDIA A100-SXM4-80GB") == pytest.approx(1.0)


def test_no_peak_is_one_with_sparsity() -> None:
    """The sheets' own sparse figures stand in `source`; the dense ones are half of them."""
    for gpu in GPUS:
        quoted = [float(number.replace(",", "")) for number in re.findall(r"[\d,]+(?= and| sparse)", gpu.source)]
        if quoted:
            peaks = [peak for peak in (gpu.bf16_tflops, gpu.fp8_tflops) if peak]
            assert peaks == pytest.approx([number / 2 for number in quoted], rel=1e-3), gpu.name
    assert sum("sparse" in gpu.source for gpu in GPUS) == len(GPUS) - 2  # the H800s refer to the H100s


def test_the_table_of_gpus_is_consistent() -> None:
    names = [name for gpu in GPUS for name in (gpu.name, *gpu.device_names)]
    assert len(set(names)) == len(names)
    for gpu in GPUS:
        assert gpu.fp8_tflops is None or gpu.fp8_tflops == pytest.approx(2 * gpu.bf16_tflops, rel=1e-3)
    h100, h800 = find_gpu("H100-SXM"), find_gpu("H800-SXM")
    assert h100
    assert h800
    assert (h100.bf16_tflops, h100.memory_bytes) == (h800.bf16_tflops, h800.memory_bytes)
    assert (h100.nvlink_gb_per_s, h800.nvlink_gb_per_s) == (900, 400)
    pcie, h800_pcie = find_gpu("NVIDIA H100 PCIe"), find_gpu("NVIDIA H800 PCIe")
    assert pcie
    assert h800_pcie
    assert (pcie.bf16_tflops, pcie.memory_gb_per_s) == (h800_pcie.bf16_tflops, h800_pcie.memory_gb_per_s)
