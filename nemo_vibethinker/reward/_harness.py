"""The trusted half of code grading, run inside the sandbox: it evaluates the tests, and a child process the program.

The two talk by values over pipes. The child never holds the tests, the expected values or the channel of the verdict;
what it returns is a plain value (numbers, text, containers of these), decoded into a fresh object here, or a `Handle`,
an opaque reference whose comparison with a plain value is always false. So neither `os._exit(0)`, printed text, an
`__eq__` that is always true, nor replaced builtins can turn a wrong value into a right one.

Several programs run one after the other, each between two fresh processes; what one leaves running is killed before
the next starts, and if it leaves a file or kills this process, the rest stays without verdict.

Standard input, a file: 20 digits, the length of the marshalled ([(program size, tests size), ...], seconds for each);
then of each the program, and marshalled (tests, names that they take from the program, standard modules they use).
Standard output: a line `kind<tab>reason` for each program that was graded.
"""

import builtins
import marshal
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

_REASON_LENGTH = 200
_FROM_PROGRAM = "from_program"


class ProgramEnded(BaseException):
    """The program's process closed its end; no `except Exception` of a test may swallow that."""


class Uncarried(BaseException):
    """A test hands the program an object that this protocol does not carry."""


class Peer:
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
        body = _read_exactly(self.read_fd, int(_read_exactly(self.read_fd, 20)))
        return self.unpack(_Cursor(body))

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
            self.send(("raised", names, str(error)[:_REASON_LENGTH]))

    def perform(self, operation: str, *arguments: Any) -> Any:
        raise NotImplementedError

    def error(self, names: list[str], text: str) -> Exception:
        raise NotImplementedError

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

    def unpack(self, cursor: "_Cursor") -> Any:
        tag, size = cursor.head()
        if tag in _READ:
            return _READ[tag](cursor.take(size))
        if tag == b"d":
            return {self.unpack(cursor): self.unpack(cursor) for _ in range(size)}
        if tag in _BUILD:
            return _BUILD[tag]([self.unpack(cursor) for _ in range(size)])
        return self.resolve(tag, cursor.take(size))

    def refer(self, value: Any) -> tuple[bytes, bytes]:
        raise NotImplementedError

    def resolve(self, tag: bytes, content: bytes) -> Any:
        raise NotImplementedError


class _Cursor:
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


def _read_exactly(fd: int, size: int) -> bytes:
    parts = []
    while size:
        part = os.read(fd, min(size, 1 << 20))
        if not part:
            raise ProgramEnded
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _number(value: Any) -> tuple[bytes, bytes] | None:
    """Decimal and Fraction, which need no import unless they occur."""
    kind = type(value)
    tag = _EXTRA.get((kind.__module__, kind.__name__))
    return (tag, str(value).encode()) if tag else None


class Candidate(Peer):
    """The program's process: executes the program, then what the tests ask for."""

    def __init__(self, read_fd: int, write_fd: int, source: str) -> None:
        super().__init__(read_fd, write_fd)
        self.source = source
        self.scope: dict[str, Any] = {"__name__": "program", "__builtins__": builtins}

    def perform(self, operation: str, *arguments: Any) -> Any:
        return getattr(self, "do_" + operation)(*arguments)

    def do_load(self) -> None:
        exec(compile(self.source, "program.py", "exec"), self.scope)

    def do_names(self, names: list[str]) -> dict[str, Any]:
        return {name: self.scope[name] for name in names if name in self.scope}

    def do_call(self, function: Callable, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        result = function(*arguments, **keywords)
        return result, [value if type(value) in (list, dict, set) else None for value in arguments]

    def do_apply(self, name: str, *arguments: Any) -> Any:
        return getattr(builtins, name)(*arguments)

    def do_item(self, target: Any, key: Any) -> Any:
        return target[key]

    def do_store(self, target: Any, key: Any, value: Any) -> None:
        target[key] = value

    def do_equal(self, left: Any, right: Any) -> bool:
        return bool(left == right)

    def error(self, names: list[str], text: str) -> Exception:
        return RuntimeError(f"{names[0]}: {text}")

    def refer(self, value: Any) -> tuple[bytes, bytes]:
        return _number(value) or (b"H", b"%d" % self.register(value))

    def resolve(self, tag: bytes, content: bytes) -> Any:
        if tag == b"H":
            return self.objects[int(content)]
        if tag == b"B":
            return getattr(builtins, content.decode())
        if tag == b"I":
            return iter(self.unpack(_Cursor(content)))
        return lambda *arguments, **keywords: self.request("callback", int(content), list(arguments), keywords)


class Handle:
    """Stands for an object that stays in the program's process."""

    __slots__ = ("_number", "_peer")

    def __init__(self, peer: "Examiner", number: int) -> None:
        object.__setattr__(self, "_peer", peer)
        object.__setattr__(self, "_number", number)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return self._peer.call(self, arguments, keywords)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._peer.request("apply", "getattr", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._peer.request("apply", "setattr", self, name, value)

    def __getitem__(self, key: Any) -> Any:
        return self._peer.request("item", self, key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._peer.request("store", self, key, value)

    def __len__(self) -> int:
        return self._peer.request("apply", "len", self)

    def __iter__(self) -> Any:
        return self._peer.request("apply", "iter", self)

    def __next__(self) -> Any:
        return self._peer.request("apply", "next", self)

    def __bool__(self) -> bool:
        return self._peer.request("apply", "bool", self)

    def __str__(self) -> str:
        return self._peer.request("apply", "str", self)

    def __repr__(self) -> str:
        return self._peer.request("apply", "repr", self)

    def __instancecheck__(self, value: Any) -> bool:
        return isinstance(value, Handle) and self._peer.request("apply", "isinstance", value, self)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Handle):
            return False
        return self._number == other._number or self._peer.request("equal", self, other)

    def __hash__(self) -> int:
        return hash(self._number)


class Examiner(Peer):
    """The trusted process: holds the tests and asks the program's process for values."""

    def call(self, function: Handle, arguments: tuple, keywords: dict[str, Any]) -> Any:
        result, after = self.request("call", function, list(arguments), keywords)
        for value, changed in zip(arguments, after, strict=True):
            if type(value) in (list, dict, set) and type(value) is type(changed) and value != changed:
                _replace_content(value, changed)
        return result

    def perform(self, operation: str, *arguments: Any) -> Any:
        number, positional, keywords = arguments
        assert operation == "callback"
        return self.objects[number](*positional, **keywords)

    def error(self, names: list[str], text: str) -> Exception:
        """The nearest builtin exception, so that a test may expect one; marked as the program's."""
        for name in names:
            kind = getattr(builtins, name, None)
            if isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, UnicodeError):
                break
        else:
            kind = Exception
        error = kind(text if kind.__name__ == names[0] else f"{names[0]}: {text}")
        setattr(error, _FROM_PROGRAM, True)
        return error

    def refer(self, value: Any) -> tuple[bytes, bytes]:
        if isinstance(value, Handle):
            return b"H", b"%d" % value._number
        name = getattr(value, "__name__", None)
        if name and getattr(builtins, name, None) is value:
            return b"B", name.encode()
        if callable(value) and not isinstance(value, type):
            return b"C", b"%d" % self.register(value)
        if hasattr(value, "__next__"):
            iterator: Any = value
            items = bytearray()
            self.pack(list(iterator), items)
            return b"I", bytes(items)
        number = _number(value)
        if not number:
            raise Uncarried(f"a test hands a {type(value).__name__} to the program")
        return number

    def resolve(self, tag: bytes, content: bytes) -> Any:
        if tag != b"H":
            raise ValueError("a reply that is no value")
        return Handle(self, int(content))


def _replace_content(value: Any, changed: Any) -> None:
    value.clear()
    if type(value) is list:
        value.extend(changed)
    else:
        value.update(changed)


def _scope(peer: Examiner, names: list[str], modules: list[str]) -> dict[str, Any]:
    """Globals of the tests. What the program names beyond the names asked for (`__builtins__`!) is left out."""
    given = peer.request("names", names)
    own = {name: given[name] for name in names if name in given}
    own |= {name: __import__(name) for name in modules}
    return own | {"__name__": "tests", "__builtins__": builtins}


def _examine(peer: Examiner, tests: list[str], names: list[str], modules: list[str]) -> tuple[str, str]:
    """Load the program and run every test; returns the kind of verdict and its reason."""
    at = "the program"
    try:
        peer.request("load")
        scope = _scope(peer, names, modules)
        for index, test in enumerate(tests, 1):
            at = f"test {index} of {len(tests)} ({test.strip()[:80]})"
            exec(compile(test, "test.py", "exec"), scope)
    except Uncarried as error:
        return "ungraded", str(error)
    except ModuleNotFoundError as error:
        return ("wrong" if hasattr(error, _FROM_PROGRAM) else "ungraded"), f"{at}: {error}"
    except AssertionError as error:
        return "wrong", f"{at} failed: {error}" if str(error) else f"{at} failed"
    except Exception as error:
        return "wrong", f"{at}: {type(error).__name__}: {error}"
    return "right", ""


def _child(source: bytes, read_fd: int, write_fd: int) -> None:
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)
    candidate = Candidate(read_fd, write_fd, source.decode("utf-8", "surrogatepass"))
    while True:
        candidate.serve(candidate.receive())


def _end_reason(child: int) -> str:
    """Why the program's process ended, by its wait status."""
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code == -24:
        return "processor time used up"
    return f"the program ended itself with {f'signal {-code}' if code < 0 else f'exit {code}'}"


def _grade(program_size: int) -> tuple[str, str]:
    """Read one program, start its process, and only then read its tests, which that process must not hold."""
    source = _read_exactly(0, program_size)
    child_read, parent_write = os.pipe()
    parent_read, child_write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(parent_read)
        os.close(parent_write)
        try:
            _child(source, child_read, child_write)
        finally:
            os._exit(1)
    os.close(child_read)
    os.close(child_write)
    tests, names, modules = marshal.load(sys.stdin.buffer)
    try:
        return _examine(Examiner(parent_read, parent_write), tests, names, modules)
    except (ProgramEnded, BrokenPipeError):
        return "wrong", _end_reason(child)


def _write_verdict(kind: str, reason: str) -> None:
    line = f"{kind}\t{reason[:_REASON_LENGTH]}".replace("\n", " ")
    os.write(1, f"{line}\n".encode(errors="replace"))


def _grade_apart(offset: int, program_size: int, wall_s: float) -> None:
    """Grade one program in a process of its own, and write its verdict even if that process is killed."""
    os.lseek(0, offset, os.SEEK_SET)
    examiner = os.fork()
    if examiner == 0:
        _write_verdict(*_grade(program_size))
        os._exit(0)
    watch = select.poll()
    watch.register(os.pidfd_open(examiner), select.POLLIN)
    if not watch.poll(wall_s * 1000):
        _write_verdict("wrong", f"timed out after {wall_s:g} s")
        return
    code = os.waitstatus_to_exitcode(os.waitpid(examiner, 0)[1])
    if code < 0:
        _write_verdict("wrong", f"the grading ended with signal {-code}")
    elif code:
        os._exit(code)  # a fault of this code, no verdict on the program


def _kill_others() -> None:
    """End every process of this pid namespace but this one and init, and wait until they no longer count."""
    while True:
        try:
            os.kill(-1, signal.SIGKILL)
        except ProcessLookupError:
            return
        try:
            os.waitpid(-1, os.WNOHANG)  # a process that missed its deadline; init takes the others
        except ChildProcessError:
            time.sleep(0.001)


def main() -> None:
    """Grade the programs one after the other; stop early rather than start one where another left something behind."""
    sizes, wall_s = marshal.loads(_read_exactly(0, int(_read_exactly(0, 20))))
    offset = os.lseek(0, 0, os.SEEK_CUR)
    for number, (program_size, tests_size) in enumerate(sizes, 1):
        _grade_apart(offset, program_size, wall_s)
        offset += program_size + tests_size
        if number < len(sizes):
            _kill_others()
            if os.listdir("/tmp"):
                break
    os._exit(0)


main()
