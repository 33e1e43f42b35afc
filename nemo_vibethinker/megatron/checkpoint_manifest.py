"""What a checkpoint consists of: its files by hash and the parts of the state by name, checked before it is read.

Peers' users lost optimizer states without an error on resume; here a part that is missing is named, and nothing is
restored.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

MANIFEST = "manifest.json"
Parts = dict[str, list[int]]  # global name of a part of the state -> its unsharded shape
Files = dict[str, list[Any]]  # file name -> fingerprint


def write_manifest(folder: Path, mine: Parts, written: Files) -> None:
    """Record the files of `folder` and the parts of the state; all ranks call it, each with the parts it holds.

    Args:
        written: fingerprints of the files that this rank wrote; those that no rank names are hashed by the first.
    """
    shares = gathered((mine, written))
    parts = {name: shape for share, _ in shares for name, shape in share.items()}
    files = {name: found for _, share in shares for name, found in share.items()}
    if torch.distributed.get_rank() == 0:
        rest = [path for path in folder.iterdir() if path.name not in files]
        files |= {path.name: fingerprint(path) for path in rest}
        text = json.dumps({"parts": dict(sorted(parts.items())), "files": dict(sorted(files.items()))}, indent=1)
        (folder / MANIFEST).write_text(text)


def check_files(folder: Path) -> None:
    """Compare the files with the manifest; all ranks call it, each reads its share.

    Raises:
        ValueError: a file is missing or is not what was written, on every rank.
    """
    written = _manifest(folder)["files"]
    found = _over_ranks(folder, sorted(written), lambda path: fingerprint(path) if path.is_file() else None)
    for name, recorded in written.items():
        if found[name] != recorded:
            what = "is missing" if found[name] is None else "is not what was written"
            raise ValueError(f"{folder / name} {what}; delete {folder} to start this stage again")


def check_parts(folder: Path, mine: Parts) -> None:
    """Compare the parts of the state that are asked for with the manifest; all ranks call it, each with its own.

    Raises:
        ValueError: a part is missing or has another shape, on every rank.
    """
    written: Parts = _manifest(folder)["parts"]
    wanted = {name: shape for share in gathered(mine) for name, shape in share.items()}
    wrong = sorted(name for name, shape in wanted.items() if written.get(name) != shape)
    if wrong:
        name = wrong[0]
        what = f"has {name} of shape {written[name]}, not {wanted[name]}" if name in written else f"lacks {name}"
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise ValueError(f"{folder} {what}{more}: it was written by another model or another kind of optimizer")


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder / MANIFEST} can't be read: {error}") from None


def _over_ranks(folder: Path, names: list[str], measure: Callable[[Path], Any]) -> dict[str, Any]:
    """`measure` of every file, each rank taking its share."""
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    mine = {name: measure(folder / name) for name in names[rank::size]}
    return {name: value for share in gathered(mine) for name, value in share.items()}


def gathered(value: Any) -> list[Any]:
    """The picklable `value` of every rank, on every rank."""
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def fingerprint(path: Path) -> list[Any]:
    """[size in bytes, SHA-256] of a file."""
    with open(path, "rb") as file:
        return [path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()]
