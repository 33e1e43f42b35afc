"""A made-up run written by the real pipeline, and a reader of its report, for the report's tests."""

import json
import math
import random
from collections.abc import Callable, Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path

from nemo_vibethinker.config import CODE_DOMAIN, MATH_DOMAINS, Config
from nemo_vibethinker.data.records import Record, write_jsonl
from nemo_vibethinker.evaluation.scores import ProblemSamples, Score, score_samples, scores_to_json
from nemo_vibethinker.pipeline import StageContext, StageFunction, StageResult, run_stages
from nemo_vibethinker.reward.verdict import Kind
from nemo_vibethinker.run_folder import RunFolder, append_json_line, open_run
from nemo_vibethinker.spectrum.pass_at_k import estimate_pass_at_k
from nemo_vibethinker.spectrum.selection import ProbeTable

MODELS = ["sft_last", *(f"specialist.{domain}" for domain in MATH_DOMAINS), "fused"]
MODELS += ["mgpo.math_16k", "mgpo.math_32k", "mgpo.code"]
HOSTILE = "<script>alert('x')</script>"


FUNNEL = {
    "sets": {
        "sft": {
            "read": 1204,
            "kept": 1201,
            "dropped": [{"line": 7, "id": "u-7", "reason": f"no answer {HOSTILE}"}] * 3,
        },
        "rl": {"read": 400, "kept": 400, "dropped": []},
    },
    "overlaps_removed": [{"train_id": "a-1", "held_out_id": "h-9", "shared_text": "what is the area of a square"}],
    "disjoint": True,
}
PROBLEMS = [
    Record(
        id=f"p-{number}",
        domain=("algebra", "geometry", "code")[number % 3],
        prompt=f"Problem {number}: what is {number} + {number}? {HOSTILE}",
        answer=str(2 * number),
    )
    for number in range(12)
]


WORDS = ("therefore", "let", "$x^2$", "wait,", "the", "triangle", "is", "equal", "to", "\\frac{1}{2}\n")


class Page(HTMLParser):
    """What a reader and a browser see of the report."""

    VOID = frozenset({"meta", "link", "br", "hr", "img", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.tags: set[str] = set()
        self.rows: list[list[str]] = []
        self.text = ""
        self.section_text: dict[str, str] = {}
        self.scripts: list[str] = []
        self._open: list[str] = []
        self._section = ""
        self.feed(text)
        self.close()
        assert not self._open, f"unclosed tags: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.tags.add(tag)
        if tag not in self.VOID:
            self._open.append(tag)
        self.ids += [found["id"]] if "id" in found else []
        self.addresses += [found[name] for name in ("href", "src", "action", "data", "poster") if name in found]
        if tag == "script":
            self.scripts.append("")
        if tag == "section":
            self._section = found["id"]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag
        if tag == "section":
            self._section = ""

    def handle_data(self, data: str) -> None:
        if {"style", "script"} & set(self._open):
            if "script" in self._open:
                self.scripts[-1] += data
            return
        self.text += data
        self.section_text[self._section] = self.section_text.get(self._section, "") + data
        if {"td", "th"} & set(self._open):
            self.rows[-1][-1] += data

    def row(self, name: str) -> list[str]:
        """The first table row that begins with `name`."""
        return next(row for row in self.rows if row and row[0].strip() == name)


def small_config(root: Path, **changes: object) -> Config:
    config = Config(**changes)  # type: ignore[arg-type]
    config.run.root = str(root)
    config.sft.steps, config.sft.checkpoint_interval = 60, 20
    return config


def make_probe_table(config: Config, rng: random.Random) -> ProbeTable:
    steps = tuple(range(config.sft.checkpoint_interval, config.sft.steps + 1, config.sft.checkpoint_interval))
    domains, ks = config.probe.domains or list(MATH_DOMAINS), tuple(config.probe.ks)

    def counts(domain: str, step: int) -> list[int]:
        peak = steps[(domains.index(domain) + 1) % len(steps)]
        rate = 0.45 * math.exp(-((step - peak) ** 2) / (0.5 * config.sft.steps**2))
        return [sum(rng.random() < rate * rng.random() for _ in range(config.probe.samples)) for _ in range(32)]

    cells = {}
    for domain in domains:
        cells[domain] = {}
        for step in steps:
            correct = counts(domain, step)
            cells[domain][step] = {k: estimate_pass_at_k(correct, config.probe.samples, k) for k in ks}
    return ProbeTable(domains, steps, ks, cells)


def make_scores(rng: random.Random, models: Sequence[str] = MODELS) -> list[Score]:
    scores: list[Score] = []
    for index, model in enumerate(models):
        problems = []
        for domain in (*MATH_DOMAINS, CODE_DOMAIN):
            rate = 0.25 + 0.05 * index + 0.04 * len(domain) % 0.2
            for _ in range(60):
                verdicts: list[Kind] = ["right" if rng.random() < rate else "wrong" for _ in range(4)]
                lengths = [rng.randint(20, 120) for _ in range(4)]
                problems.append(ProblemSamples(domain, verdicts, lengths, [length > 115 for length in lengths]))
        scores += score_samples(model, problems, (1, 4))
    return scores


def stage_functions(
    rng: random.Random, stop_in: str = "", problems: Sequence[Record] = PROBLEMS, words: int = 0
) -> dict[str, StageFunction]:
    """Stages that write what the real ones write, with made-up figures.

    `stop_in` dies after half of its steps; `words` is about how many words a response has.
    """

    def prepare(config: Config, inputs: dict[str, Path], folder: Path, context: StageContext) -> StageResult:
        (folder / "funnel.json").write_text(json.dumps(FUNNEL))
        write_jsonl(folder / "evaluation.jsonl", problems)
        return StageResult(
            outputs={"funnel": folder / "funnel.json", "evaluation_data": folder / "evaluation.jsonl"}, metrics={}
        )

    def evaluate(config: Config, inputs: dict[str, Path], folder: Path, context: StageContext) -> StageResult:
        (folder / "scores.json").write_text(scores_to_json(make_scores(rng)))
        for model in ("sft_last", "fused", "mgpo.code"):
            lines = [json.dumps(line) + "\n" for line in sample_lines(rng, problems, words)]
            (folder / f"samples_{model}.jsonl").write_text("".join(lines))
        return StageResult(outputs={"scores": folder / "scores.json"}, metrics={})

    def write(name: str, text: Callable[[Config], str]) -> StageFunction:
        def run(config: Config, inputs: dict[str, Path], folder: Path, context: StageContext) -> StageResult:
            (folder / name).write_text(text(config))
            return StageResult(outputs={name.partition(".")[0]: folder / name}, metrics={})

        return run

    def steps(config: Config, inputs: dict[str, Path], folder: Path, context: StageContext) -> StageResult:
        is_sft = context.stage == "sft"
        count = config.sft.steps if is_sft else getattr(config.signal, context.stage.removeprefix("mgpo.")).steps
        log = context.metrics_log(count)
        for step in range(1, count + 1):
            if context.stage == stop_in and step > count // 2:
                raise RuntimeError("the machine is gone")
            log.log(step, **(sft_fields(step, rng) if is_sft else signal_fields(step, count, rng)))
        (folder / "weights").write_text(context.stage)
        return StageResult(outputs={context.stage: folder / "weights"}, metrics={})

    return {
        "prepare": prepare,
        "sft": steps,
        "probe": write("probe_table.json", lambda config: make_probe_table(config, rng).to_json()),
        "fuse": write("weights", lambda config: "fused"),
        **{f"mgpo.{name}": steps for name in ("math_16k", "math_32k", "code")},
        "evaluate": evaluate,
        "export": write("weights", lambda config: "hf"),
    }


def sample_lines(rng: random.Random, problems: Sequence[Record], words: int) -> Iterator[dict[str, str]]:
    """Four responses to each problem; the first problem is never solved, the second always."""
    for number, problem in enumerate(problems):
        for sample in range(4):
            right = number > 0 and (number == 1 or rng.random() < 0.5)
            text = (
                " ".join(rng.choices(WORDS, k=words))
                + f"Response {sample} to {problem.id}. \\boxed{{{problem.answer if right else 'wrong'}}}"
            )
            yield {
                "id": problem.id,
                "response": text + HOSTILE * (number == 2),
                "verdict": "right" if right else "wrong",
                "reason": "" if right else "the answer differs",
            }


def sft_fields(step: int, rng: random.Random) -> dict[str, float]:
    return {"loss": 0.6 + 3 * math.exp(-step / 15) + rng.gauss(0, 0.04), "lr": 1e-3, "grad_norm": rng.random()}


def signal_fields(step: int, count: int, rng: random.Random) -> dict[str, float]:
    reward = 0.3 + 0.3 * step / count + rng.gauss(0, 0.03)
    return {
        "reward": reward,
        "pass_at_8": min(1.0, reward + 0.3),
        "w_me": 0.8 + rng.gauss(0, 0.02),
        "response_length": 60 + step + rng.gauss(0, 3),
        "truncated_share": max(0.0, rng.gauss(0.03, 0.01)),
        "entropy": 0.6 - 0.2 * step / count,
        "mismatch_kl": 7e-4 * math.exp(rng.gauss(0, 0.3)),
        "zero_variance_share": 0.2 + rng.gauss(0, 0.03),
        "grad_norm": 0.5 + rng.random(),
        "p_correct_counts": [3 - 2 * step // count, 4, 2, 1, 1 + 2 * step // count],
        "generate_share": 0.61,
        "update_share": 0.27,
        "grade_share": 0.05,
    }


def charge(run: RunFolder) -> None:
    """A ledger with round figures: an hour a stage, and one killed attempt of half an hour in the first RL stage."""
    ledger = run.path / "ledger.jsonl"
    ledger.unlink()
    now = 1_800_000_000.0
    for stage in run.config.stages:
        if stage == "mgpo.math_16k":
            append_json_line(
                ledger, {"event": "start", "stage": stage, "attempt": 1, "time": now, "processes": 2, "device": "cpu"}
            )
            append_json_line(ledger, {"event": "beat", "stage": stage, "attempt": 1, "time": now + 1800})
        append_json_line(
            ledger, {"event": "start", "stage": stage, "attempt": 2, "time": now, "processes": 2, "device": "cpu"}
        )
        append_json_line(ledger, {"event": "end", "stage": stage, "attempt": 2, "time": now + 3600, "status": "done"})


def finished_run(root: Path, **changes: object) -> RunFolder:
    run = open_run(small_config(root, **changes))
    run_stages(run, stage_functions=stage_functions(random.Random(5)))
    charge(run)
    run.unlock()
    return run
