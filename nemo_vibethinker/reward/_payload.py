"""What the trusted process of a sandbox reads: programs and their tests, in the order in which it may know them."""

import ast
import builtins
import marshal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nemo_vibethinker.data.code_tests import Test

_CHECKS_NOTHING = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom, ast.Assign)


@dataclass(frozen=True)
class Task:
    """A program and its tests; those on standard input are run first, and numbered so."""

    program: str
    outputs: tuple[dict[str, str], ...]
    others: tuple[Test, ...]

    @classmethod
    def of(cls, tests: Sequence[Test], program: str) -> "Task":
        """Raises ValueError where the tests can't decide on any program."""
        outputs = tuple(test for test in tests if isinstance(test, dict) and "stdin" in test)
        others = tuple(test for test in tests if isinstance(test, str) or "stdin" not in test)
        _check(others, bool(outputs))
        return cls(program, outputs, others)

    @property
    def runs(self) -> int:
        """How often the program is started."""
        return len(self.outputs) + bool(self.others)

    def encoded(self) -> bytes:
        """Chunks as `_harness` reads them."""
        parts = [_text(self.program), b"%d" % (len(self.outputs) + len(self.others)), b"%d" % len(self.outputs)]
        parts += [_text(test[stream]) for test in self.outputs for stream in ("stdin", "stdout")]
        parts += [marshal.dumps((list(self.others), *_names_wanted(self.others)))]
        return b"".join(map(chunk, parts))


def chunk(content: bytes) -> bytes:
    """Twenty digits, the length, and the content."""
    return b"%020d" % len(content) + content


def _text(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _check(tests: Sequence[Test], otherwise: bool) -> None:
    if not tests and not otherwise:
        raise ValueError("no tests")
    snippets = [test for test in tests if isinstance(test, str)]
    try:
        statements = [statement for test in snippets for statement in ast.parse(test).body]
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"a test does not compile: {error}") from None
    checks = [statement for statement in statements if not isinstance(statement, _CHECKS_NOTHING)]
    if not otherwise and len(snippets) == len(tests) and not checks:
        raise ValueError("the tests check nothing: they only define, import and assign")


def _names_wanted(tests: Sequence[Test]) -> tuple[list[str], list[str]]:
    """Names that the tests take from the program, and standard modules they use without importing them.

    Builtins and standard modules of the tests are the trusted process's own: a program's `all` or `math` must not
    decide. Only if the tests call nothing but builtins may the program have redefined one: the function under test.
    """
    functions = {test["function"] for test in tests if isinstance(test, dict)}
    nodes = [node for test in tests if isinstance(test, str) for node in ast.walk(ast.parse(test))]
    stored = {node.id for node in nodes if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
    used = {node.id for node in nodes if isinstance(node, ast.Name)}
    called = {node.func.id for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    bases = {node.value.id for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)}
    trusted = {name for name in used if hasattr(builtins, name)}
    if called <= trusted:
        trusted -= called
    modules = (bases & sys.stdlib_module_names) - called - stored
    methods = {"Solution"} if functions else set()
    return sorted((used - trusted - modules) | functions | methods), sorted(modules)


def settings(**values: Any) -> bytes:
    """The first chunk."""
    return chunk(marshal.dumps(values))
