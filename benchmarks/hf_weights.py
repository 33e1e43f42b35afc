"""Time and memory of reading and writing a Hugging Face folder of the paper's size (Qwen2.5-Math-1.5B, random weights).

    python benchmarks/hf_weights.py [--layers 28] [--folder FOLDER]

Each part runs in a process of its own; its peak memory is printed less what its imports took, and as a multiple of the
model's bytes in bf16.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from nemo_vibethinker.config import Config, ModelConfig, ScaleConfig
from nemo_vibethinker.model.hf_folder import HfFolder, hf_config_fields, hf_shapes

VOCAB = 151936


def model_config(layers: int) -> ModelConfig:
    """Qwen2.5-Math-1.5B."""
    return ModelConfig(
        num_layers=layers,
        hidden_size=1536,
        ffn_hidden_size=8960,
        num_attention_heads=12,
        num_query_groups=2,
        max_position_embeddings=4096,
    )


def make(folder: Path, layers: int) -> None:
    """Random weights in bf16, in files of 2 GB."""
    import torch

    from nemo_vibethinker.model.hf_export import write_weights

    model = model_config(layers)
    fields = hf_config_fields(model, VOCAB) | {"architectures": ["Qwen2ForCausalLM"], "use_sliding_window": False}
    (folder / "config.json").write_text(json.dumps(fields))
    shapes = hf_shapes(model, VOCAB).items()
    write_weights(((name, torch.randn(shape, dtype=torch.bfloat16) * 0.02) for name, shape in shapes), folder, 2 << 30)


def measure(folder: Path, layers: int) -> None:
    """Read the folder into a Megatron model, then write it out again, and print what each took."""
    import torch

    from nemo_vibethinker.megatron.platform import install_cpu_platform

    install_cpu_platform()
    from nemo_vibethinker.megatron.distributed import initialize
    from nemo_vibethinker.model.hf_export import write_weights
    from nemo_vibethinker.model.hf_weights import stream_hf_tensors
    from nemo_vibethinker.model.qwen2 import build_chunks

    config = Config(scale=ScaleConfig(model=model_config(layers), precision="bf16"))
    initialize(config)
    imports = peak_bytes()
    start = time.monotonic()
    chunks = build_chunks(config, VOCAB, HfFolder(folder, config.scale.model, VOCAB))
    size = sum(p.nbytes for chunk in chunks for p in chunk.parameters())
    report("read", time.monotonic() - start, peak_bytes() - imports, size)
    start = time.monotonic()
    with tempfile.TemporaryDirectory(dir=folder) as out:
        write_weights(stream_hf_tensors(chunks), Path(out))
        report("write", time.monotonic() - start, peak_bytes() - imports, size)
        for name in hf_shapes(config.scale.model, VOCAB):
            assert torch.equal(HfFolder(folder, config.scale.model, VOCAB)(name), _tensor(Path(out), name)), name
    print("round trip bit-equal")


def _tensor(folder: Path, name: str) -> "object":
    from safetensors import safe_open

    files = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    with safe_open(folder / files[name], framework="pt") as file:
        return file.get_tensor(name)


def peak_bytes() -> int:
    """Peak resident memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def report(what: str, seconds: float, peak: int, size: int) -> None:
    """One line."""
    print(f"{what:6} {size / 1e9:.2f} GB in {seconds:5.1f} s | peak {peak / 1e9:.2f} GB, {peak / size:.2f} x the model")


def main() -> None:
    """Parse the command line; run the parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=28, help="layers; 28 is 1.54 billion parameters (default: 28)")
    parser.add_argument("--folder", type=Path, help="where to put 3 GB twice (default: a temporary folder)")
    parser.add_argument("--part", choices=("make", "measure"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        {"make": make, "measure": measure}[options.part](options.folder, options.layers)
        return
    folder = options.folder or Path(tempfile.mkdtemp(prefix="hf_weights_"))
    folder.mkdir(parents=True, exist_ok=True)
    environment = dict(os.environ) | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    for part in ("make", "measure"):
        command = [sys.executable, __file__, "--part", part, "--layers", str(options.layers), "--folder", str(folder)]
        subprocess.run(command, check=True, env=environment)
    if options.folder is None:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
