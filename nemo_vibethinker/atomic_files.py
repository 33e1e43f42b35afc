"""Files that are there complete or not at all, whenever a process or a machine dies."""

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def atomic_files(paths: Sequence[Path]) -> Iterator[list[IO[bytes]]]:
    """Files to write; they replace those at `paths` if the block ends well, and leave no trace otherwise.

    A reader sees the old content or the new one, also after a power cut. A link's target is replaced, not the link.
    """
    paths = [path.resolve() for path in paths]
    with ExitStack() as stack:
        files = []
        for path in paths:
            handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
            stack.callback(Path(temporary).unlink, missing_ok=True)
            files.append((temporary, stack.enter_context(os.fdopen(handle, "wb"))))
        yield [file for _, file in files]
        for _, file in files:
            file.flush()
            os.fsync(file.fileno())
        for path, (temporary, _) in zip(paths, files, strict=True):
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        for folder in {path.parent for path in paths}:
            _sync_folder(folder)


def atomic_write_bytes(path: Path, content: bytes) -> None:
    """Replace the file at `path`, as of `atomic_files`."""
    with atomic_files([path]) as (file,):
        file.write(content)


def atomic_write_text(path: Path, content: str) -> None:
    """`atomic_write_bytes` of UTF-8 text."""
    atomic_write_bytes(path, content.encode())


def rename_folder(folder: Path, name: Path) -> None:
    """Give a folder of files its name, in place of what had it, after everything in it is on disk."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    _sync_folder(folder)
    shutil.rmtree(name, ignore_errors=True)
    os.replace(folder, name)
    _sync_folder(name.parent)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
