"""Answers of an endpoint kept on disk as they arrive, so that nothing is asked, or paid for, twice."""

import fcntl
from pathlib import Path
from typing import Self

from nemo_vibethinker.run_folder import append_json_line, read_json_lines
from nemo_vibethinker.spectrum.endpoint import Answer
from nemo_vibethinker.spectrum.spending import Usage


class AnswerFile:
    """JSON lines of answers by request key; a context manager that holds the file for this process alone.

    A kill loses at most the requests in flight; a line that it tore is left out and asked again.

    Raises ValueError if another process holds the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = open(path, "ab")  # noqa: SIM115 (held as long as this object)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise ValueError(f"{path} is in use by another process; wait for it or choose another --out") from error
        self._answers: dict[str, Answer] = {}
        for row in read_json_lines(path):
            self._answers[row["key"]] = Answer(
                texts=tuple(row["texts"]), finish_reasons=tuple(row["finish_reasons"]), usage=Usage(*row["usage"])
            )

    @property
    def used(self) -> Usage:
        """The tokens of all answers in the file."""
        return sum((answer.usage for answer in self._answers.values()), Usage())

    def get(self, key: str) -> Answer | None:
        return self._answers.get(key)

    def add(self, key: str, answer: Answer) -> None:
        usage = answer.usage
        row = {
            "key": key,
            "texts": answer.texts,
            "finish_reasons": answer.finish_reasons,
            "usage": [usage.requests, usage.prompt_tokens, usage.completion_tokens],
        }
        append_json_line(self.path, row)
        self._answers[key] = answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()
