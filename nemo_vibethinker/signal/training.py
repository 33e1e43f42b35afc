"""A reinforcement-learning stage under way: the loop over its steps, its guards and its resume points."""

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from nemo_vibethinker.atomic_files import atomic_write_text
from nemo_vibethinker.config import Config, MgpoConfig
from nemo_vibethinker.data.records import Record
from nemo_vibethinker.megatron.checkpoint import load_resume_point, resume_points, save_model, save_resume_point
from nemo_vibethinker.megatron.checkpoint_saver import CheckpointSaver
from nemo_vibethinker.megatron.distributed import broadcast_object, largest_of_all_ranks
from nemo_vibethinker.megatron.optimizer import build_optimizer
from nemo_vibethinker.model.qwen2 import wrap_for_training
from nemo_vibethinker.rollout.megatron_engine import MegatronEngine
from nemo_vibethinker.rollout.responses import Sampler, check_groups, check_ungraded
from nemo_vibethinker.signal import loop
from nemo_vibethinker.signal.entropy_target import next_coefficient
from nemo_vibethinker.signal.guards import ROLLOUT_GUARDS, STEP_GUARDS, Alarm, remember
from nemo_vibethinker.signal.metrics import StepTimer, rollout_metrics, update_metrics
from nemo_vibethinker.signal.progress import Progress
from nemo_vibethinker.signal.prompts import PromptQueue
from nemo_vibethinker.signal.reference import Reference
from nemo_vibethinker.signal.reference_kl import reference_step
from nemo_vibethinker.signal.rollout_files import load_rollout, save_rollout
from nemo_vibethinker.signal.samples import Rollout
from nemo_vibethinker.signal.stage_switch import has_levelled_off
from nemo_vibethinker.signal.watch import Watch
from nemo_vibethinker.spectrum.pass_at_k import pass_at_k

if TYPE_CHECKING:
    from nemo_vibethinker.pipeline import StageContext


class Training:
    """The policy, its optimizer, and how far the stage is.

    Args:
        policy: checkpoint that the stage begins with; the model holds its weights.
        folder: the stage's.
        replayed: folder of the same stage of another run, whose saved rollouts take the place of sampling.
    """

    def __init__(
        self,
        config: Config,
        stage: MgpoConfig,
        sampler: Sampler,
        policy: Path,
        folder: Path,
        context: "StageContext",
        saver: CheckpointSaver,
        replayed: Path | None = None,
    ) -> None:
        self.config, self.stage, self.sampler, self.folder, self.context = config, stage, sampler, folder, context
        self.saver, self.replayed, self.chunks = saver, replayed, sampler.engine.chunks
        self.ddp = wrap_for_training(config, self.chunks)
        self.optimizer = build_optimizer(self.ddp, stage.optimizer)
        interval = stage.reference_interval
        self.reference = Reference(self.ddp, policy, folder / "reference", interval) if stage.kl_coef else None
        self.progress = Progress()

    def run(self, queue: PromptQueue, held_out: list[Record]) -> Progress:
        """Take steps until all are done or the stage has levelled off.

        Raises:
            RuntimeError: a guard stops the run, or too much is left ungraded.
            Interrupted: a stop was requested; what is done is saved.
        """
        self.resume()
        self.progress.recent.pop("host_memory_mb", None)  # of another process
        queue.drawn = self.progress.drawn
        self.log = self.context.metrics_log(self.stage.steps, self.progress.step)
        stop = self.context.stop_requested()
        while self.progress.step < self.stage.steps and not has_levelled_off(self.stage, self.progress):
            if stop:
                raise stop
            self.step(queue, held_out)
            stop = self.context.stop_requested()
            if stop or self.is_save_due():
                self.save()
            self.saver.poll()
        if self.progress.step < self.stage.steps:
            self.context.say(f"step {self.progress.step}: validation and truncation are level; the stage ends here")
        return self.progress

    def step(self, queue: PromptQueue, held_out: list[Record]) -> None:
        """Generate, grade, weigh, update; then take note of it, or go back."""
        step = self.progress.step + 1
        timer, watch = StepTimer(self.sampler), Watch(self.config.guards, self.progress, self.report)
        rollout = self.generate(queue, step)
        figures = rollout_metrics(rollout, self.stage)
        check_ungraded(figures["ungraded_share"], self.config.reward.max_ungraded_share, figures["ungraded_reasons"])
        watch.look(ROLLOUT_GUARDS, figures)
        figures |= self.update(rollout, step, watch, timer)
        figures["host_memory_mb"] = largest_of_all_ranks(psutil.Process().memory_info().rss / 1e6)
        watch.look(STEP_GUARDS, figures)
        if watch.action == "stop":
            raise RuntimeError(f"step {step}: {watch.worst}: stopped. The last resume point is kept")
        if watch.action == "rollback":
            self.roll_back(queue.drawn, watch)
            return
        figures |= self.take_note(step, queue.drawn, figures, watch) | self.validate(step, held_out)
        tokens = figures["response_length"] * figures["prompts"] * self.stage.group_size
        shares = timer.metrics(tokens, self.config.world_size)
        self.log.log(step, **figures, **shares, **self.sampler.metrics())

    def generate(self, queue: PromptQueue, step: int) -> Rollout:
        """Graded and weighed responses of the policy as it is; after a rollback other ones than those undone."""
        if self.replayed is not None:
            return loop.weigh(*load_rollout(self.replayed / "rollouts", step, queue.by_id), self.stage)
        rollbacks = self.progress.rollbacks
        again = (f"rollback {rollbacks}",) if rollbacks else ()
        self.sampler.sync(", ".join((f"step {step - 1}", *again)))
        rollout = loop.collect(self.sampler, queue, self.stage, self.context.stage, step, *again)
        self.sampler.engine.release()
        if self.config.debug.save_rollouts:
            save_rollout(self.folder / "rollouts", step, rollout)
        return rollout

    def update(self, rollout: Rollout, step: int, watch: Watch, timer: StepTimer) -> dict[str, float]:
        """The step's optimizer updates, as far as the guards permit them."""
        if watch.forbids_update or self.config.debug.rollout_only:
            return {}
        began = time.monotonic()
        if self.reference is not None:
            self.reference.prepare(step)
        results = loop.update(
            self.ddp,
            self.optimizer,
            rollout,
            self.stage,
            step,
            permit=watch.permits,
            engine_is_trainer=self.engine_is_trainer,
            entropy_coefficient=self.progress.entropy_coefficient,
            reference=self.reference,
        )
        timer.updated(time.monotonic() - began)
        self.progress.weights_version += sum(result.applied for result in results)
        return update_metrics(results)

    @property
    def engine_is_trainer(self) -> bool:
        """Whether the log-probs of the samples are the trainer's own, so that nothing has to be corrected."""
        if self.stage.recompute_logprobs is not None:
            return not self.stage.recompute_logprobs
        return isinstance(self.sampler.engine, MegatronEngine)

    def take_note(self, step: int, drawn: int, figures: dict[str, Any], watch: Watch) -> dict[str, float]:
        """The step has come to its end: take it into the running statistics. Returns what is to be logged of them."""
        progress, stage = self.progress, self.stage
        progress.step, progress.drawn = step, drawn
        progress.truncated.append(figures["truncated_share"])
        if not watch.forbids_update:
            remember(figures, progress)
        if not stage.entropy_target or "entropy" not in figures:
            return {}
        used = progress.entropy_coefficient
        progress.entropy_coefficient = next_coefficient(
            used,
            figures["entropy"],
            target=stage.entropy_target,
            rate=stage.entropy_rate,
            ceiling=stage.entropy_ceiling,
        )
        return {"entropy_coefficient": used}

    def validate(self, step: int, held_out: list[Record]) -> dict[str, float]:
        """pass@1 on held-out prompts by the evaluation's sampling, where due; the best policy so far is kept.

        Every time with the same random numbers, so that scores differ by the policy alone.
        """
        due = self.stage.validate_interval and step % self.stage.validate_interval == 0
        if not due or self.replayed is not None:
            return {}
        sampling, samples = self.config.evaluate.sampling, self.stage.validate_samples
        self.sampler.sync(f"step {step}")
        groups = self.sampler.sample_all(held_out, samples, sampling, self.context.stage, "validate")
        check_groups(groups, self.config.reward.max_ungraded_share)
        verdicts = [[r.verdict.is_right for r in group.responses if r.verdict.is_graded] for group in groups]
        shares = [pass_at_k(len(rights), sum(rights), 1) for rights in verdicts if rights]
        score, before = sum(shares) / len(shares), self.progress.best
        self.progress.validation.append((step, score))
        if before is None or score > before[1]:
            save_model(self.chunks, best_folder(self.folder, step), self.saver)
        return {"validation_pass_at_1": score}

    def report(self, alarm: Alarm) -> None:
        """One line on the console and in run.jsonl for each guard that fires."""
        figures = {"guard": alarm.guard, "value": alarm.value, "limit": alarm.limit, "action": alarm.action}
        self.log.event(self.progress.step + 1, "guard", f"{alarm}; action: {alarm.action}", **figures)

    # Resume points

    def is_save_due(self) -> bool:
        """Whether the finished step is one that resume points are written after; of the last one the model is."""
        return self.progress.step % self.stage.save_interval == 0 and self.progress.step < self.stage.steps

    def resume(self) -> None:
        """Go on from the last resume point. A stage that begins writes one first, so that there always is one.

        Raises:
            ValueError: it is damaged, or its progress is missing.
        """
        folder = self.folder / "resume"
        if not broadcast_object(bool(resume_points(folder))):
            self.save()
        self.saver.wait()
        path = self.progress_file(load_resume_point(self.chunks, self.optimizer, folder))
        text = broadcast_object(path.read_text() if path.exists() else None)
        if text is None:
            raise ValueError(f"{path} is missing; delete {folder} to start this stage again")
        self.progress = Progress.from_json(text)

    def save(self) -> None:
        """Write a resume point: first the progress, then weights and optimizer; then drop what neither needs."""
        step, best, now = self.progress.step, self.progress.best, time.time()
        if self.context.is_main:
            self.progress_file(step).parent.mkdir(exist_ok=True)
            atomic_write_text(self.progress_file(step), self.progress.to_json())

        def drop_older() -> None:
            self.context.ledger.saved(now)
            if self.context.is_main:
                drop_before(step, self.folder / "progress")
                drop_before(reference_step(step + 1, self.stage.reference_interval), self.folder / "reference")
                drop_before(best[0] if best else 0, self.folder / "best")

        save_resume_point(self.chunks, self.optimizer, step, self.folder / "resume", self.saver, drop_older)

    def progress_file(self, step: int) -> Path:
        """Where the progress of a resume point is kept."""
        return self.folder / "progress" / f"step_{step:06d}.json"

    def roll_back(self, drawn: int, watch: Watch) -> None:
        """Back to the last resume point, and on with prompts that were not drawn yet.

        That is kept beside the resume point: a stage that is killed and resumed passes over the same prompts.

        Raises:
            RuntimeError: the stage has used up its rollbacks.
        """
        before, limit = self.progress, self.config.guards.max_rollbacks
        if before.rollbacks >= limit:
            raise RuntimeError(
                f"{watch.worst}: guards.max_rollbacks={limit} are used up. The last resume point is kept"
            )
        self.resume()
        self.progress.drawn, self.progress.rollbacks = drawn, before.rollbacks + 1
        self.progress.actions = before.actions
        if self.context.is_main:
            atomic_write_text(self.progress_file(self.progress.step), self.progress.to_json())
        self.log.event(before.step + 1, "rollback", f"back at step {self.progress.step}, after {drawn} prompts")
        self.log = self.context.metrics_log(self.stage.steps, self.progress.step)


def drop_before(step: int, folder: Path) -> None:
    """Delete what is named for an earlier step in a folder of files or folders `step_N`."""
    for path in folder.glob("step_*"):
        if int(path.stem.removeprefix("step_")) < step:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def best_folder(folder: Path, step: int) -> Path:
    """Where the model of a step is kept that is the best by validation."""
    return folder / "best" / f"step_{step:06d}"
