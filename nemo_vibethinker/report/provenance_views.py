"""What fixes a run: its command, versions, configuration against the reference, and every artefact's hash."""

from typing import Any

from nemo_vibethinker.config import Config, flatten
from nemo_vibethinker.report.gather import RunData

_PLACE = ("run.root", "run.name")


def facts(run: RunData) -> list[tuple[str, str]]:
    """Name and value of what fixes the run besides its configuration."""
    found = [("run folder", str(run.path)), ("seed", str(run.config.seed))]
    versions = {name: version for manifest in run.manifests.values() for name, version in manifest.versions.items()}
    found += sorted(versions.items()) if versions else [("versions", run.header[0])] if run.header else []
    if run.config.run.from_run:
        found.append(("starts from", run.config.run.from_run))
    return found


def command(run: RunData) -> str:
    """The exact command that began the run; empty where config.yaml has no header."""
    return run.header[1] if len(run.header) > 1 else ""


def hashes(run: RunData) -> list[tuple[str, str, str]]:
    """(stage, artefact, SHA-256): what a stage read from outside the run, and what it wrote."""
    made: set[str] = set()
    rows = []
    for stage, manifest in run.manifests.items():
        outside = [item for item in manifest.inputs.values() if item.sha256 not in made]
        rows += [(stage, f"reads {item.path}", item.sha256) for item in outside]
        rows += [(stage, item.path, item.sha256) for item in manifest.outputs.values()]
        made |= {item.sha256 for item in (*manifest.outputs.values(), *manifest.inputs.values())}
    return rows


def differences(reference: Config, config: Config) -> list[tuple[str, str, str]]:
    """(key, reference's value, this run's value) where they differ; the run's place left out."""
    before, after = flatten(reference), flatten(config)
    keys = [key for key in (before | after) if key not in _PLACE and before.get(key) != after.get(key)]
    return [(key, _shown(before.get(key)), _shown(after.get(key))) for key in keys]


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)


def reference_name(config: Config) -> str:
    """How the reference is called on the command line."""
    return f"recipe={config.recipe} scale={config.scale.name} cluster={config.cluster.name}"
