"""The stages in order: skip what is done, resume what was interrupted, run again what no longer fits its inputs.

    python -m nemo_vibethinker.pipeline --run-dir runs/NAME [--stage STAGE [--part 1/4]]      (or under torchrun)

Several processes may each do a part of a stage that tries one model after the other; the stage itself, started after
them, finds their results and puts them together.

This module imports torch and Megatron only when a stage runs, so the launcher can ask what is done.
"""

import argparse
import contextlib
import copy
import ctypes
import errno
import hashlib
import importlib
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from nemo_vibethinker import interruption
from nemo_vibethinker.accounts import account
from nemo_vibethinker.budget_watch import BudgetWatch, write_plan
from nemo_vibethinker.config import Config
from nemo_vibethinker.data.readers.files import is_hub_name
from nemo_vibethinker.evaluation.protocols import chosen_benchmarks
from nemo_vibethinker.interruption import Interrupted
from nemo_vibethinker.ledger import Ledger, summarise
from nemo_vibethinker.loggers import Mirror
from nemo_vibethinker.metrics_log import STAGE_WIDTH, MetricsLog
from nemo_vibethinker.run_folder import (
    LOCK_VARIABLE,
    Artefact,
    Manifest,
    RunFolder,
    code_version,
    config_hash,
    hash_path,
)

PR_SET_PDEATHSIG = 1  # linux/prctl.h


PARTED = ("probe", "evaluate")  # stages that several jobs can share


@dataclass(frozen=True)
class Part:
    """Items `index`, `index` + `count`, ... of a stage."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> "Part":
        """`2/4`: the second of four.

        Raises:
            ValueError: not of that form.
        """
        number, _, count = text.partition("/")
        if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
            raise ValueError(f"--part {text}: expected NUMBER/COUNT, like 2/4")
        return cls(int(number) - 1, int(count))

    def __str__(self) -> str:
        return f"{self.index + 1}/{self.count}"


@dataclass(frozen=True, kw_only=True)
class StageContext:
    """What a stage needs besides its configuration, inputs and folder."""

    stage: str
    is_main: bool  # the rank that writes files and prints
    attempt: int  # from 1, as the main rank counts; from 2 on, the folder may hold what the one before left
    ledger: Ledger
    metrics_path: Path | None
    mirror: Callable[[Mapping[str, Any]], None] | None = None  # of every metrics line, for the optional loggers
    part: Part | None = None  # what of the stage to do; it has a result only when it is done as a whole
    watch: BudgetWatch | None = None  # on the main rank

    def is_mine(self, index: int) -> bool:
        """Whether item `index` (from 0) of those that the stage tries one after the other is to be done here."""
        return self.part is None or index % self.part.count == self.part.index

    def say(self, text: str) -> None:
        """Print a line under the stage's name, on the main rank."""
        if self.is_main:
            print(f"{self.stage:<{STAGE_WIDTH}}  {text}", flush=True)

    def metrics_log(self, total_steps: int, start_step: int = 0) -> MetricsLog:
        """The metrics of this attempt; `start_step` is the step of the checkpoint it resumes from."""
        return MetricsLog(
            self.metrics_path,
            self.stage,
            total_steps,
            self.ledger,
            start_step,
            mirror=self.mirror,
            part=str(self.part or ""),
            watch=self.watch,
        )

    def stop_requested(self) -> Interrupted | None:
        """Whether to stop between two steps: what to raise once the stage has saved what it resumes from.

        All ranks call it together and get the same answer.
        """
        return _agreed(interruption.poll())


@dataclass(frozen=True, kw_only=True)
class StageResult:
    """Artefact name -> path of what a stage made; and its figures, JSON values."""

    outputs: dict[str, Path]
    metrics: dict[str, Any]


StageFunction = Callable[[Config, dict[str, Path], Path, StageContext], StageResult]


def _agreed(request: Interrupted | None) -> Interrupted | None:
    if world_size() == 1:
        return request
    from nemo_vibethinker.megatron.distributed import first_of_all_ranks

    return first_of_all_ranks(request)


def is_main() -> bool:
    """Whether this process is rank 0; known before any process group exists."""
    return os.environ.get("RANK", "0") == "0"


def world_size() -> int:
    """Number of processes that torchrun started, 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def run_stages(
    run: RunFolder,
    only: str | None = None,
    stage_functions: Mapping[str, StageFunction] | None = None,
    *,
    part: Part | None = None,
    replicas: int | None = None,
) -> None:
    """Run the stages that are not done.

    Args:
        run: the opened run.
        only: run just this stage; those before it must be done.
        part: of `only`: do this part, and leave it to a later call to put the parts together.
        replicas: number of model replicas in place of `scale.parallel.data`; for stages that do not train.
        stage_functions: used in place of the modules in `nemo_vibethinker.stages`, and of Megatron's process groups.

    Raises:
        ValueError: `only` is not a stage of this run, or one before it is not done, or run.from_run does not hold, or a
            logger's package is not installed.
    """
    if only is not None and only not in run.config.stages:
        raise ValueError(f"{run.path} has no stage '{only}'; it has: {', '.join(run.config.stages)}")
    with contextlib.closing(_Runner(run, stage_functions, replicas)) as runner:
        artefacts = starting_artefacts(run.config, verify=is_main())
        for stage in run.config.stages:
            inputs = stage_inputs(run.config, stage, artefacts)
            manifest = runner.finished(stage, inputs, required=only not in (None, stage))
            if manifest is None and part is not None and stage == only:
                runner.run_part(stage, inputs, part)
                return
            if manifest is None:
                manifest = runner.run(stage, inputs)
            elif is_main():
                print(f"{stage:<{STAGE_WIDTH}}  done earlier ({manifest.seconds:.1f} s)", flush=True)
            artefacts = artefacts | absolute_outputs(run, manifest)
            if stage == only:
                return


def survey(run: RunFolder, report: Callable[[str], None] | None = None) -> dict[str, Manifest | None]:
    """Stage -> its manifest where it still holds. Every stage after one that has to run counts as to be run.

    Writes nothing. `report` gets one line about each manifest that no longer holds (default: print).
    """
    artefacts = starting_artefacts(run.config)
    found: dict[str, Manifest | None] = dict.fromkeys(run.config.stages)
    for stage in run.config.stages:
        manifest = reusable_manifest(run, stage, stage_inputs(run.config, stage, artefacts), report)
        if manifest is None:
            break
        found[stage] = manifest
        artefacts = artefacts | absolute_outputs(run, manifest)
    return found


def starting_artefacts(config: Config, verify: bool = True) -> dict[str, Artefact]:
    """The outputs of `run.from_run` and of the runs that it started from, with absolute paths.

    Raises:
        ValueError: it is no run folder, has a stage that is not done, another architecture, or no such
            `run.from_model`.
    """
    if config.eval.model is not None:
        from nemo_vibethinker.evaluation.model_source import model_artefacts  # which reads runs as this module does

        return model_artefacts(config.eval.model, verify)
    if config.run.from_run is None:
        return {}
    source = RunFolder.load(Path(config.run.from_run))
    if source.config.scale.model != config.scale.model:
        raise ValueError(f"run.from_run={config.run.from_run} has another scale.model; give this run the same")
    artefacts = starting_artefacts(source.config, verify)
    for stage in source.config.stages:
        manifest = source.read_manifest(stage, verify)
        if manifest is None:
            raise ValueError(
                f"run.from_run={config.run.from_run}: its stage {stage} is not done; finish that run first"
            )
        artefacts |= absolute_outputs(source, manifest)
    return artefacts if config.run.from_model is None else _policy_from(config.run.from_model, artefacts)


def _policy_from(label: str, artefacts: dict[str, Artefact]) -> dict[str, Artefact]:
    """The artefacts with model `label` as the policy, without the models that came after it."""
    labels = [name.removeprefix("model.") for name in artefacts if name.startswith("model.")]
    if label not in labels:
        raise ValueError(f"run.from_model={label}: that run has {', '.join(labels) or 'no model'}")
    later = {f"model.{name}" for name in labels[labels.index(label) + 1 :]}
    kept = {name: artefact for name, artefact in artefacts.items() if name not in later}
    return kept | {"policy": artefacts[f"model.{label}"]}


def stage_inputs(config: Config, stage: str, artefacts: Mapping[str, Artefact]) -> dict[str, Artefact]:
    """Inputs of a stage: the outputs of all stages before it; of `prepare` and `evaluate` also the user's data files.

    Raises:
        ValueError: a data file is missing.
    """
    if stage == "evaluate":
        named = {f"eval.{name}.path": config.eval.path(name) for name in chosen_benchmarks(config.eval)}
        return dict(artefacts) | {name: _dataset(name, path) for name, path in named.items() if path}
    if stage != "prepare":
        return dict(artefacts)
    data = config.data
    named = {"data.sft": data.sft, "data.rl": data.rl}
    for name, paths in (("data.probe", data.probe), ("data.evaluation", data.evaluation)):
        named |= {f"{name}.{number}": path for number, path in enumerate(paths)}
    return dict(artefacts) | {name: _dataset(name, path) for name, path in named.items() if path}


def _dataset(name: str, path: str) -> Artefact:
    """A dataset by its content; one of the hub by its name alone."""
    if is_hub_name(path):
        return Artefact(path, hashlib.sha256(path.encode()).hexdigest())
    if not Path(path).exists():
        raise ValueError(f"{name}={path}: no such file or folder")
    return Artefact(str(Path(path).resolve()), hash_path(Path(path)))


def absolute_outputs(run: RunFolder, manifest: Manifest) -> dict[str, Artefact]:
    """The outputs of a finished stage, with absolute paths."""
    return {name: Artefact(str(run.resolve(output)), output.sha256) for name, output in manifest.outputs.items()}


def reusable_manifest(
    run: RunFolder, stage: str, inputs: Mapping[str, Artefact], report: Callable[[str], None] | None = None
) -> Manifest | None:
    """The stage's manifest, if its outputs are intact and were made from these very inputs."""
    manifest = run.read_manifest(stage, report=report)
    if manifest is None:
        return None
    before = {name: artefact.sha256 for name, artefact in manifest.inputs.items()}
    now = {name: artefact.sha256 for name, artefact in inputs.items()}
    changed = sorted(name for name in before | now if before.get(name) != now.get(name))
    if changed:
        (report or print)(f"{stage}: its input {', '.join(changed)} changed; the stage runs again")
    return None if changed else manifest


class _Runner:
    """Runs single stages; every rank takes part in every call."""

    def __init__(
        self, run: RunFolder, functions: Mapping[str, StageFunction] | None, replicas: int | None = None
    ) -> None:
        self._run = run
        self._config = copy.deepcopy(run.config)
        self._config.scale.parallel.data = replicas or run.config.scale.parallel.data
        self._functions = functions
        self._mirror = Mirror(run) if run.config.loggers and is_main() else None
        self._ready = functions is not None  # process groups are set up
        if world_size() > 1:
            self._set_up()
        device = "cpu" if functions is not None else _device()
        self._ledger = Ledger(run.path / "ledger.jsonl" if is_main() else None, world_size(), device)
        self._watch = BudgetWatch(run.config, run.path, self._ledger) if is_main() else None

    def close(self) -> None:
        """End the optional loggers."""
        if self._mirror:
            self._mirror.close()

    def finished(self, stage: str, inputs: Mapping[str, Artefact], required: bool) -> Manifest | None:
        """The manifest of a stage that need not run. The main rank decides, the others see what it left."""
        manifest = None
        if is_main():
            manifest = reusable_manifest(self._run, stage, inputs)
            if manifest is None and required:
                raise ValueError(f"stage {stage} of {self._run.path} is not done; run it first: --stage {stage}")
            if manifest is None:
                self._run.begin_stage(stage, inputs)
        self._barrier()
        return manifest if is_main() else self._run.read_manifest(stage, verify=False)

    def run(self, stage: str, inputs: dict[str, Artefact]) -> Manifest:
        """Run a stage; its manifest is written when every rank has finished."""
        outputs: dict[str, Artefact] = {}
        metrics: dict[str, Any] = {}
        self._begin(stage)
        with self._ledger.attempt(stage):
            result = self._call(stage, inputs)
            self._barrier()
            if result and is_main():
                folder = self._run.stage_folder(stage)
                assert folder not in result.outputs.values(), f"{stage}: its whole folder would hold its own manifest"
                outputs = {name: self._run.artefact(path) for name, path in result.outputs.items()}
                metrics = result.metrics
        if is_main():
            self._run.write_manifest(self._manifest(stage, inputs, outputs, metrics))
        self._barrier()
        manifest = self._run.read_manifest(stage, verify=False)
        assert manifest is not None
        return manifest

    def run_part(self, stage: str, inputs: dict[str, Artefact], part: Part) -> None:
        """Do a part of a stage; what it leaves in the stage's folder is its result."""
        self._begin(stage)
        with self._ledger.attempt(stage, str(part)):
            self._call(stage, inputs, part)
            self._barrier()
        if is_main():
            print(f"{stage:<{STAGE_WIDTH}}  part {part} done", flush=True)

    def _begin(self, stage: str) -> None:
        if self._watch:
            self._watch.begin(stage)
        if request := _agreed(interruption.poll()):  # it came after the last step of the stage before
            raise request
        interruption.stop_polling()

    def _call(self, stage: str, inputs: dict[str, Artefact], part: Part | None = None) -> StageResult | None:
        if stage == "prepare" and not is_main():
            return None
        if stage != "prepare":
            self._set_up()
        context = StageContext(
            stage=stage,
            is_main=is_main(),
            attempt=self._ledger.attempt_number,
            ledger=self._ledger,
            metrics_path=self._run.path / "run.jsonl" if is_main() else None,
            mirror=self._mirror.log if self._mirror else None,
            part=part,
            watch=self._watch,
        )
        function = self._functions[stage] if self._functions is not None else _load_stage(stage)
        paths = {name: Path(artefact.path) for name, artefact in inputs.items()}
        return function(self._config, paths, self._run.stage_folder(stage), context)

    def _manifest(
        self, stage: str, inputs: dict[str, Artefact], outputs: dict[str, Artefact], metrics: dict[str, Any]
    ) -> Manifest:
        assert self._ledger.path is not None
        cost = next(cost for cost in summarise(self._ledger.path) if cost.stage == stage)
        print(f"{stage:<{STAGE_WIDTH}}  done in {cost.seconds:.1f} s", flush=True)
        return Manifest(
            stage=stage,
            inputs={name: self._run.relative(artefact) for name, artefact in inputs.items()},
            outputs=outputs,
            metrics=metrics,
            seconds=cost.seconds,
            gpu_hours=cost.process_hours,
            device=cost.device,
            config_hash=config_hash(self._run.config),
            versions=code_version(),
        )

    def _set_up(self) -> None:
        if not self._ready:
            from nemo_vibethinker.megatron.distributed import initialize

            initialize(self._config)
            self._ready = True

    def _barrier(self) -> None:
        if world_size() > 1:
            from nemo_vibethinker.megatron.distributed import barrier

            barrier()


def _device() -> str:
    import torch

    return "gpu" if torch.cuda.is_available() else "cpu"


def _load_stage(stage: str) -> StageFunction:
    return importlib.import_module(f"nemo_vibethinker.stages.{stage.split('.')[0]}").run


LOCK_WAIT_S = 120.0  # in a job of a scheduler: for locks of an attempt whose machine has died


def run_worker(run_dir: Path, only: str | None = None, part: Part | None = None, replicas: int | None = None) -> None:
    """Run the stages of the run in `run_dir`, or `only` one of them, or a part of it; then write its report.

    Raises:
        ValueError: a user's mistake, in one line.
    """
    run = RunFolder.load(run_dir)
    if part is not None and only not in PARTED:
        raise ValueError(f"--part goes with --stage {' or '.join(PARTED)}")
    if is_main() and os.environ.get(LOCK_VARIABLE) != str(run.path):
        if only:
            wait_s = LOCK_WAIT_S if "SLURM_JOB_ID" in os.environ else 0.0
            run.lock_stage(only, str(part or ""), wait_s)
        else:
            run.lock()
    if is_main():
        write_plan(run.config, run.path)
        if "SLURM_JOB_ID" in os.environ:
            account(run.path / "ledger.jsonl")
    run_stages(run, only, part=part, replicas=replicas)
    if is_main() and part is None and only in (None, run.config.stages[-1]):
        from nemo_vibethinker.report import write_report

        _link_final_model(run)
        write_report(run.path)


def _link_final_model(run: RunFolder) -> None:
    """`hf` in the run folder, a link to the exported model."""
    manifest = run.read_manifest("export", verify=False) if "export" in run.config.stages else None
    if manifest is None:
        return
    temporary = run.path / ".hf.new"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(manifest.outputs["hf"].path)
    os.replace(temporary, run.path / "hf")


def stage_main(module_file: str) -> NoReturn:
    """Command line of a stage module: `python -m nemo_vibethinker.stages.sft --run-dir runs/NAME [--stage sft]`."""
    module = Path(module_file).stem
    parser = _parser(f"python -m nemo_vibethinker.stages.{module}")
    parser.add_argument("--stage", default=module, help=f"stage of the run to work on (default: {module})")
    arguments = parser.parse_args()
    if arguments.stage.split(".")[0] != module:
        parser.error(f"--stage {arguments.stage} is not a {module} stage")
    sys.exit(_work(arguments))


def main(argv: list[str] | None = None) -> int:
    """The worker's command line. Returns the exit code."""
    parser = _parser("python -m nemo_vibethinker.pipeline", "Run a run's stages.")
    parser.add_argument("--stage", help="run this stage alone (default: all)")
    return _work(parser.parse_args(argv))


def _parser(program: str, description: str | None = None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=program, description=description)
    parser.add_argument("--run-dir", type=Path, required=True, help="folder with the run's config.yaml")
    parser.add_argument("--part", help="NUMBER/COUNT, like 2/4: this share of a probe or evaluate stage alone")
    parser.add_argument("--replicas", type=int, help="of the model, for a stage that does not train (default: all)")
    return parser


def _work(arguments: argparse.Namespace) -> int:
    def work() -> None:
        part = Part.parse(arguments.part) if arguments.part else None
        run_worker(arguments.run_dir, arguments.stage, part, arguments.replicas)

    return guarded(work)


def guarded(work: Callable[[], None]) -> int:
    """Run a process's work: exit code 0, 2 (a user's mistake or a full disk, one line), 1 (a fault, traceback), or that
    of an `Interrupted`.

    Signals are handled as `interruption` says; under torchrun the death of the agent ends the process at once.
    """
    interruption.handle_signals(main=is_main())
    if "LOCAL_RANK" in os.environ:  # torchrun gives its workers sessions of their own
        die_with_parent(signal.SIGKILL)
    try:
        work()
    except Interrupted as stop:
        if is_main():
            print(f"{stop.reason}: what was done is saved; {stop.advice}", file=sys.stderr, flush=True)
        return stop.exit_code
    except ValueError as error:
        if not _raised_here(error):
            traceback.print_exc()
            return 1
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            traceback.print_exc()
            return 1
        where = f" ({error.filename})" if error.filename else ""
        where += "" if error.strerror == os.strerror(error.errno) else f": {error.strerror}"
        print(f"error: no space left on device{where}; free some, the same command resumes", file=sys.stderr)
        return 2
    except Exception:
        traceback.print_exc()
        return 1
    return 0


def _raised_here(error: BaseException) -> bool:
    """Whether our own code raised it. A library's ValueError is a fault, whose traceback is needed."""
    frames = list(traceback.walk_tb(error.__traceback__))
    return (frames[-1][0].f_globals.get("__package__") or "").split(".")[0] in ("nemo_vibethinker", "launcher")


def die_with_parent(number: signal.Signals = signal.SIGTERM) -> None:
    """Have the kernel send this process a signal when its parent dies, however it dies."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:  # died in between
        os.kill(os.getpid(), number)


if __name__ == "__main__":
    from nemo_vibethinker import pipeline  # the stages import this module under its own name; run that copy

    sys.exit(pipeline.main())
