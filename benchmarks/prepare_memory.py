"""Time and peak memory of the prepare stage and of SFT's data on generated short rows, each in a process of its own.

The RL file has 2,000 rows. Peak memory is that of the process (ru_maxrss).

python benchmarks/prepare_memory.py --rows 50000 200000
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path
from typing import cast

SEQ_LENGTH = 2048


def write_rows(path: Path, rows: int, seed: int) -> None:
    """Problems of ten words with solutions of ten, as JSON lines."""
    rng = random.Random(seed)
    words = ["".join(rng.choices("abcdefghiklmnoprstuw", k=rng.randint(2, 9))) for _ in range(20_000)]
    with path.open("w") as file:
        for number in range(rows):
            prompt, response = " ".join(rng.choices(words, k=9)), " ".join(rng.choices(words, k=9))
            row = {
                "problem": f"{prompt} {number}?",
                "solution": f"{response} \\boxed{{{number}}}",
                "answer": str(number),
            }
            file.write(json.dumps(row) + "\n")


def measure_prepare(data: Path, folder: Path) -> None:
    """Run the stage on `data`; print seconds and peak MB."""
    from nemo_vibethinker.config import Config
    from nemo_vibethinker.pipeline import StageContext
    from nemo_vibethinker.stages import prepare

    config = Config()
    config.data.sft, config.data.rl = str(data), str(data.with_name("rl.jsonl"))
    config.scale.model.max_position_embeddings = config.sft.seq_length = SEQ_LENGTH
    base, began = _peak_mb(), time.monotonic()
    folder.mkdir()
    prepare.run(config, {}, folder, cast(StageContext, types.SimpleNamespace(say=print)))
    print(f"prepare: {time.monotonic() - began:.1f} s, peak {_peak_mb():.0f} MB, of which imports {base:.0f} MB")


def measure_sft(folder: Path) -> None:
    """Open and pack the token files, read a hundred rows; print seconds and peak MB."""
    from nemo_vibethinker.data.packing import PackedData
    from nemo_vibethinker.data.token_files import TokenFile

    base, began = _peak_mb(), time.monotonic()
    data = PackedData(TokenFile(folder / "sft_tokens"), SEQ_LENGTH, 0)
    packed = time.monotonic() - began
    tokens = sum(len(tokens) for row in range(100) for tokens, _ in data.row(row))
    rest = f"100 rows of {tokens:,} tokens in {time.monotonic() - began - packed:.2f} s"
    print(f"sft data: packed in {packed:.1f} s, {rest}, peak {_peak_mb():.0f} MB, of which imports {base:.0f} MB")


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[50_000, 200_000], help="of each set (default: both)")
    parser.add_argument("--step", nargs=3, metavar=("STEP", "DATA", "FOLDER"), help="what a child process runs")
    options = parser.parse_args()
    if options.step:
        step, data, folder = options.step
        measure_prepare(Path(data), Path(folder)) if step == "prepare" else measure_sft(Path(folder))
        return
    for rows in options.rows:
        with tempfile.TemporaryDirectory() as temporary:
            data, folder = Path(temporary) / "rows.jsonl", Path(temporary) / "out"
            write_rows(data, rows, seed=0)
            write_rows(data.with_name("rl.jsonl"), 2_000, seed=1)
            print(f"{rows:,} rows, {data.stat().st_size / 1e6:.0f} MB", flush=True)
            for step in ("prepare", "sft"):
                subprocess.run([sys.executable, __file__, "--step", step, str(data), str(folder)], check=True)


if __name__ == "__main__":
    main()
