"""The program's process: executes the program, then what the tests ask for (see `_harness`)."""

import atexit
import builtins
import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, NoReturn

from nemo_vibethinker.reward._wire import Cursor, Peer, extra_number


def run_whole(source: str) -> NoReturn:
    """Execute a program as `__main__` on descriptors 0, 1 and 2, and end the process as the interpreter would."""
    sys.stdin = sys.__stdin__ = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = sys.__stdout__ = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = sys.__stderr__ = open(2, "w", errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.argv = ["program.py"]
    module = sys.modules["__main__"] = ModuleType("__main__")
    code = _exit_code(lambda: exec(compile(source, "program.py", "exec"), module.__dict__))
    if threading := sys.modules.get("threading"):
        threading._shutdown()  # what they print counts
    atexit._run_exitfuncs()
    code = _exit_code(sys.stdout.flush) or code
    sys.stderr.flush()
    os._exit(code & 0xFF)


def _exit_code(run: Callable[[], object]) -> int:
    try:
        run()
    except SystemExit as end:
        if end.code is not None and not isinstance(end.code, int):
            print(end.code, file=sys.stderr)
            return 1
        return end.code or 0
    except BaseException as error:
        sys.__excepthook__(type(error), error, error.__traceback__)
        return 1
    return 0


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
        return extra_number(value) or (b"H", b"%d" % self.register(value))

    def resolve(self, tag: bytes, content: bytes) -> Any:
        if tag == b"H":
            return self.objects[int(content)]
        if tag == b"B":
            return getattr(builtins, content.decode())
        if tag == b"I":
            return iter(self.unpack(Cursor(content)))
        return lambda *arguments, **keywords: self.request("callback", int(content), list(arguments), keywords)
