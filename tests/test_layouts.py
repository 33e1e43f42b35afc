"""Every layout of processes computes the same: a matrix of four-process layouts against one process, on gloo.

The layouts differ in the order of floating-point sums only, so the tolerances are of fp32 rounding: 2e-6 of the loss,
5e-6 of the gradient norm, 2e-5 for logits of size 10.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPOSITORY
from safetensors.torch import load_file

pytestmark = pytest.mark.e2e

T, P, C, D, V, S = (
    f"parallel.{name}" for name in ("tensor", "pipeline", "context", "data", "virtual_pipeline", "sequence")
)
PLAIN = {"parallel.distributed_optimizer": False}
SELECTIVE, FULL = {"recompute": "selective"}, {"recompute": "full"}
OVERLAP = {"overlap_grad_reduce": True, "overlap_param_gather": True}
LAYOUTS: dict[str, dict[str, Any]] = {
    "tp2_pp2": {T: 2, P: 2},
    "tp2_pp2_sp_full": {T: 2, P: 2, S: True} | FULL,
    "tp2_pp2_sp_selective": {T: 2, P: 2, S: True} | SELECTIVE,
    "tp2_pp2_vp2_sp": {T: 2, P: 2, V: 2, S: True},
    "tp2_cp2": {T: 2, C: 2},
    "tp2_cp2_sp_full_plain": {T: 2, C: 2, S: True} | FULL | PLAIN,
    "tp2_dp2": {T: 2, D: 2},
    "tp2_dp2_sp_selective_plain": {T: 2, D: 2, S: True} | SELECTIVE | PLAIN,
    "pp2_cp2": {P: 2, C: 2},
    "pp2_cp2_vp2_full": {P: 2, C: 2, V: 2} | FULL,
    "pp2_dp2": {P: 2, D: 2},
    "pp2_dp2_vp2_plain": {P: 2, D: 2, V: 2} | PLAIN,
    "pp2_dp2_overlap": {P: 2, D: 2} | OVERLAP,
    "pp2_dp2_vp2_overlap": {P: 2, D: 2, V: 2} | OVERLAP,
    "pp4": {P: 4},
    "cp2_dp2": {C: 2, D: 2},
    "cp2_dp2_selective_plain": {C: 2, D: 2} | SELECTIVE | PLAIN,
    "cp4": {C: 4},
    "dp4": {D: 4},
    "dp4_full_plain": {D: 4} | FULL | PLAIN,
}
# A run's first two steps under one layout, its third under another; "" is one process.
MOVES = [
    ("", "tp2_pp2"),
    ("", "cp2_dp2"),
    ("tp2_dp2", ""),
    ("pp2_dp2_vp2_plain", "dp4_full_plain"),
    ("cp4", ""),
    ("pp2_dp2_overlap", "tp2_dp2"),
    ("tp2_pp2_sp_full", "dp4"),
    ("pp2_dp2", "tp2_dp2"),
    ("dp4", "pp2_cp2_vp2_full"),
]
Found = dict[str, dict[str, Any]]


def task(name: str, layout: str, folder: Path, first: int, last: int, load: str = "", save: str = "") -> dict[str, Any]:
    folders = {key: str(folder / value) for key, value in (("load", load), ("save", save)) if value}
    return {"name": name, "layout": LAYOUTS.get(layout, {}), "first": first, "last": last, **folders}


def work(tasks: list[dict[str, Any]], processes: int, folder: Path) -> Found:
    """What the worker found for `tasks`, run by `processes` processes."""
    given, out = folder / "tasks.json", folder / "found.json"
    given.write_text(json.dumps(tasks))
    start = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    command = [sys.executable, *start, str(REPOSITORY / "tests" / "layout_worker.py"), str(given), str(out)]
    done = subprocess.run(
        command, env=dict(os.environ) | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(out.read_text())


HF_LAYOUTS = ("tp2_pp2", "tp2_dp2", "pp2_dp2_vp2_plain", "pp4")


@pytest.fixture(scope="module")
def hf_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Random models as transformers writes them: Qwen2 with tied and with own output weights, and Qwen3."""
    from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

    sizes = {"vocab_size": 320, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4}
    sizes |= {
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
    }
    made = {
        "qwen2": Qwen2ForCausalLM(Qwen2Config(**sizes, tie_word_embeddings=True)),
        "qwen2_untied": Qwen2ForCausalLM(Qwen2Config(**sizes, tie_word_embeddings=False)),
        "qwen3": Qwen3ForCausalLM(Qwen3Config(**sizes, head_dim=16, tie_word_embeddings=True)),
    }
    folder = tmp_path_factory.mktemp("hf")
    for name, model in made.items():
        for parameter_name, parameter in model.named_parameters():
            if "norm" in parameter_name or "bias" in parameter_name:
                parameter.data.add_(torch.randn_like(parameter) * 0.3)
        model.save_pretrained(folder / name, max_shard_size="100KB")
    return {name: folder / name for name in made}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, hf_folders: dict[str, Path]) -> Found:
    """Every layout and every move, and the reference "alone"."""
    folder = tmp_path_factory.mktemp("layouts")
    sources = {source for source, _ in MOVES}
    alone = work([task("alone", "", folder, 1, 3), task("save ", "", folder, 1, 2, save="one")], 1, folder)
    four = [task(name, name, folder, 1, 3) for name in LAYOUTS]
    four += [task(f"save {name}", name, folder, 1, 2, save=name) for name in sorted(sources - {""})]
    four += [task(f"{a or 'one'} -> {b}", b, folder, 3, 3, load=a or "one") for a, b in MOVES if b]
    for name, hf in hf_folders.items():
        for layout in HF_LAYOUTS:
            places = {"hf": str(hf), "save": str(hf.with_name(f"{name} {layout}"))}
            four.append(task(f"{name} {layout}", layout, folder, 0, 0) | places)
    back = [task(f"{a} -> one", "", folder, 3, 3, load=a) for a, b in MOVES if not b]
    return {"folder": {"path": str(folder)}} | alone | work(four, 4, folder) | work(back, 1, folder)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_training_steps_are_the_same(found: Found, layout: str) -> None:
    ours, alone = found[layout], found["alone"]
    assert ours["loss"] == pytest.approx(alone["loss"], rel=2e-6)
    assert ours["grad_norm"] == pytest.approx(alone["grad_norm"], rel=5e-6)
    assert ours["count"] == alone["count"]
    losses = alone["loss"]
    assert losses[0] - losses[2] > 0.1  # so that an update that did nothing would show


@pytest.mark.parametrize("layout", LAYOUTS)
def test_logits_and_samples_are_the_same(found: Found, layout: str) -> None:
    ours, alone = found[layout], found["alone"]
    assert [x for row in ours["logits"] for x in row] == pytest.approx(
        [x for row in alone["logits"] for x in row], abs=2e-5
    )
    assert ours["samples"] == alone["samples"]
    for group, reference in zip(ours["logprobs"], alone["logprobs"], strict=True):
        for logprobs, theirs in zip(group, reference, strict=True):
            assert logprobs == pytest.approx(theirs, abs=2e-5)


@pytest.mark.parametrize(("source", "target"), MOVES)
def test_a_run_goes_on_under_another_layout(found: Found, source: str, target: str) -> None:
    moved, alone = found[f"{source or 'one'} -> {target or 'one'}"], found["alone"]
    assert moved["loss"] == pytest.approx(alone["loss"][2:], rel=2e-6)
    assert moved["grad_norm"] == pytest.approx(alone["grad_norm"][2:], rel=5e-6)
    assert moved["samples"] == alone["samples"]


@pytest.mark.parametrize("source", sorted({source or "one" for source, _ in MOVES}))
def test_a_checkpoint_written_beside_training_is_the_same(found: Found, source: str) -> None:
    """Bit for bit what a save that training waits for writes, though the weights have changed since."""
    folder = Path(found["folder"]["path"])
    waited, beside = (folder / name / "step_000002" for name in (source, f"{source} beside"))
    names = {path.name for path in waited.iterdir()}
    assert names == {path.name for path in beside.iterdir()} >= {"common.pt", "__0_0.distcp", "manifest.json"}
    for name in names - {".metadata", "manifest.json"}:  # they hold the save's own number
        assert (waited / name).read_bytes() == (beside / name).read_bytes(), name


@pytest.mark.parametrize("layout", ["tp2_cp2", "pp2_cp2_vp2_full", "cp4"])
def test_packed_samples_do_not_see_each_other(found: Found, layout: str) -> None:
    """Changing one token of the first sample of a row changes its own logits only, under context parallelism too."""
    inside, outside = found[layout]["contamination"]
    assert inside > 1e-2
    assert outside == 0.0


@pytest.mark.parametrize("layout", HF_LAYOUTS)
@pytest.mark.parametrize("name", ["qwen2", "qwen2_untied", "qwen3"])
def test_hugging_face_weights_in_and_out(found: Found, hf_folders: dict[str, Path], name: str, layout: str) -> None:
    from transformers import AutoModelForCausalLM

    original = AutoModelForCausalLM.from_pretrained(hf_folders[name], dtype=torch.float32)
    with torch.no_grad():
        theirs = original(torch.arange(11)[None]).logits[0]
    torch.testing.assert_close(torch.tensor(found[f"{name} {layout}"]["logits"]), theirs, rtol=0, atol=1e-4)
    before, after = (
        tensors_of(folder) for folder in (hf_folders[name], hf_folders[name].with_name(f"{name} {layout}"))
    )
    assert before.keys() == after.keys()
    for tensor_name, tensor in before.items():
        assert torch.equal(tensor, after[tensor_name]), tensor_name


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) > 1
    return {name: tensor for file in files for name, tensor in load_file(file).items()}
