"""`run.name=NAME [run.root=PATH]` -> the run folder, for the commands that look at a run that exists."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path

from nemo_vibethinker.config import RunConfig
from nemo_vibethinker.run_folder import RunFolder

KEYS = ("run.name", "run.root")


def split_words(command: str, words: Sequence[str], keys: Sequence[str] = KEYS) -> tuple[list[str], dict[str, str]]:
    """The words without `=`, and the `key=value` ones, of `command`'s arguments.

    Raises:
        ValueError: a key that the command does not know.
    """
    plain = [word for word in words if "=" not in word]
    given = dict(word.split("=", 1) for word in words if "=" in word)
    for key in given:
        if key not in keys:
            raise ValueError(f"{command}: unknown key {key}; it takes {', '.join(f'{known}=...' for known in keys)}")
    return plain, given


def open_existing(command: str, given: Mapping[str, str]) -> RunFolder:
    """The run that `run.name` and `run.root` name.

    Raises:
        ValueError: run.name is missing, or there is no such run; names those that are near.
    """
    root = Path(given.get("run.root", RunConfig().root))
    runs = sorted(file.parent.name for file in root.glob("*/config.yaml"))
    shown = ", ".join(runs[:8]) + (" ..." if len(runs) > 8 else "") or "none"
    if not given.get("run.name"):
        raise ValueError(f"{command}: name a run, {command} run.name=NAME; in {root} there are: {shown}")
    name = given["run.name"]
    if name not in runs:
        near = difflib.get_close_matches(name, runs, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}" if near else f"there are: {shown}"
        raise ValueError(f"{command}: no run {name} in {root}; {hint} (set the place with run.root=PATH)")
    return RunFolder.load(root / name)
