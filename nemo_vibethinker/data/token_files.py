"""Tokenised SFT examples in files that are mapped into memory, so that training reads only the rows it needs.

A folder holds `tokens.bin` (all examples one behind the other, uint16, or uint32 for vocabularies above 65,536),
`offsets.bin` (int64, the start of each example and the end of the last), `prompt_lengths.bin` (int32) and, written
last, `header.json`.
"""

import hashlib
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, overload

import numpy as np

from nemo_vibethinker.atomic_files import atomic_write_text

Example = tuple[list[int], int]  # token ids of prompt and response, prompt length

_DTYPES = {"tokens": ("uint16", "uint32"), "offsets": ("int64",), "prompt_lengths": ("int32",)}
_HASH_FIELDS = ("content_sha256", "tokenizer_sha256")
assert sys.byteorder == "little", "the files hold numbers in the machine's byte order"


class TokenFileWriter:
    """Writes examples as they come; a folder left before the end has no header and cannot be opened."""

    def __init__(self, folder: Path, *, vocabulary: int, tokenizer_sha256: str) -> None:
        """`vocabulary` is the number of token ids, which decides their width."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        (folder / "header.json").unlink(missing_ok=True)
        self._dtypes = {"tokens": _DTYPES["tokens"][vocabulary > 2**16], "offsets": "int64", "prompt_lengths": "int32"}
        self._tokenizer_sha256 = tokenizer_sha256
        self._files: dict[str, IO[bytes]] = {name: (folder / f"{name}.bin").open("wb") for name in _DTYPES}
        self._digests = {name: hashlib.sha256() for name in _DTYPES}
        self.examples = self.tokens = 0
        self._put("offsets", [0])

    def _put(self, name: str, values: Sequence[int]) -> None:
        content = np.array(values, dtype=self._dtypes[name]).tobytes()
        self._files[name].write(content)
        self._digests[name].update(content)

    def add(self, tokens: Sequence[int], prompt_length: int) -> None:
        """Append one example."""
        assert 0 < prompt_length <= len(tokens)
        self._put("tokens", tokens)
        self.examples += 1
        self.tokens += len(tokens)
        self._put("offsets", [self.tokens])
        self._put("prompt_lengths", [prompt_length])

    def __enter__(self) -> "TokenFileWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        for file in self._files.values():
            file.close()
        if kind is None:
            header: dict[str, Any] = {"examples": self.examples, "tokens": self.tokens, "dtypes": self._dtypes}
            hashes = (_combined(self._digests[name].hexdigest() for name in _DTYPES), self._tokenizer_sha256)
            header |= dict(zip(_HASH_FIELDS, hashes, strict=True))
            atomic_write_text(self._folder / "header.json", json.dumps(header, indent=1) + "\n")


def _combined(digests: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


class TokenFile(Sequence[Example]):
    """The examples of a folder of `TokenFileWriter`, in the order they were written.

    `lengths` [N] int32 are the examples' lengths in tokens; they and `content_sha256` need no token to be read.
    """

    def __init__(self, folder: Path) -> None:
        """ValueError for a folder without a header, or whose files are not as long as it says."""
        self._folder = folder
        header = _read_header(folder)
        self.content_sha256, self.tokenizer_sha256 = (header[name] for name in _HASH_FIELDS)
        count = header["examples"]
        sizes = {"tokens": header["tokens"], "offsets": count + 1, "prompt_lengths": count}
        maps = {name: _mapped(folder / f"{name}.bin", header["dtypes"][name], size) for name, size in sizes.items()}
        self._tokens, self._offsets, self._prompt_lengths = (maps[name] for name in _DTYPES)
        self.lengths = np.diff(self._offsets).astype(np.int32)
        if int(self._offsets[0]) != 0 or int(self._offsets[-1]) != header["tokens"] or (self.lengths < 1).any():
            raise ValueError(f"{folder}: its offsets do not fit its tokens; run prepare again")

    def __len__(self) -> int:
        return len(self.lengths)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        """The example, its tokens read from disk where they are not in memory yet."""
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        tokens = self._tokens[self._offsets[number] : self._offsets[number + 1]]
        return tokens.tolist(), int(self._prompt_lengths[number])

    def require_tokenizer(self, sha256: str) -> None:
        """ValueError unless the tokens were made with the tokenizer of this hash."""
        if sha256 != self.tokenizer_sha256:
            raise ValueError(f"{self._folder} was made with another tokenizer; run prepare again")

    def verify(self) -> None:
        """Read everything and compare it with the content hash; ValueError if it has changed."""
        digests = []
        for name in _DTYPES:
            with open(self._folder / f"{name}.bin", "rb") as file:
                digests.append(hashlib.file_digest(file, "sha256").hexdigest())
        if _combined(digests) != self.content_sha256:
            raise ValueError(f"{self._folder}: the content is not what was written; run prepare again")


def _read_header(folder: Path) -> dict[str, Any]:
    try:
        header = json.loads((folder / "header.json").read_text())
        fits = all(header["dtypes"][name] in known for name, known in _DTYPES.items())
        fits = fits and all(isinstance(header[name], str) for name in _HASH_FIELDS)
        if not fits or header["examples"] < 1 or header["tokens"] < 1:
            raise ValueError("no examples, or types that are not known")
    except FileNotFoundError:
        raise ValueError(f"{folder}: no header.json, so its token files are incomplete; run prepare again") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder}/header.json: not a header of token files ({error}); run prepare again") from error
    return header


def _mapped(path: Path, dtype: str, size: int) -> np.ndarray:
    expected = size * np.dtype(dtype).itemsize
    if not path.is_file() or path.stat().st_size != expected:
        found = f"{path.stat().st_size:,} bytes" if path.is_file() else "nothing"
        raise ValueError(f"{path}: {found} where the header says {expected:,} bytes; run prepare again")
    return np.memmap(path, dtype=dtype, mode="r")
