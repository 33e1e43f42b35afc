"""Two replicas that train and save beside training; started by torchrun (see test_checkpoint_saver.py).

python tests/saver_worker.py die FOLDER      saves step 2, fails to save step 3, is killed while it saves step 4
python tests/saver_worker.py resume FOLDER   goes on to step 6, and trains the six steps again without a break
"""

# ruff: noqa: E402  (torch is patched before Megatron binds its names)
import json
import resource
import sys
import time
from pathlib import Path

from nemo_vibethinker.megatron.platform import install_cpu_platform

install_cpu_platform()

from layout_worker import VOCAB, configuration, micro_batches
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer

from nemo_vibethinker.config import OptimizerConfig
from nemo_vibethinker.megatron.checkpoint import load_resume_point, save_resume_point
from nemo_vibethinker.megatron.checkpoint_saver import CheckpointSaver
from nemo_vibethinker.megatron.distributed import broadcast_object, data_parallel_rank_and_size, initialize
from nemo_vibethinker.megatron.optimizer import build_optimizer
from nemo_vibethinker.megatron.train_step import train_step
from nemo_vibethinker.model.qwen2 import build_chunks, wrap_for_training
from nemo_vibethinker.stages.sft import sft_loss

Trainer = tuple[list[DistributedDataParallel], MegatronOptimizer]


def trainer() -> Trainer:
    chunks = wrap_for_training(configuration({"parallel.data": 2}), build_chunks(configuration({}), VOCAB))
    return chunks, build_optimizer(chunks, OptimizerConfig(lr=1e-2))


def steps(training: Trainer, first: int, last: int) -> list[float]:
    return [train_step(*training, micro_batches(step), sft_loss).loss for step in range(first, last + 1)]


def fail_to_save(training: Trainer, folder: Path, rank: int) -> str:
    """What a save says of which one rank cannot write its files: the system allows it none over 10,000 bytes."""
    chunks, optimizer = training
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if rank == 0:  # which writes the optimizer state of both replicas
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with CheckpointSaver(in_background=True) as saver:
            save_resume_point([chunk.module for chunk in chunks], optimizer, 3, folder, saver)
            steps(training, 4, 4)
    except RuntimeError as error:
        return str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    return ""


def die(folder: Path) -> None:
    training = trainer()
    rank, _ = data_parallel_rank_and_size()
    modules = [chunk.module for chunk in training[0]]
    with CheckpointSaver(in_background=True) as saver:
        steps(training, 1, 2)
        save_resume_point(modules, training[1], 2, folder / "resume", saver, (folder / f"saved-{rank}").touch)
        while not (folder / f"saved-{rank}").exists():
            saver.poll()
        (folder / f"failed-{rank}").write_text(fail_to_save(training, folder / "resume", rank))
        save_resume_point(modules, training[1], 4, folder / "resume", saver)
        while True:  # without a poll, so that it never ends
            time.sleep(1)


def resume(folder: Path) -> None:
    resumed, whole = trainer(), trainer()
    first = load_resume_point([chunk.module for chunk in resumed[0]], resumed[1], folder / "resume")
    losses = {"first": first, "resumed": steps(resumed, first + 1, 6), "whole": steps(whole, 1, 6)}
    (folder / "losses.json").write_text(json.dumps(losses))
    broadcast_object(None)


if __name__ == "__main__":
    initialize(configuration({"parallel.data": 2}))
    {"die": die, "resume": resume}[sys.argv[1]](Path(sys.argv[2]))
