"""Grade kept responses again, with no new generation.

    python -m nemo_vibethinker.evaluation.regrade --from runs/NAME --out regraded

`--from` is an evaluation folder or a run; `--out` gets the same responses with the verdicts of the present verifier and
their scores. What changed is printed.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from nemo_vibethinker.command import run_command
from nemo_vibethinker.config import CODE_DOMAIN, RewardConfig
from nemo_vibethinker.data.records import Record
from nemo_vibethinker.evaluation.benchmark_scores import score_folder
from nemo_vibethinker.evaluation.benchmarks import load_benchmark
from nemo_vibethinker.evaluation.folders import evaluation_folder, write_scores
from nemo_vibethinker.evaluation.provenance import verifier_version
from nemo_vibethinker.evaluation.samples import SampleFolder, SampleRow, sample_folders
from nemo_vibethinker.progress import Progress
from nemo_vibethinker.reward.grader import Grader
from nemo_vibethinker.reward.math import MathVerifier

NAME = "nemo_vibethinker.evaluation.regrade"
_SLICE = 256  # responses graded between two lines of progress


def regrade_rows(rows: Sequence[SampleRow], records: Sequence[Record], grader: Grader) -> list[SampleRow]:
    """The responses with new verdicts; `records` are the problems, tests included."""
    by_id = {record.id: record for record in records}
    progress = Progress("grading", len(rows), unit="responses")
    graded: list[SampleRow] = []
    for start in range(0, len(rows), _SLICE):
        some = rows[start : start + _SLICE]
        verdicts = grader.grade([by_id[row.id] for row in some], [row.response for row in some])
        graded += [replace(row, verdict=v.kind, reason=v.reason) for row, v in zip(some, verdicts, strict=True)]
        progress.advance(len(some))
    return graded


def problems_with_tests(folder: SampleFolder) -> list[Record]:
    """The problems of a folder of responses; tests of programs are read from the benchmark again.

    Raises:
        ValueError: the benchmark is not where it was, or has changed.
    """
    problems, provenance = folder.problems(), folder.provenance()
    if not any(problem.domain == CODE_DOMAIN for problem in problems):
        return problems
    loaded = load_benchmark(folder.folder.name, provenance.benchmark_source)
    if loaded.sha256 != provenance.benchmark_hash:
        raise ValueError(f"{provenance.benchmark_source} has changed since {folder.folder} was made")
    wanted = {problem.id for problem in problems}
    return [record for record in loaded.records if record.id in wanted]


def regrade(source: Path, out: Path, grader: Grader) -> str:
    """Write the evaluation of `source`, graded again, to `out`. Returns what changed, as text."""
    lines, scores = [], []
    with MathVerifier(boxed_only=True) as verifier:
        for folder in sample_folders(source):
            before, problems = list(folder.rows()), problems_with_tests(folder)
            after = regrade_rows(before, problems, grader)
            copy = SampleFolder(out / folder.folder.relative_to(source))
            copy.begin(problems, replace(folder.provenance(), verifier_version=verifier_version()))
            copy.replace_rows(after)
            scores.append(score_folder(copy, verifier))
            changed = sum(old.verdict != new.verdict for old, new in zip(before, after, strict=True))
            name = folder.folder.relative_to(source / "benchmarks")
            lines.append(f"{name}: {changed:,} of {len(after):,} verdicts changed")
    write_scores(out, scores)
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(prog=f"python -m {NAME}", description="Grade kept responses again.")
    parser.add_argument("--from", dest="source", type=Path, required=True, metavar="FOLDER", help="evaluation or run")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="new evaluation folder")
    parser.add_argument("--workers", type=int, default=2, help="grading processes (default: %(default)s)")
    options = parser.parse_args(arguments)

    def work() -> None:
        if options.out.exists():
            raise ValueError(f"--out {options.out} exists; name a new folder")
        with Grader(RewardConfig(workers=options.workers), options.workers) as grader:
            print(regrade(evaluation_folder(options.source), options.out, grader))
        print((options.out / "scores.txt").read_text().rstrip())

    return run_command(NAME, work)


if __name__ == "__main__":
    sys.exit(main())
