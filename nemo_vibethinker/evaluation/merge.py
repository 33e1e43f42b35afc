"""Put the shards of an evaluation together: the score of the whole, exactly.

    python -m nemo_vibethinker.evaluation.merge --out whole runs/evaluate-m-shard0of2 runs/evaluate-m-shard1of2

Each source is a run or an evaluation folder. All shards of each model and benchmark have to be there, made under the
same conditions.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from nemo_vibethinker.command import run_command
from nemo_vibethinker.data.records import Record
from nemo_vibethinker.evaluation.benchmark_scores import score_folder
from nemo_vibethinker.evaluation.folders import evaluation_folder, write_scores
from nemo_vibethinker.evaluation.samples import SampleFolder, refuse_other_conditions, sample_folders
from nemo_vibethinker.reward.math import MathVerifier

NAME = "nemo_vibethinker.evaluation.merge"


def merge(sources: Sequence[Path], out: Path) -> None:
    """Write the merged evaluation to `out`.

    Raises:
        ValueError: a shard is missing or there twice, or was made under other conditions.
    """
    parts: dict[Path, list[SampleFolder]] = {}
    for source in sources:
        for folder in sample_folders(source):
            parts.setdefault(folder.folder.relative_to(source), []).append(folder)
    with MathVerifier(boxed_only=True) as verifier:
        scores = [score_folder(_merged(folders, out / place), verifier) for place, folders in sorted(parts.items())]
    write_scores(out, scores)


def _merged(folders: Sequence[SampleFolder], out: Path) -> SampleFolder:
    shards = _by_index(folders)
    problems = _in_order([shards[index].problems() for index in range(len(shards))])
    whole = SampleFolder(out)
    versions = sorted({folder.provenance().code_version for folder in folders})
    whole.begin(problems, replace(shards[0].provenance(), shard="0/1", code_version="+".join(versions)))
    whole.replace_rows(row for folder in folders for row in folder.rows())
    return whole


def _by_index(folders: Sequence[SampleFolder]) -> Mapping[int, SampleFolder]:
    """Shard number -> its folder, all of them."""
    first = folders[0].provenance()
    count = int(first.shard.partition("/")[2])
    found: dict[int, SampleFolder] = {}
    for folder in folders:
        provenance = folder.provenance()
        refuse_other_conditions(folder.folder, first, provenance, also={"verifier_version"})
        index, _, of = provenance.shard.partition("/")
        if int(of) != count or int(index) in found:
            raise ValueError(
                f"{folder.folder} is shard {provenance.shard}, beside shard {first.shard}: one each is needed"
            )
        found[int(index)] = folder
    if missing := sorted(set(range(count)) - found.keys()):
        raise ValueError(f"{folders[0].folder}: shard {missing[0]}/{count} is missing; name its run too")
    return found


def _in_order(parts: Sequence[Sequence[Record]]) -> list[Record]:
    """Problems as they were before they were dealt out one by one."""
    total = sum(len(part) for part in parts)
    return [parts[number % len(parts)][number // len(parts)] for number in range(total)]


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(prog=f"python -m {NAME}", description="Put the shards of an evaluation together.")
    parser.add_argument("sources", nargs="+", type=Path, metavar="RUN", help="run or evaluation folder of a shard")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="new evaluation folder")
    options = parser.parse_args(arguments)

    def work() -> None:
        if options.out.exists():
            raise ValueError(f"--out {options.out} exists; name a new folder")
        merge([evaluation_folder(source) for source in options.sources], options.out)
        print((options.out / "scores.txt").read_text().rstrip())

    return run_command(NAME, work)


if __name__ == "__main__":
    sys.exit(main())
