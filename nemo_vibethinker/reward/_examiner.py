"""The trusted process: holds the tests and asks the program's process for values (see `_harness`)."""

import _ast
import builtins
from typing import Any

from nemo_vibethinker.reward._compare import difference, shortened
from nemo_vibethinker.reward._wire import Peer, Uncarried, extra_number

_FROM_PROGRAM = "from_program"


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
        number = extra_number(value)
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


class Failed(Exception):
    """A test is not passed; the message says how."""


def examine(
    peer: Examiner, tests: list[Any], names: list[str], modules: list[str], label: str, first: int
) -> tuple[str, str]:
    """Load the program and run every test; returns the kind of verdict and its reason.

    `label` formats the number of a test in `tests`, from `first`.
    """
    at = "the program"
    try:
        peer.request("load")
        scope = _scope(peer, names, modules)
        for number, test in enumerate(tests, first):
            at = f"{label % number} ({_title(test)})"
            if isinstance(test, str):
                _run_snippet(test, scope)
            else:
                _run_call(test, scope)
    except Uncarried as error:
        return "ungraded", str(error)
    except ModuleNotFoundError as error:
        return ("wrong" if hasattr(error, _FROM_PROGRAM) else "ungraded"), f"{at}: {error}"
    except Failed as error:
        return "wrong", f"{at}: {error}"
    except SystemExit:
        return "ungraded", f"{at} exits"
    except Exception as error:
        return "wrong", f"{at}: {type(error).__name__}: {error}"
    return "right", ""


def _title(test: Any) -> str:
    if isinstance(test, str):
        return " ".join(test.split())[:80]
    return f"{test['function']}({', '.join(map(shortened, test['args']))[:80]})"


def _run_call(test: dict[str, Any], scope: dict[str, Any]) -> None:
    """Call the function, or the method of a new `Solution` where the program has no such function."""
    name = test["function"]
    if name not in scope and "Solution" not in scope:
        raise Failed(f"the program defines no {name}")
    function = scope[name] if name in scope else getattr(scope["Solution"](), name)
    if problem := difference(function(*test["args"]), test["expected"]):
        raise Failed(problem)


def _run_snippet(test: str, scope: dict[str, Any]) -> None:
    try:
        exec(compile(test, "test.py", "exec"), scope)
    except AssertionError as error:
        raise Failed(str(error) or _sides(test, scope)) from None


def _sides(test: str, scope: dict[str, Any]) -> str:
    """Both values of a failed `assert x == y`, computed once more."""
    tree: Any = compile(test, "test.py", "exec", 0x400)  # PyCF_ONLY_AST; the module `ast` takes long to import
    last = tree.body[-1].test if tree.body and isinstance(tree.body[-1], _ast.Assert) else None
    if not isinstance(last, _ast.Compare) or len(last.ops) != 1 or not isinstance(last.ops[0], _ast.Eq):
        return "failed"
    got, expected = (
        eval(compile(_ast.Expression(side), "test.py", "eval"), scope) for side in (last.left, last.comparators[0])
    )
    return f"expected {shortened(expected)}, got {shortened(got)}"
