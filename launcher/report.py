"""`report run.name=NAME`: the page of a run, also of one in flight; `report runs=a,b`; `report headline run.name=NAME`.

Imports no torch.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from launcher.existing_run import KEYS, open_existing, split_words

_LONGEST_NAME = 120


def main(arguments: Sequence[str]) -> int:
    """Write the page and print its path, or print the headline table. Returns 0.

    Raises:
        ValueError: an unknown word or key, or no such run.
    """
    words, given = split_words("report", arguments, (*KEYS, "runs", "out"))
    if words not in ([], ["headline"]):
        raise ValueError(f"report: unknown word {' '.join(words)}; it takes headline, or run.name=NAME, or runs=a,b")
    if words:
        from nemo_vibethinker.evaluation.comparison import format_headline, headline_table

        print(format_headline(headline_table(open_existing("report headline", given).path)))
        return 0
    from nemo_vibethinker.report import write_comparison, write_report

    if "runs" not in given:
        if "out" in given:
            raise ValueError("report: out=FILE goes with runs=a,b; the page of one run lies in its folder")
        print(f"report: {write_report(open_existing('report', given).path)}")
        return 0
    if "run.name" in given:
        raise ValueError("report: give run.name=NAME or runs=a,b, not both")
    folders = [open_existing("report", given | {"run.name": name}).path for name in given["runs"].split(",")]
    print(f"report: {write_comparison(folders, _page(given, folders))}")
    return 0


def _page(given: Mapping[str, str], folders: Sequence[Path]) -> Path:
    """`out`, else a file beside the runs with their names."""
    if given.get("out"):
        return Path(given["out"]).resolve()
    name = "-".join(folder.name for folder in folders)[:_LONGEST_NAME]
    return folders[0].parent / f"comparison-{name}.html"
