"""Values between the trusted examiner and the program's process, over a pair of pipes (see `_harness`).

A message is 20 digits, its length, and a tagged value. Plain values (numbers, text, containers of these) are decoded
into fresh objects; anything else stays where it is and travels as a reference.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

REASON_LENGTH = 200


class ProgramEnded(BaseException):
    """The program's process closed its end; no `except Exception` of a test may swallow that."""


class Uncarried(BaseException):
    """A test hands the program an object that this protocol does not carry."""


class Peer(ABC):
    """One end of the pipes: requests to the other end, and answers to its requests while waiting for its reply."""

    def __init__(self, read_fd: int, write_fd: int) -> None:
        self.read_fd, self.write_fd = read_fd, write_fd
        self.objects: list[Any] = []

    def register(self, value: Any) -> int:
        for number, known in enumerate(self.objects):
            if known is value:
                return number
        self.objects.append(value)
        return len(self.objects) - 1

    def send(self, message: tuple) -> None:
        out = bytearray()
        self.pack(message, out)
        data = memoryview(b"%020d" % len(out) + out)
        while data:
            data = data[os.write(self.write_fd, data) :]

    def receive(self) -> Any:
        body = read_exactly(self.read_fd, int(read_exactly(self.read_fd, 20)))
        return self.unpack(Cursor(body))

    def request(self, *message: Any) -> Any:
        self.send(message)
        while True:
            answer = self.receive()
            if answer[0] == "done":
                return answer[1]
            if answer[0] == "raised":
                raise self.error(answer[1], answer[2])
            self.serve(answer)

    def serve(self, message: tuple) -> None:
        try:
            self.send(("done", self.perform(*message)))
        except (ProgramEnded, Uncarried):
            raise
        except BaseException as error:
            names = [base.__name__ for base in type(error).__mro__]
            self.send(("raised", names, str(error)[:REASON_LENGTH]))

    @abstractmethod
    def perform(self, operation: str, *arguments: Any) -> Any:
        """Do what the other end requests."""

    @abstractmethod
    def error(self, names: list[str], text: str) -> Exception:
        """What to raise for an exception of the other end."""

    def pack(self, value: Any, out: bytearray) -> None:
        kind = _plain_kind(value)
        if kind is None:
            tag, content = self.refer(value)
            _put(out, tag, content)
        elif kind in _SCALARS:
            tag, write, _ = _SCALARS[kind]
            _put(out, tag, write(value))
        elif kind is dict:
            _count(out, b"d", len(value))
            for key, item in dict.items(value):
                self.pack(key, out)
                self.pack(item, out)
        else:
            _count(out, _CONTAINERS[kind], len(value))
            for item in kind.__iter__(value):
                self.pack(item, out)

    def unpack(self, cursor: "Cursor") -> Any:
        tag, size = cursor.head()
        if tag in _READ:
            return _READ[tag](cursor.take(size))
        if tag == b"d":
            return {self.unpack(cursor): self.unpack(cursor) for _ in range(size)}
        if tag in _BUILD:
            return _BUILD[tag]([self.unpack(cursor) for _ in range(size)])
        return self.resolve(tag, cursor.take(size))

    @abstractmethod
    def refer(self, value: Any) -> tuple[bytes, bytes]:
        """Tag and content of a reference to a value that is not plain."""

    @abstractmethod
    def resolve(self, tag: bytes, content: bytes) -> Any:
        """The value that a reference stands for at this end."""


class Cursor:
    """Reads tags, sizes and contents off a message."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def head(self) -> tuple[bytes, int]:
        end = self.data.index(b":", self.at)
        head, self.at = self.data[self.at : end], end + 1
        return head[:1], int(head[1:])

    def take(self, size: int) -> bytes:
        start, self.at = self.at, self.at + size
        return self.data[start : self.at]


def _put(out: bytearray, tag: bytes, content: bytes) -> None:
    _count(out, tag, len(content))
    out += content


def _count(out: bytearray, tag: bytes, count: int) -> None:
    out += tag + b"%d:" % count


def _from_module(module: str, name: str) -> Callable[[bytes], Any]:
    def read(content: bytes) -> Any:
        return getattr(__import__(module), name)(content.decode())

    return read


def _range(content: bytes) -> range:
    return range(*(int(part) for part in content.split()))


def _hex(value: int) -> bytes:
    return b"%x" % value


_SCALARS: dict[type, tuple[bytes, Callable[[Any], bytes], Callable[[bytes], Any]]] = {
    type(None): (b"N", lambda value: b"", lambda content: None),
    bool: (b"b", lambda value: b"1" if value else b"", bool),
    int: (b"i", _hex, lambda content: int(content, 16)),
    float: (b"f", lambda value: float.hex(value).encode(), lambda content: float.fromhex(content.decode())),
    complex: (b"c", lambda value: complex.__repr__(value).encode(), lambda content: complex(content.decode())),
    str: (b"s", lambda value: str.encode(value, "utf-8", "surrogatepass"),
          lambda content: content.decode("utf-8", "surrogatepass")),
    bytes: (b"y", bytes, bytes),
    bytearray: (b"Y", bytes, bytearray),
    range: (b"r", lambda value: b"%d %d %d" % (value.start, value.stop, value.step), _range),
}  # fmt: skip
_CONTAINERS = {list: b"l", tuple: b"t", set: b"S", frozenset: b"Z"}
_READ = {tag: read for tag, _, read in _SCALARS.values()}
_READ |= {b"D": _from_module("decimal", "Decimal"), b"q": _from_module("fractions", "Fraction")}
_BUILD = {tag: kind for kind, tag in _CONTAINERS.items()}
_EXTRA = {("decimal", "Decimal"): b"D", ("fractions", "Fraction"): b"q"}


def _plain_kind(value: Any) -> type | None:
    """The plain type that carries `value` (a subclass travels as its plain base), or None."""
    kind = type(value)
    for base in kind.__mro__:
        if base in _SCALARS or base in _CONTAINERS or base is dict:
            return base
    return None


def read_exactly(fd: int, size: int) -> bytes:
    parts = []
    while size:
        part = os.read(fd, min(size, 1 << 20))
        if not part:
            raise ProgramEnded
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def extra_number(value: Any) -> tuple[bytes, bytes] | None:
    """Decimal and Fraction, which need no import unless they occur."""
    kind = type(value)
    tag = _EXTRA.get((kind.__module__, kind.__name__))
    return (tag, str(value).encode()) if tag else None
