"""Runs stages of one run folder by the project's driver and by NeMo's strategy, in NeMo's environment.

python nemo_worker.py driver RUN_DIR STAGE
python nemo_worker.py nemo RUN_DIR STAGE OUT       (several processes: under torchrun)
"""

import json
import os
import sys
from pathlib import Path


def driver(run_dir: str, stage: str) -> None:
    from nemo_vibethinker.pipeline import run_worker

    run_worker(Path(run_dir), stage)


def nemo(run_dir: str, stage: str, out: str) -> None:
    """Train by the recipe, and write what NeMo logged at each step."""
    from nemo_vibethinker.nemo_recipes import recipes  # isort: skip
    import fiddle as fdl
    import lightning.pytorch as pl

    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if stage == "sft":
        recipe = recipes.vibethinker_1p5b_sft(run_dir, gpus_per_node=processes, accelerator="cpu")
    else:
        recipe = recipes.vibethinker_1p5b_mgpo(run_dir, stage, gpus_per_node=processes, accelerator="cpu")
    task = fdl.build(recipe)
    lines: list[dict[str, float]] = []

    class Recorder(pl.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
            lines.append({name: float(value) for name, value in trainer.callback_metrics.items()})

    task.keywords["trainer"].callbacks.append(Recorder())
    task()
    if os.environ.get("RANK", "0") == "0":
        Path(out).write_text(json.dumps(lines))


if __name__ == "__main__":
    {"driver": driver, "nemo": nemo}[sys.argv[1]](*sys.argv[2:])
