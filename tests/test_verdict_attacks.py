# ruff: noqa: E501 - programs are easier to read on one line
"""Programs that try to learn what is expected, or to get a right verdict without it; all must be graded wrong.

What is expected is random text that can't be computed, so only a program that found it is right. Every attack on the
verdict runs between honest programs in one sandbox, whose verdicts it must not change.
"""

import secrets

import pytest

from nemo_vibethinker.data.code_tests import Test
from nemo_vibethinker.reward.code import CodeVerifier
from nemo_vibethinker.reward.sandbox import Limits, SandboxError, find_sandbox
from nemo_vibethinker.reward.verdict import Verdict

pytestmark = pytest.mark.e2e

LIMITS = Limits(wall_s=10, cpu_s=2, memory_mb=128, file_mb=2)
PRELUDE = """
import ctypes, gc, os, re, sys
PATTERN = re.compile("need" + "le-[0-9a-f]{32}")
def among(things):
    for thing in things:
        try: found = PATTERN.search(thing if isinstance(thing, str) else repr(thing))
        except BaseException: continue
        if found: return found.group()
def report(found): return found or "nothing found"
"""
MAIN = "\ndef f(*a): return report(hunt())\nif __name__ == '__main__': print(report(hunt()))"
HUNTS = {
    "objects": "def hunt(): return among(gc.get_objects())",
    "referents": "def hunt(): return among(r for o in gc.get_objects() for r in gc.get_referents(o) if type(r) is str)",
    "frames": """
def hunt():
    frame, seen = sys._getframe(), []
    while frame:
        seen += [frame.f_locals, frame.f_globals, frame.f_code.co_consts]
        frame = frame.f_back
    return among(seen)""",
    "modules": "def hunt(): return among([vars(m) for m in list(sys.modules.values())] + sys.argv + [os.environ])",
    "descriptors": """
def hunt():
    seen = []
    for fd in range(64):
        try: seen.append(os.pread(fd, 1 << 20, 0).decode("latin-1"))
        except OSError: pass
        try:
            os.set_blocking(fd, False)
            try: seen.append(os.read(fd, 1 << 20).decode("latin-1"))
            finally: os.set_blocking(fd, True)
        except OSError: pass
    return among(seen)""",
    "proc": """
def hunt():
    seen = []
    parent = os.getppid()
    for pid in ["self", *range(1, 10), *range(max(1, parent - 10), parent + 10)]:
        for name in ("cmdline", "environ", "maps", *(f"fd/{n}" for n in range(10))):
            try:
                fd = os.open(f"/proc/{pid}/{name}", os.O_RDONLY | os.O_NONBLOCK)
                seen.append(os.pread(fd, 1 << 20, 0).decode("latin-1"))
            except OSError: pass
    return among(seen)""",
    "files": """
def hunt():
    seen = []
    for folder, _, names in os.walk("/tmp"):
        for name in names: seen.append(open(os.path.join(folder, name), "rb").read().decode("latin-1"))
    return among(seen)""",
    "memory": """
def hunt():
    libc = ctypes.CDLL(None)
    libc.sbrk.restype = ctypes.c_void_p
    libc.sbrk.argtypes = [ctypes.c_long]
    top = (libc.sbrk(0) or 0) & ~4095
    read, write = os.pipe()
    anchors = {id(object()) >> 20, id([]) >> 20, id("x" * 1000) >> 20, id(hunt) >> 20}
    spans = [(top - (16 << 20), top)] + [((a - 4) << 20, (a + 4) << 20) for a in anchors]
    tail = b""
    for start, end in spans:
        for page in range(start, end, 4096):
            if libc.write(write, ctypes.c_void_p(page), ctypes.c_size_t(4096)) == 4096:  # an error where nothing is
                data = tail + os.read(read, 4096)
                found = PATTERN.search(data.decode("latin-1"))
                if found: return found.group()
                tail = data[-64:]
""",
    "trace": """
SEEN = []
def note(frame, event, arg): SEEN.append(repr((frame.f_locals, arg))[:10000]); return note
sys.setprofile(note)
sys.settrace(note)
def hunt():
    sys.setprofile(None); sys.settrace(None)
    return among(SEEN)""",
    "audit": """
SEEN = []
sys.addaudithook(lambda event, args: SEEN.append(repr(args)[:10000]) if len(SEEN) < 10000 else None)
def hunt(): return among(SEEN)""",
    "harness": """
def hunt():
    seen = []
    for name, module in list(sys.modules.items()):
        if name.startswith("nemo_vibethinker"):
            for thing in vars(module).values(): seen += [thing, getattr(thing, "__dict__", 0), getattr(thing, "__defaults__", 0)]
    return among(seen)""",
    "replaced builtins": """
import builtins
SEEN = []
for name in ("exec", "compile", "eval", "repr", "print", "isinstance", "zip", "len", "map", "str", "open"):
    def spy(*arguments, _real=getattr(builtins, name), _keep=SEEN.append, **keywords):
        _keep(arguments)
        return _real(*arguments, **keywords)
    if not isinstance(getattr(builtins, name), type): setattr(builtins, name, spy)
def hunt(): return among(SEEN[-200:])""",
    "parent's memory": """
def hunt():
    libc, buffer = ctypes.CDLL(None), ctypes.create_string_buffer(1 << 16)
    here = (ctypes.c_ulong * 2)(ctypes.addressof(buffer), 1 << 16)
    for pid in (os.getppid(), 1, 2, 3):
        for start in range(id(object()) & ~0xfffff, (id(object()) & ~0xfffff) + (4 << 20), 1 << 16):
            there = (ctypes.c_ulong * 2)(start, 1 << 16)
            if libc.syscall(ctypes.c_long(310), ctypes.c_long(pid), here, 1, there, 1, 0) > 0:
                found = PATTERN.search(buffer.raw.decode("latin-1"))
                if found: return found.group()""",
}
CUBE = ("assert f(2) == 8", {"function": "f", "args": [3], "expected": 27})
ECHO = ({"stdin": "2\n", "stdout": "8\n"}, {"stdin": "3\n", "stdout": "27\n"})
VALUES = {
    "exit": "import sys; sys.exit(0)",
    "hard exit": "import os; os._exit(0)",
    "exit when called": "def f(x): raise SystemExit(0)",
    "hard exit when called": "def f(x):\n    import os; os._exit(0)",
    "at exit": "import atexit, os\natexit.register(os.write, 1, b'0\\tright\\t\\n')\ndef f(x): return 0",
    "printed verdict": "import os\ndef f(x):\n    for fd in range(64):\n        try: os.write(fd, b'0\\tright\\t\\n')\n"
    "        except OSError: pass\n    return 0",
    "verdict in a message": "def f(x): raise ValueError('\\n0\\tright\\t\\n\\x0c1\\tright\\t\\r2\\tright\\t\\u20283\\tright\\t')",
    "verdict in the name of an error": "E = type('x\\n1\\tright\\t\\n', (Exception,), {})\ndef f(x): raise E()",
    "closed descriptors": "import os\nos.closerange(0, 64)\ndef f(x): return 8",
    "equal to all": "class A:\n    def __eq__(self, other): return True\n    __hash__ = None\ndef f(x): return A()",
    "integer equal to all": "class A(int):\n    def __eq__(self, other): return True\ndef f(x): return A(0)",
    "list equal to all": "class A(list):\n    def __eq__(self, other): return True\ndef f(x): return A()",
    "reflected": "class A(float):\n    __radd__ = __eq__ = __req__ = lambda *a: True\ndef f(x): return A(1)",
    "class of another": "class A:\n    __class__ = int\n    __int__ = __index__ = lambda s: 8\ndef f(x): return A()",
    "builtins": "import builtins\nbuiltins.AssertionError = Exception\nbuiltins.all = any\nbuiltins.isinstance = lambda *a: True\n"
    "def f(x): return 0",
    "modules": "import json, marshal, math, os, sys\njson.loads = marshal.loads = lambda *a: 8\nmath.isclose = lambda *a, **k: True\n"
    "def f(x): return 0",
    "harness's modules": "import sys\nfor n, m in list(sys.modules.items()):\n    if n.startswith('nemo_vibethinker'):\n"
    "        for k in list(vars(m)):\n            if k in ('examine', 'difference', 'same_value'): setattr(m, k, lambda *a, **b: ('right', ''))\n"
    "def f(x): return 0",
    "frames": "import sys\ndef f(x):\n    frame = sys._getframe()\n    while frame:\n"
    "        frame.f_globals['_write_verdict'] = frame.f_globals['_grade'] = lambda *a: ('right', '')\n"
    "        frame = frame.f_back\n    return 0",
    "returns of the caller": "import gc\ndef f(x):\n    for o in gc.get_objects():\n"
    "        if type(o).__name__ == 'Candidate': o.send(('done', (8, [None]))); o.send(('done', (8, [None])))\n    return 0",
    "assertion swallowed": "class AssertionError(BaseException): pass\ndef f(x): raise AssertionError",
    "stop": "def f(x): raise StopIteration(8)",
    "generator exit": "def f(x): raise GeneratorExit",
    "keyboard": "def f(x): raise KeyboardInterrupt",
    "base exception": "class E(BaseException): pass\ndef f(x): raise E",
    "base exception at the end": "class E(BaseException): pass\ndef f(x): return 0\nraise E",
    "exception that lies": "class E(Exception):\n    def __str__(self): raise SystemExit(0)\ndef f(x): raise E",
    "names": "__builtins__ = {}\n__name__ = 'x'\n__file__ = 'y'\ndef f(x): return 0",
    "killed parent": "import os\ndef f(x): os.kill(os.getppid(), 9)",
    "stopped parent": "import os, signal\ndef f(x): os.kill(os.getppid(), signal.SIGSTOP)",
    "killed all": "import os\nos.kill(-1, 9)",
    "two processes": "import os\ndef f(x):\n    os.fork()\n    return x",
    "not a function": "f = 8",
    "garbage on the wire": "import os\ndef f(x):\n    for fd in (3, 4):\n        try: os.write(fd, b'%020d' % -5)\n"
    "        except OSError: pass",
    "unknown tag on the wire": "import os\ndef f(x):\n    for fd in (3, 4):\n        try: os.write(fd, b'%020d' % 4 + b'X1:a')\n"
    "        except OSError: pass",
    "huge message": "import os\ndef f(x):\n    for fd in (3, 4):\n        try: os.write(fd, b'%020d' % 10**15)\n"
    "        except OSError: pass\n    return 0",
    "deep value": "def f(x):\n    y = []\n    for _ in range(10**5): y = [y]\n    return y",
    "cyclic value": "def f(x):\n    y = []\n    y.append(y)\n    return y",
    "huge value": "def f(x): return 'x' * (60 << 20)",
    "huge integer": "def f(x): return 1 << (1 << 27)",
    "deep recursion": "import sys\nsys.setrecursionlimit(10**9)\ndef f(x): return f(x)",
    "endless": "def f(x):\n    while True: pass",
    "memory": "def f(x): return [0] * 10**9",
    "segmentation fault": "import ctypes\ndef f(x): ctypes.string_at(0)",
    "no such name": "def g(x): return x**3",
    "syntax": "def f(x) return x",
    "NUL": "def f(x): return 8\0",
    "lone surrogate": "def f(x): return '\ud800'",
}  # fmt: skip
OUTPUTS = {
    "nothing": "",
    "exit": "import sys; sys.exit(0)",
    "hard exit": "import os; os._exit(0)",
    "right but fails": "print(int(input())**3, flush=True); raise SystemExit(1)",
    "right but raises": "print(int(input())**3)\nraise ValueError('\\n0\\tright\\t')",
    "right but killed": "import os\nprint(int(input())**3, flush=True); os.kill(os.getpid(), 9)",
    "more than asked for": "print(int(input())**3); print()\nprint('x')",
    "printed verdict": "import os\nfor fd in range(64):\n    try: os.write(fd, b'0\\tright\\t\\n')\n    except OSError: pass",
    "closed descriptors": "import os\nos.closerange(0, 64)",
    "output closed, then sleep": "import os, time\nos.close(1); os.close(2); os.close(0); time.sleep(60)",
    "daemon prints": "import os, time\nn = int(input())\nif os.fork() == 0:\n    time.sleep(60); print(n**3)\nelse: os._exit(0)",
    "flood": "while True: print('8')",
    "flood of errors": "import sys\nwhile True: print('8', file=sys.stderr)",
    "replaced output": "import sys\nclass A:\n    def write(self, text): return len(text)\n    flush = lambda s: None\nsys.stdout = A()\nprint(8)",
    "asks for more": "import sys\nn = int(input()); sys.stdin.read()\nprint(input())",
    "input of others": "import os\nfor fd in range(3, 64):\n    try: os.lseek(fd, 0, 0)\n    except OSError: pass\nprint(os.read(0, 9))",
    "endless": "while True: pass",
    "syntax": "print(",
}  # fmt: skip


@pytest.fixture(scope="module", params=["bubblewrap", "landlock"])
def verifier(request: pytest.FixtureRequest) -> CodeVerifier:
    try:
        sandbox = find_sandbox(request.param)
    except SandboxError as error:
        pytest.skip(str(error))
    return CodeVerifier(sandbox, LIMITS, workers=2)


def needle() -> str:
    return f"needle-{secrets.token_hex(16)}"


def forms() -> dict[str, tuple[Test, ...]]:
    """Tests of each form that only one who knows what is expected passes; the second needs it before the first."""
    return {
        "assertions": (f"assert f(1) == {needle()!r}", f"def check(g): assert g(2) == {needle()!r}\ncheck(f)"),
        "calls": tuple({"function": "f", "args": [n], "expected": needle()} for n in range(2)),
        "outputs": tuple({"stdin": f"{n}\n", "stdout": needle()} for n in range(2)),
    }


@pytest.fixture(scope="module")
def hunted(verifier: CodeVerifier) -> dict[tuple[str, str], Verdict]:
    items = {(name, form): (tests, PRELUDE + HUNTS[name] + MAIN) for name in HUNTS for form, tests in forms().items()}
    return dict(zip(items, verifier.grade_programs(list(items.values())), strict=True))


@pytest.mark.parametrize("form", ["assertions", "calls", "outputs"])
@pytest.mark.parametrize("name", HUNTS)
def test_what_is_expected_is_not_found(hunted: dict[tuple[str, str], Verdict], name: str, form: str) -> None:
    verdict = hunted[name, form]
    assert verdict.kind == "wrong"
    assert "nothing found" in verdict.reason, verdict  # so the hunt ran to its end


@pytest.mark.parametrize("name", ["objects", "referents", "memory"])
def test_a_hunt_finds_what_is_in_reach(verifier: CodeVerifier, name: str) -> None:
    secret = needle()
    program = f"KEPT = [{secret[:20]!r} + {secret[20:]!r}]\n{PRELUDE}{HUNTS[name]}{MAIN}"
    assert verifier.grade_program(({"stdin": "", "stdout": secret},), program).is_right


def honest(count: int) -> list[tuple[tuple[Test, ...], str]]:
    return [(CUBE, f"def f(x): return x**3 + 0 * {n}") for n in range(count)]


@pytest.fixture(scope="module")
def attacked(verifier: CodeVerifier) -> tuple[dict[str, Verdict], list[Verdict]]:
    """Verdicts on the attacks by their names, and on the honest programs, one after each attack."""
    verifier = CodeVerifier(verifier._sandbox, Limits(wall_s=3, cpu_s=1, memory_mb=128, file_mb=2), workers=2)
    attacks = {f"value: {name}": (CUBE, program) for name, program in VALUES.items()}
    attacks |= {f"output: {name}": (ECHO, program) for name, program in OUTPUTS.items()}
    items = [item for pair in zip(attacks.values(), honest(len(attacks)), strict=True) for item in pair]
    verdicts = verifier.grade_programs(items)
    return dict(zip(attacks, verdicts[::2], strict=True)), verdicts[1::2]


@pytest.mark.parametrize("name", [*(f"value: {name}" for name in VALUES), *(f"output: {name}" for name in OUTPUTS)])
def test_an_attack_is_graded_wrong(attacked: tuple[dict[str, Verdict], list[Verdict]], name: str) -> None:
    verdict = attacked[0][name]
    assert verdict.kind == "wrong", verdict
    assert verdict.reason


def test_attacks_do_not_change_the_verdicts_of_others(attacked: tuple[dict[str, Verdict], list[Verdict]]) -> None:
    assert [verdict.kind for verdict in attacked[1]] == ["right"] * len(attacked[1])
