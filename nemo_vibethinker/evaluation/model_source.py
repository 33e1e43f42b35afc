"""What `eval.model` names: a Hugging Face model, or a model of one of our runs."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from nemo_vibethinker.data.readers.files import is_hub_name
from nemo_vibethinker.pipeline import absolute_outputs, starting_artefacts
from nemo_vibethinker.run_folder import Artefact, RunFolder, hash_path

_NEEDED = ("tokenizer", "base_model")  # what a model of a run is built from, besides its weights


@dataclass(frozen=True)
class HfModel:
    """A Hugging Face folder, or a model of the hub."""

    name: str


@dataclass(frozen=True)
class RunModel:
    """A model of a run: by label such as `fused`, or by the folder of its checkpoint; neither: the last."""

    run: Path
    label: str = ""
    checkpoint: Path | None = None


def model_source(text: str) -> HfModel | RunModel:
    """Tell a Hugging Face folder, a run folder, `RUN:MODEL`, a checkpoint folder of a run, and a hub name apart.

    Raises:
        ValueError: it is none of these.
    """
    path = Path(text)
    if (path / "config.json").is_file():
        return HfModel(str(path.resolve()))
    before, _, label = text.rpartition(":")
    if _is_run(path) or (label and _is_run(Path(before))):
        return RunModel(path.resolve()) if _is_run(path) else RunModel(Path(before).resolve(), label)
    if path.is_dir():
        for parent in path.resolve().parents:
            if _is_run(parent):
                return RunModel(parent, path.name, path.resolve())
    if is_hub_name(text) and ":" not in text:
        return HfModel(text)
    raise ValueError(
        f"model={text}: no Hugging Face folder (config.json), run (config.yaml), checkpoint in a run, or hub name"
    )


def _is_run(path: Path) -> bool:
    return (path / "config.yaml").is_file()


def model_artefacts(text: str, verify: bool) -> dict[str, Artefact]:
    """The inputs of an evaluate stage for `eval.model`: `hf_model`, or a run's `tokenizer` and `model.LABEL`.

    Raises:
        ValueError: it names no model; of a run, one that has no such model (yet).
    """
    source = model_source(text)
    if isinstance(source, HfModel):
        folder = Path(source.name)
        digest = hash_path(folder) if folder.exists() else hashlib.sha256(source.name.encode()).hexdigest()
        return {"hf_model": Artefact(source.name, digest)}
    run = RunFolder.load(source.run)
    found = starting_artefacts(run.config, verify)
    for stage in run.config.stages:
        if manifest := run.read_manifest(stage, verify, report=lambda _: None):
            found |= absolute_outputs(run, manifest)
    if "tokenizer" not in found:
        raise ValueError(f"model={text}: the run {source.run} has no tokenizer yet; its stage prepare has to be done")
    needed = {name: found[name] for name in _NEEDED if name in found}
    return needed | _chosen(text, source, found)


def _chosen(text: str, source: RunModel, found: dict[str, Artefact]) -> dict[str, Artefact]:
    if source.checkpoint:
        return {f"model.{source.label}": Artefact(str(source.checkpoint), hash_path(source.checkpoint))}
    labels = [name.removeprefix("model.") for name in found if name.startswith("model.")]
    label = source.label or (labels[-1] if labels else "")
    if label not in labels:
        raise ValueError(f"model={text}: the run has {', '.join(labels) or 'no finished model'}")
    return {f"model.{label}": found[f"model.{label}"]}
