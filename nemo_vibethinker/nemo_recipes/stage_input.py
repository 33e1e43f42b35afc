"""What a training stage of a run folder reads, for a process that did not run the stages before it."""

from pathlib import Path

from nemo_vibethinker.config import Config
from nemo_vibethinker.pipeline import absolute_outputs, starting_artefacts
from nemo_vibethinker.run_folder import RunFolder


def stage_config(run_dir: str, stage: str) -> Config:
    """The configuration of the run in `run_dir`.

    Raises:
        ValueError: it is no run folder, has no such stage, or a layout that the recipes do not offer.
    """
    config = RunFolder.load(Path(run_dir)).config
    if stage not in config.stages:
        raise ValueError(f"{run_dir} has no stage '{stage}'; it has: {', '.join(config.stages)}")
    if config.scale.parallel.virtual_pipeline > 1:
        raise ValueError("the NeMo recipes have no interleaved schedule; set scale.parallel.virtual_pipeline=1")
    return config


def stage_inputs(run_dir: str, stage: str) -> dict[str, Path]:
    """Artefact name -> path, of all stages before `stage`.

    Raises:
        ValueError: one of them is not done.
    """
    run = RunFolder.load(Path(run_dir))
    artefacts = starting_artefacts(run.config, verify=False)
    for before in run.config.stages[: run.config.stages.index(stage)]:
        manifest = run.read_manifest(before, verify=False)
        if manifest is None:
            raise ValueError(f"stage {before} of {run_dir} is not done; run it first: --stage {before}")
        artefacts |= absolute_outputs(run, manifest)
    return {name: Path(artefact.path) for name, artefact in artefacts.items()}


def stage_output(run_dir: str, stage: str) -> Path:
    """Where a recipe writes what it makes of `stage`: apart from the pipeline's own stage folders."""
    return Path(run_dir) / "nemo" / stage
