"""A first look at a dataset: its format, what can be used of it, and how long its texts are."""

import argparse
import itertools
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from typing import cast

from nemo_vibethinker.command import run_command
from nemo_vibethinker.data.lengths import QUANTILES, Lengths, bars
from nemo_vibethinker.data.readers.dataset import Dataset
from nemo_vibethinker.data.readers.fields import Kind
from nemo_vibethinker.data.readers.formats import FORMATS
from nemo_vibethinker.data.reasons import Reasons
from nemo_vibethinker.data.records import record_to_json
from nemo_vibethinker.progress import Progress

_BATCH = 1000  # texts measured at a time
_EPILOG = """\
examples:
  python -m nemo_vibethinker.data.readers gsm8k/train.jsonl
  python -m nemo_vibethinker.data.readers OpenR1-Math-220k/data --kind sft --tokenizer Qwen2.5-Math-1.5B --head 2
  python -m nemo_vibethinker.data.readers open-r1/Mixture-of-Thoughts:math --kind sft --limit 1000

known formats, told by the columns of the first row:
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the look; 2 where the dataset or the tokenizer cannot be used."""
    parser = _parser()
    options = parser.parse_args(arguments)
    return run_command(parser.prog, lambda: _look(options))


def _parser() -> argparse.ArgumentParser:
    rules = "\n".join(f"  {known.name:<18} {known.rule}" for known in FORMATS)
    parser = argparse.ArgumentParser(
        prog="python -m nemo_vibethinker.data.readers",
        description=__doc__,
        epilog=_EPILOG + rules,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("path", help="a file, a folder of files, or owner/name[:config[:split]] of the hub")
    parser.add_argument("--kind", choices=("sft", "rl"), help="what it is for (default: only prompts are asked for)")
    parser.add_argument("--head", type=int, default=0, metavar="N", help="print the first N records (default: 0)")
    parser.add_argument("--limit", type=int, metavar="N", help="look at the first N rows only (default: all)")
    parser.add_argument("--tokenizer", metavar="FOLDER", help="measure in its tokens (default: in characters)")
    return parser


def _look(options: argparse.Namespace) -> None:
    measure = _token_counter(options.tokenizer) if options.tokenizer else _characters
    dataset = Dataset(options.path)
    reasons, domains, lengths = Reasons(), Counter[str](), {"prompt": Lengths(), "response": Lengths()}
    rows, head = 0, options.head
    progress = Progress(f"reading {options.path}")
    stream = itertools.islice(dataset.rows(cast(Kind | None, options.kind)), options.limit)
    while batch := list(itertools.islice(stream, _BATCH)):
        records = [row.record for row in batch if row.record]
        for record in records[:head]:
            print(record_to_json(record))
        head = max(0, head - len(records))
        domains.update(record.domain for record in records)
        lengths["prompt"].add(measure([record.prompt for record in records]))
        lengths["response"].add(measure([record.response for record in records if record.response]))
        for row in batch:
            if not row.record:
                reasons.add(row.line, row.id, row.reason)
        rows += len(batch)
        progress.advance(len(batch))
    _print_look(options, dataset, rows, domains, reasons)
    for name, values in lengths.items():
        _print_lengths(name, values, "tokens" if options.tokenizer else "characters")


def _characters(texts: list[str]) -> list[int]:
    return [len(text) for text in texts]


def _token_counter(folder: str) -> Callable[[list[str]], list[int]]:
    from nemo_vibethinker.data.tokenizer import encode_texts, load_tokenizer

    tokenizer = load_tokenizer(folder)
    return lambda texts: [len(tokens) for tokens in encode_texts(tokenizer, texts)]


def _print_look(
    options: argparse.Namespace, dataset: Dataset, rows: int, domains: Counter[str], reasons: Reasons
) -> None:
    purpose = f" for {options.kind}" if options.kind else ""
    print(f"format    {dataset.format or 'unknown'}" + (f", files: {len(dataset.files)}" if dataset.files else ""))
    print(f"records   {rows:,} read, {rows - reasons.total:,} usable{purpose}, {reasons.total:,} dropped")
    print(f"domains   {', '.join(f'{name} {count:,}' for name, count in domains.most_common()) or 'none'}")
    for line in reasons.lines():
        print(f"dropped   {line}")


def _print_lengths(name: str, values: Lengths, unit: str) -> None:
    summary = values.summary()
    if summary:
        shown = ", ".join(f"{key} {summary[key]:,}" for key in (*(f"p{q}" for q in QUANTILES), "max"))
        print(f"{name:<9} {shown} {unit}; records by length, each line up to:")
        print("\n".join(bars(summary["histogram"])))


if __name__ == "__main__":
    sys.exit(main())
