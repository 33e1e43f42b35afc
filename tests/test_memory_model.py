"""The memory model against the bytes that a training step really holds, on one process and on two."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from memory_cases import CASES, MODEL, VOCAB, Case

from nemo_vibethinker.config import Config, ScaleConfig
from nemo_vibethinker.costs.flops import segment_length
from nemo_vibethinker.costs.gpus import find_gpu
from nemo_vibethinker.costs.memory import (
    DECODED_ROWS,
    Row,
    engine_memory,
    layers_in_flight,
    rank_moments,
    require_fit,
    sampling_memory,
)

WORKER = Path(__file__).resolve().parent / "memory_worker.py"
TOLERANCE = 0.15


def measured(tmp_path: Path, cases: list[Case], processes: int) -> list[dict[str, dict[str, int]]]:
    """Of each rank: case -> counted bytes."""
    tasks, out = tmp_path / "tasks.json", tmp_path / "out.json"
    tasks.write_text(json.dumps([case.name for case in cases]))
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(launch if processes > 1 else []), str(WORKER), str(tasks), str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(WORKER.parent.parent)}
    outcome = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert outcome.returncode == 0, outcome.stderr[-3000:]
    return [json.loads(Path(f"{out}.{rank}").read_text()) for rank in range(processes)]


def predicted(case: Case, rank: int) -> dict[str, int]:
    """The same counts by the model."""
    scale = case.scale()
    stage = rank if scale.parallel.pipeline > 1 else 0
    row = Row(sum(case.lengths), segment_length(case.lengths), case.micro_batches)
    moments = rank_moments(scale, VOCAB, row, stage, on_gpu=False)
    return {
        "weights": moments[0].weights,
        "gradients": moments[0].gradients,
        "optimizer": moments[0].optimizer,
        "saved": max(m.activations + m.logits for m in moments),
        "every": max(m.activations + m.logits + m.temporary for m in moments),
    }


@pytest.mark.e2e
@pytest.mark.parametrize("processes", [1, 2])
def test_model_against_counted_bytes(tmp_path: Path, processes: int) -> None:
    cases = [case for case in CASES if case.processes == processes]
    wrong: list[str] = []
    for rank, counts in enumerate(measured(tmp_path, cases, processes)):
        for case in cases:
            for name, value in predicted(case, rank).items():
                error = value / counts[case.name][name] - 1
                print(f"{case.name:<28} rank {rank} {name:<10} {counts[case.name][name]:>10,} {error:>+8.2%}")
                if abs(error) > TOLERANCE:
                    wrong.append(f"{case.name} rank {rank}: {name} {error:+.1%}")
    assert not wrong


def test_states_of_a_bf16_model_in_bytes_a_parameter() -> None:
    """2 of weights, 4 of gradients, 12 of optimizer states that the replicas share."""
    row = Row(256, 256, 1)
    scale = Case("", 1, {"precision": "bf16", "parallel.data": 4}, [256]).scale()
    alone = Case("", 1, {"precision": "bf16"}, [256]).scale()
    shared, whole = (rank_moments(s, VOCAB, row, 0, on_gpu=False)[0] for s in (scale, alone))
    parameters = whole.gradients // 4
    assert (whole.weights, whole.optimizer) == (2 * parameters, 12 * parameters)
    assert (shared.optimizer, shared.weights) == (whole.optimizer // 4, whole.weights)


@pytest.mark.parametrize(
    ("parallel", "stage", "micro_batches", "layers"),
    [
        ({}, 0, 8, 4),
        ({"parallel.pipeline": 2}, 0, 8, 4),
        ({"parallel.pipeline": 2}, 1, 8, 2),
        ({"parallel.pipeline": 4}, 0, 8, 4),
        ({"parallel.pipeline": 4}, 0, 2, 2),
        ({"parallel.pipeline": 2, "parallel.virtual_pipeline": 2}, 0, 8, 5),
        ({"parallel.pipeline": 2, "parallel.virtual_pipeline": 2}, 1, 8, 3),
    ],
)
def test_layers_in_flight(parallel: dict[str, Any], stage: int, micro_batches: int, layers: int) -> None:
    scale: ScaleConfig = Case("", 1, parallel, [1]).scale()
    assert layers_in_flight(scale.model, scale.parallel, stage, micro_batches) == layers


def test_chunked_logits_do_not_grow_with_the_row() -> None:
    def loss_bytes(chunk: int, tokens: int) -> int:
        moment = rank_moments(
            Case("", 1, {"logprob_chunk": chunk}, [1]).scale(), VOCAB, Row(tokens, tokens, 1), 0, on_gpu=True
        )[0]
        return moment.logits + moment.temporary

    hidden = 4 * MODEL.hidden_size + 17
    assert loss_bytes(32, 1024) - loss_bytes(32, 512) == 512 * hidden
    assert loss_bytes(0, 1024) - loss_bytes(0, 512) == 512 * (8 * VOCAB + 13)


def test_sampling_memory_counts_the_cache() -> None:
    config = Config(scale=Case("", 1, {"parallel.data": 2}, [1]).scale())
    config.signal.math_16k.prompts_per_step = 4
    config.signal.math_16k.group_size = 8
    config.signal.math_16k.sampling.max_response_length = 100
    states = rank_moments(config.scale, config.data.vocab_size, Row(1, 1, 1), 0, on_gpu=False)[0]
    cache = 16 * 100 * 4 * 2 * 32 * 4  # responses, tokens, layers, keys and values of 2 heads of 16, bytes
    assert sampling_memory(config)["mgpo.math_16k"] == states.weights + states.gradients + states.optimizer + cache
    assert sampling_memory(config)["evaluate"] == states.weights + 256 * 128 * 4 * 2 * 32 * 4


def test_colocated_engines_share_the_gpu_with_the_trainers_states() -> None:
    config = Config()
    gpu = find_gpu("H800-SXM")
    assert gpu is not None
    assert engine_memory(config, gpu) is None
    config.rollout.engine, config.rollout.gpu_memory = "vllm", 0.5
    engine, states = engine_memory(config, gpu) or (0, 0)
    weights = rank_moments(config.scale, config.data.vocab_size, Row(512, 512, 1), 0, on_gpu=True)[0]
    assert (engine, states) == (gpu.memory_bytes // 2, weights.weights + weights.gradients + weights.optimizer)
    assert sampling_memory(config) == {}
    config.cluster.gpu, config.rollout.gpu_memory = "H800-SXM", 0.99
    with pytest.raises(ValueError, match=r"rollout\.gpu_memory=0\.99.*lower it"):
        require_fit(config)
    engine = (WORKER.parent.parent / "nemo_vibethinker/rollout/megatron_engine.py").read_text()
    assert f"\nROWS = {DECODED_ROWS} " in engine
