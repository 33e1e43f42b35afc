"""Responses and verdicts to and from the result files of other harnesses, where a plain mapping exists.

    python -m nemo_vibethinker.evaluation.exchange export --from runs/NAME --layout lm-eval --out exported
    python -m nemo_vibethinker.evaluation.exchange import --file samples.jsonl --layout lm-eval --out outputs.jsonl

One row is one response. Export writes a file for each model and benchmark; import writes what
`evaluation.selfcheck` reads. What a layout has no place for (our provenance, reasons of verdicts) stays in scores.json.

| ours      | lm-eval: samples_TASK.jsonl | lighteval: details_TASK.parquet  | matharena: .parquet, .jsonl |
|-----------|-----------------------------|----------------------------------|-----------------------------|
| problem   | doc.id (doc_id: its number) | doc.id up to the last "#"        | problem_idx                 |
| number    | doc.sample                  | doc.id after the last "#"        | idx_answer                  |
| prompt    | arguments.gen_args_0.arg_0  | doc.query                        | user_message, problem       |
| reference | target                      | doc.choices[doc.gold_index]      | gold_answer                 |
| response  | resps[0][0]                 | model_response.text[0]           | answer                      |
| verdict   | exact_match (0 or 1)        | metric.extractive_match (0 or 1) | correct                     |
| tokens    | -                           | -                                | output_tokens               |

Import takes any name of a metric of lm-eval (as its `metrics` says) and of lighteval, if the row has one response and
one metric, 0 or 1: a mean over several responses is no verdict on any of them. Ungraded responses are not exported.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_vibethinker.atomic_files import atomic_write_text
from nemo_vibethinker.command import run_command
from nemo_vibethinker.data.readers.files import file_rows
from nemo_vibethinker.data.records import Record
from nemo_vibethinker.evaluation.folders import evaluation_folder
from nemo_vibethinker.evaluation.samples import SampleFolder, SampleRow, sample_folders

NAME = "nemo_vibethinker.evaluation.exchange"
Row = dict[str, Any]


@dataclass(frozen=True)
class Layout:
    """How another harness writes a graded response: to its row, and back to a line of `evaluation.selfcheck`."""

    file: str  # of a model and a benchmark
    write: Callable[[str, str, int, Record, SampleRow], Row]
    read: Callable[[Row], Row]


def _to_lm_eval(model: str, task: str, number: int, record: Record, row: SampleRow) -> Row:
    return {
        "doc_id": number,
        "doc": {"id": record.id, "sample": row.sample, "problem": record.prompt, "answer": record.answer},
        "target": record.answer,
        "arguments": {"gen_args_0": {"arg_0": record.prompt, "arg_1": {}}},
        "resps": [[row.response]],
        "filtered_resps": [row.response],
        "filter": "none",
        "metrics": ["exact_match"],
        "exact_match": float(row.verdict == "right"),
    }


def _from_lm_eval(row: Row) -> Row:
    responses = row["resps"][0] if row["resps"] else []
    names = row.get("metrics") or [name for name in ("exact_match", "acc") if name in row]
    values = {name: next((row[key] for key in row if key.partition(",")[0] == name), None) for name in names}
    document = row.get("doc") or {}
    identity = document.get("id", row["doc_id"])
    suffix = f"/{document['sample']}" if "sample" in document else ""
    return _line(f"{identity}{suffix}", row["target"], responses, values)


def _to_lighteval(model: str, task: str, number: int, record: Record, row: SampleRow) -> Row:
    document = {"query": record.prompt, "choices": [record.answer], "gold_index": 0, "task_name": task}
    return {
        "doc": document | {"id": f"{record.id}#{row.sample}"},
        "model_response": {"text": [row.response], "input": record.prompt},
        "metric": {"extractive_match": float(row.verdict == "right")},
    }


def _from_lighteval(row: Row) -> Row:
    document = row["doc"]
    gold = document["gold_index"]
    gold = gold[0] if isinstance(gold, list) else gold
    identity = "/".join(str(document["id"]).rsplit("#", 1))
    return _line(identity, document["choices"][gold], row["model_response"]["text"], row["metric"])


def _to_matharena(model: str, task: str, number: int, record: Record, row: SampleRow) -> Row:
    return {
        "problem_idx": record.id,
        "problem": record.prompt,
        "model_name": model,
        "idx_answer": row.sample,
        "user_message": record.prompt,
        "answer": row.response,
        "output_tokens": row.tokens,
        "gold_answer": record.answer,
        "correct": row.verdict == "right",
    }


def _from_matharena(row: Row) -> Row:
    return _line(f"{row['problem_idx']}/{row['idx_answer']}", row["gold_answer"], [row["answer"]], {"": row["correct"]})


def _line(identity: str, gold: Any, responses: Sequence[str], metrics: Row) -> Row:
    known = {name: value for name, value in metrics.items() if value is not None}
    if len(responses) != 1:
        raise ValueError(f"{len(responses)} responses in one row; only a row of one response has a verdict of its own")
    if len(known) != 1 or next(iter(known.values())) not in (0, 1):
        raise ValueError(f"needs one metric that is 0 or 1, not {known or 'none'}")
    correct = bool(next(iter(known.values())))
    return {"id": str(identity), "gold": str(gold), "response": responses[0], "correct": correct}


LAYOUTS = {
    "lm-eval": Layout("samples_{benchmark}.jsonl", _to_lm_eval, _from_lm_eval),
    "lighteval": Layout("details_{benchmark}.parquet", _to_lighteval, _from_lighteval),
    "matharena": Layout("{benchmark}.parquet", _to_matharena, _from_matharena),
}


def export_folder(folder: SampleFolder, layout: Layout, out: Path) -> tuple[Path, int]:
    """Write the responses of one model to one benchmark. Returns the file and how many ungraded ones it lacks."""
    model, benchmark = folder.provenance().model, folder.folder.name
    numbers = {record.id: (number, record) for number, record in enumerate(folder.problems())}
    rows, ungraded = [], 0
    for row in folder.rows():
        if row.verdict == "ungraded":
            ungraded += 1
        else:
            rows.append(layout.write(model, benchmark, *numbers[row.id], row))
    file = out / folder.folder.parent.name / layout.file.format(benchmark=benchmark)
    file.parent.mkdir(parents=True, exist_ok=True)
    _write(file, rows)
    return file, ungraded


def _write(file: Path, rows: Sequence[Row]) -> None:
    if file.suffix == ".jsonl":
        atomic_write_text(file, "".join(json.dumps(row) + "\n" for row in rows))
        return
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), file)


def import_file(file: Path, layout: Layout) -> Iterator[Row]:
    """The lines for `evaluation.selfcheck`; ValueError names a row that has no verdict of its own."""
    for number, row, reason, _ in file_rows(file):
        try:
            if reason:
                raise ValueError(reason)
            yield layout.read(row)
        except KeyError as error:
            raise ValueError(f"{file}, row {number}: no field {error.args[0]}; is --layout right?") from None
        except (ValueError, TypeError, IndexError) as error:
            raise ValueError(f"{file}, row {number}: {error}") from None


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {NAME}", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    out = commands.add_parser("export", help="our responses as another harness writes its own")
    out.add_argument("--from", dest="source", type=Path, required=True, metavar="RUN", help="run or evaluation folder")
    into = commands.add_parser("import", help="another harness's responses for evaluation.selfcheck")
    into.add_argument("--file", type=Path, required=True)
    for command, what in ((out, "folder for the files"), (into, "file to write")):
        command.add_argument("--layout", choices=list(LAYOUTS), required=True)
        command.add_argument("--out", type=Path, required=True, help=what)
    options = parser.parse_args(arguments)
    return run_command(NAME, lambda: _export(options) if options.command == "export" else _import(options))


def _export(options: argparse.Namespace) -> None:
    for folder in sample_folders(evaluation_folder(options.source)):
        file, ungraded = export_folder(folder, LAYOUTS[options.layout], options.out)
        print(f"{file}{f': {ungraded:,} ungraded responses left out' if ungraded else ''}")


def _import(options: argparse.Namespace) -> None:
    if not options.file.is_file():
        raise ValueError(f"--file {options.file}: no such file")
    lines = list(import_file(options.file, LAYOUTS[options.layout]))
    atomic_write_text(options.out, _json_lines(lines))
    print(
        f"{options.out}: {len(lines):,} responses; next: python -m nemo_vibethinker.evaluation.selfcheck --outputs it"
    )


def _json_lines(lines: Iterable[Row]) -> str:
    return "".join(json.dumps(line) + "\n" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
