"""Token files: what is written is read, whatever the width; torn and foreign folders are refused."""

import json
import random
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest

from nemo_vibethinker.data.token_files import Example, TokenFile, TokenFileWriter


def examples(count: int, vocabulary: int, seed: int = 0) -> list[Example]:
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        tokens = [rng.randrange(vocabulary) for _ in range(rng.randint(2, 40))]
        rows.append((tokens, rng.randint(1, len(tokens) - 1)))
    return rows


def write(folder: Path, rows: Iterable[Example], vocabulary: int = 512) -> Path:
    with TokenFileWriter(folder, vocabulary=vocabulary, tokenizer_sha256="abc") as writer:
        for tokens, prompt_length in rows:
            writer.add(tokens, prompt_length)
    return folder


@pytest.mark.parametrize(("vocabulary", "width"), [(512, 2), (65_536, 2), (65_537, 4), (151_936, 4)])
def test_examples_are_read_back(tmp_path: Path, vocabulary: int, width: int) -> None:
    rows = [*examples(50, vocabulary), ([0, vocabulary - 1], 1)]
    file = TokenFile(write(tmp_path / "t", rows, vocabulary))
    assert [file[i] for i in range(len(file))] == rows == file[:]
    assert file[-1] == rows[-1]
    assert file.lengths.tolist() == [len(tokens) for tokens, _ in rows]
    assert (tmp_path / "t" / "tokens.bin").stat().st_size == width * sum(len(tokens) for tokens, _ in rows)
    file.require_tokenizer("abc")
    with pytest.raises(ValueError, match="made with another tokenizer"):
        file.require_tokenizer("abd")
    file.verify()
    with pytest.raises(IndexError):
        file[len(rows)]


def test_content_hash_is_of_the_content(tmp_path: Path) -> None:
    rows = examples(20, 100)
    first, again = TokenFile(write(tmp_path / "a", rows)), TokenFile(write(tmp_path / "b", rows))
    shifted = [(tokens, 1) for tokens, _ in rows]
    assert first.content_sha256 == again.content_sha256
    assert TokenFile(write(tmp_path / "c", shifted)).content_sha256 != first.content_sha256
    content = bytearray((tmp_path / "a" / "tokens.bin").read_bytes())
    content[7] ^= 1
    (tmp_path / "a" / "tokens.bin").write_bytes(content)
    with pytest.raises(ValueError, match="not what was written"):
        TokenFile(tmp_path / "a").verify()


def test_unfinished_folder_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "t", examples(5, 100))

    def source() -> Iterator[Example]:
        yield [1, 2], 1
        raise RuntimeError("the source died")

    with pytest.raises(RuntimeError, match="source died"):
        write(folder, source())
    with pytest.raises(ValueError, match=r"no header\.json.*run prepare again"):
        TokenFile(folder)


@pytest.mark.parametrize("name", ["tokens", "offsets", "prompt_lengths"])
def test_torn_file_is_refused(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path / "t", examples(5, 100))
    (folder / f"{name}.bin").write_bytes((folder / f"{name}.bin").read_bytes()[:-1])
    with pytest.raises(ValueError, match=rf"{name}\.bin: .* bytes where the header says"):
        TokenFile(folder)
    (folder / f"{name}.bin").unlink()
    with pytest.raises(ValueError, match=rf"{name}\.bin: nothing where"):
        TokenFile(folder)


def test_offsets_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "t", examples(5, 100))
    offsets = np.fromfile(folder / "offsets.bin", dtype=np.int64)
    offsets[2] = offsets[1]
    offsets.tofile(folder / "offsets.bin")
    with pytest.raises(ValueError, match="offsets do not fit"):
        TokenFile(folder)


@pytest.mark.parametrize(
    "change", [{"dtypes": {"tokens": "float64"}}, {"examples": 0}, {"tokens": "many"}, {"content_sha256": None}]
)
def test_foreign_header_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    folder = write(tmp_path / "t", examples(5, 100))
    header = json.loads((folder / "header.json").read_text())
    (folder / "header.json").write_text(json.dumps(header | change))
    with pytest.raises(ValueError, match="not a header of token files"):
        TokenFile(folder)


def test_token_outside_the_vocabulary_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(OverflowError):
        write(tmp_path / "t", [([1, 70_000], 1)])
