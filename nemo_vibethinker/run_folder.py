"""The folder of a run: what is written there is written atomically, what is read there is checked.

Imports neither torch nor Megatron, so that the launcher can tell what is done in milliseconds.
"""

import dataclasses
import fcntl
import hashlib
import importlib.metadata
import io
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import nemo_vibethinker
from nemo_vibethinker.atomic_files import atomic_write_text
from nemo_vibethinker.config import Config, flatten, load_config, to_yaml
from nemo_vibethinker.config.rollout import OPERATION

REFERENCE = "reference.yaml"  # in a run folder: its recipe as the files have it, before the command line's keys
COMMIT_FILE = "COMMIT"  # beside the packages in a copy of the code: the commit that it was made from
LOCK_POLL_S = 1.0
LOCK_VARIABLE = "NVT_RUN_LOCK"  # set by a launcher that holds the lock of this run folder for its workers


def append_json_line(path: Path, record: Mapping[str, Any]) -> None:
    """Append one JSON line; after a line that a kill has torn, start on a fresh one.

    Processes of several hosts may append to one file: a lock keeps their lines apart, on network file systems too,
    where O_APPEND alone does not.
    """
    with open(path, "ab+", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        write_json_line(file, record)


def write_json_line(file: io.FileIO, record: Mapping[str, Any]) -> None:
    """`append_json_line` to a file that is open for reading and appending, without a lock of its own."""
    torn = False
    if file.seek(0, os.SEEK_END) > 0:
        file.seek(-1, os.SEEK_END)
        torn = file.read(1) != b"\n"
    line = b"\n" * torn + json.dumps(record).encode() + b"\n"
    while line:
        line = line[file.write(line) :]


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file. Lines torn by a kill are left out; no file reads as no lines."""
    if not path.exists():
        return []
    records = []
    for line in path.read_bytes().splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            records.append(record)
    return records


def hash_path(path: Path) -> str:
    """SHA-256 (hex) of a file's content, or of a folder's sorted relative file paths and their contents.

    Raises:
        FileNotFoundError: nothing is there.
    """
    if not path.is_dir():
        return _hash_file(path)
    digest = hashlib.sha256()
    for file in sorted(entry for entry in path.rglob("*") if entry.is_file()):
        digest.update(f"{file.relative_to(path).as_posix()}\0{_hash_file(file)}\n".encode())
    return digest.hexdigest()


def _hash_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Artefact:
    """A file or folder with its content hash. `path` is relative to the run folder, or absolute outside it."""

    path: str
    sha256: str


@dataclass(kw_only=True)
class Manifest:
    """What a finished stage read, wrote and cost. Its presence says that the stage is done."""

    stage: str
    inputs: dict[str, Artefact]
    outputs: dict[str, Artefact]
    metrics: dict[str, Any]
    seconds: float  # wall time over all attempts
    gpu_hours: float  # hours times processes over all attempts; process-hours where device is cpu
    device: str  # cpu | gpu
    config_hash: str
    versions: dict[str, str]
    status: str = "done"

    @classmethod
    def from_json(cls, text: str) -> "Manifest":
        """Parse `to_json`'s text.

        Raises:
            ValueError, TypeError, KeyError: torn or written by another version.
        """
        fields = json.loads(text)
        for side in ("inputs", "outputs"):
            fields[side] = {name: Artefact(**artefact) for name, artefact in fields[side].items()}
        return cls(**fields)

    def to_json(self) -> str:
        """JSON text, indented."""
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"


class RunFolder:
    """Paths, manifests and the lock of one run."""

    def __init__(self, path: Path, config: Config) -> None:
        self.path = path.resolve()
        self.config = config
        self._locks: list[IO[str]] = []

    @classmethod
    def load(cls, path: Path) -> "RunFolder":
        """Open an existing run folder.

        Raises:
            ValueError: `path` is not a run folder.
        """
        if not (path / "config.yaml").is_file():
            raise ValueError(f"{path} is not a run folder: it has no config.yaml")
        return cls(path, load_config(path / "config.yaml"))

    def stage_folder(self, stage: str) -> Path:
        """`stages/<nn>-<stage>`, nn the stage's index in the run's list of stages."""
        return self.path / "stages" / f"{self.config.stages.index(stage):02d}-{stage}"

    def resolve(self, artefact: Artefact) -> Path:
        """Absolute path of an artefact."""
        return self.path / artefact.path

    def artefact(self, path: Path) -> Artefact:
        """Hash what is at `path`.

        Raises:
            FileNotFoundError: nothing is there.
        """
        return self.relative(Artefact(str(path.resolve()), hash_path(path)))

    def relative(self, artefact: Artefact) -> Artefact:
        """The artefact with its path relative to the run folder where it lies inside."""
        path = self.resolve(artefact)
        inside = path.is_relative_to(self.path)
        return Artefact(path.relative_to(self.path).as_posix() if inside else str(path), artefact.sha256)

    def lock(self) -> None:
        """Take the run for this process, until it ends or calls `unlock`.

        Raises:
            ValueError: another process works on this run.
        """
        self._take(".lock", exclusive=True)

    def lock_stage(self, stage: str, part: str = "", wait_s: float = 0.0) -> None:
        """Take one stage, or one part of it, and keep the run from whoever wants it whole.

        Parts of a stage may be worked on at the same time, a stage and a part of it may not.

        Args:
            wait_s: how long to wait for a lock; that of a process whose machine died may outlive it on a file server.

        Raises:
            ValueError: another process works on it, or has the whole run.
        """
        self._take(".lock", exclusive=False, wait_s=wait_s)
        self._take(f".lock.{stage}", exclusive=not part, wait_s=wait_s)
        if part:
            self._take(f".lock.{stage}.{part.replace('/', '-of-')}", exclusive=True, wait_s=wait_s)

    def _take(self, name: str, *, exclusive: bool, wait_s: float = 0.0) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        file = open(self.path / name, "a+")  # noqa: SIM115 (kept open: the lock lives as long as the file)
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(file, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() < deadline:
                    time.sleep(LOCK_POLL_S)
                    continue
                file.seek(0)
                holder = file.read().strip() or "another process"
                file.close()
                self.unlock()
                raise ValueError(f"{self.path} is in use by {holder}; wait for it or choose run.name=OTHER") from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}\n")
        file.flush()
        self._locks.append(file)

    def unlock(self) -> None:
        """Let another process have the run."""
        for file in self._locks:
            file.close()
        self._locks.clear()

    @property
    def lock_descriptor(self) -> int:
        """File descriptor of the lock, for a child process that shall keep the run taken."""
        assert self._locks, "the run is not locked"
        return self._locks[0].fileno()

    def read_manifest(
        self, stage: str, verify: bool = True, report: Callable[[str], None] | None = None
    ) -> Manifest | None:
        """The manifest of a finished stage, or None where the stage has to run.

        Args:
            stage: name of the stage.
            verify: hash the outputs; ranks other than the main one trust its check.
            report: called with one line that says what is wrong with a manifest that is there (default: print).
        """
        report = report or _print
        file = self.stage_folder(stage) / "manifest.json"
        if not file.is_file():
            return None
        try:
            manifest = Manifest.from_json(file.read_text())
        except (ValueError, TypeError, KeyError):
            report(f"{stage}: its manifest is unreadable; the stage runs again")
            return None
        fault = self._fault(manifest) if verify else None
        if fault:
            report(f"{stage}: {fault}; the stage runs again")
        return None if fault else manifest

    def _fault(self, manifest: Manifest) -> str | None:
        if manifest.config_hash != config_hash(self.config):
            return "it was made with another configuration"
        for name, artefact in manifest.outputs.items():
            path = self.resolve(artefact)
            if not path.exists():
                return f"its output {name} is missing ({artefact.path})"
            if hash_path(path) != artefact.sha256:
                return f"its output {name} has changed ({artefact.path})"
        return None

    def write_manifest(self, manifest: Manifest) -> None:
        """Declare the stage done. The last write of a stage."""
        atomic_write_text(self.stage_folder(manifest.stage) / "manifest.json", manifest.to_json())

    def begin_stage(self, stage: str, inputs: Mapping[str, Artefact]) -> Path:
        """The stage's folder, ready to run: as an interrupted attempt on the same inputs left it, else empty.

        Checkpoints that were made from other inputs, or whose declared outputs no longer hold, must not be
        resumed from: they are moved to `<run>/replaced/`.
        """
        with open(self.path / ".begin", "w") as file:  # parts of a stage may begin at the same time
            fcntl.flock(file, fcntl.LOCK_EX)
            return self._begin_stage(stage, inputs)

    def _begin_stage(self, stage: str, inputs: Mapping[str, Artefact]) -> Path:
        folder = self.stage_folder(stage)
        marker = folder / "started.json"
        hashes = {name: artefact.sha256 for name, artefact in sorted(inputs.items())}
        started = json.dumps({"config_hash": config_hash(self.config), "inputs": hashes}, indent=1)
        declared_done = (folder / "manifest.json").exists()
        if declared_done or not marker.is_file() or marker.read_text() != started:
            self._move_aside(folder)
            folder.mkdir(parents=True, exist_ok=True)
            atomic_write_text(marker, started)
        return folder

    def _move_aside(self, folder: Path) -> None:
        if not folder.exists() or not any(folder.iterdir()):
            return
        replaced = self.path / "replaced" / folder.name
        shutil.rmtree(replaced, ignore_errors=True)
        replaced.parent.mkdir(exist_ok=True)
        folder.rename(replaced)
        _print(f"{folder.name}: what an earlier attempt left there is now in {replaced}")


def _print(line: str) -> None:
    print(line, flush=True)


def config_hash(config: Config) -> str:
    """Hash of all keys that decide a run's results."""
    return hashlib.sha256(json.dumps(_compared(config), sort_keys=True).encode()).hexdigest()


def _compared(config: Config) -> dict[str, Any]:
    operation = tuple(f"rollout.{key}" for key in OPERATION)
    watching = ("budget.", "eval.batch", "debug.save_rollouts", "loggers")
    no_result = ("run.root", "run.name", "cluster.", *watching, *operation)
    return {key: value for key, value in flatten(config).items() if not key.startswith(no_result)}


def code_version() -> dict[str, str]:
    """Versions of this package and of the libraries that decide its numbers; the git commit in a checkout."""
    versions = {"nemo_vibethinker": nemo_vibethinker.__version__, "python": platform.python_version()}
    for package in ("torch", "megatron-core", "transformers"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions | {"commit": git_commit()}


def git_commit() -> str:
    """Commit of the checkout that this file is part of, or of which it is a copy; "none" outside one."""
    root = Path(__file__).resolve().parent.parent
    if (root / COMMIT_FILE).is_file():
        return (root / COMMIT_FILE).read_text().strip()
    if not (root / ".git").exists() or shutil.which("git") is None:
        return "none"
    git = ["git", "-C", str(root)]
    head = subprocess.run([*git, "rev-parse", "--verify", "-q", "HEAD"], capture_output=True, text=True)
    changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True)
    return (head.stdout.strip() or "none") + ("-dirty" if changed.stdout.strip() else "")


def open_run(config: Config, reference: Config | None = None) -> RunFolder:
    """Create the run's folder or open it again, and lock it for this process.

    `reference`, the recipe without the command line's keys, is kept for the report.

    The stored configuration follows changes of `run.root`, `run.name`, `cluster.*`, `budget.*` and `loggers`, which
    decide no result.

    Raises:
        ValueError: the folder holds a run with another configuration, or is no run folder, or is in use.
    """
    run = RunFolder(config.run_folder, config)
    stored = run.path / "config.yaml"
    if run.path.exists() and not stored.is_file() and any(not e.name.startswith(".") for e in run.path.iterdir()):
        raise ValueError(f"{run.path} exists and is not a run folder; choose run.name=OTHER")
    run.lock()
    if stored.is_file():
        earlier = load_config(stored)
        _refuse_other_config(run.path, earlier, config)
        if flatten(earlier) == flatten(config):
            return run
    atomic_write_text(stored, _header() + to_yaml(config))
    if reference is not None and not (run.path / REFERENCE).exists():
        atomic_write_text(run.path / REFERENCE, to_yaml(reference))
    return run


def _header() -> str:
    versions = ", ".join(f"{name} {version}" for name, version in code_version().items())
    return f"# {versions}\n# {shlex.join(sys.argv)}\n"


def _refuse_other_config(path: Path, stored: Config, given: Config) -> None:
    before, after = _compared(stored), _compared(given)
    changed = [key for key in sorted(before | after) if before.get(key) != after.get(key)]
    if changed:
        lines = "".join(f"\n  {key}: {before.get(key)} -> {after.get(key)}" for key in changed)
        raise ValueError(
            f"{path} holds a run with another configuration (stored -> given):{lines}\n"
            "  give this one a name of its own, run.name=OTHER, or delete the folder"
        )
