r"""A strict parser for LaTeX expressions: all of the text has to be mathematics, or there is no tree.

Trees are nested tuples: ("num", Fraction), ("sym", name), ("const", name), ("add", ...), ("mul", ...), ("div", a, b),
("neg", a), ("pow", a, b) and ("call", name, arguments...). Juxtaposition multiplies from left to right, also after a
slash; an integer before a fraction of integers is a mixed number.
"""

import re
from fractions import Fraction
from typing import Any

Tree = tuple[Any, ...]

_MAX_DEPTH = 40
_TOKEN = re.compile(
    r"(?P<number>\d+(?:\.\d*)?|\.\d+)|(?P<command>\\[A-Za-z]+)|(?P<letter>[A-Za-z])|(?P<other>\\[{}|%]|[-+*/^_!()\[\]{}|%'=<>,.:&])"
    r"|(?P<space>\s+)",
    re.ASCII,
)
_FUNCTIONS = {
    "sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "arccot", "sinh", "cosh", "tanh", "coth",
    "ln", "exp", "lg",
}  # fmt: skip
_INVERSE = {"sin": "arcsin", "cos": "arccos", "tan": "arctan", "cot": "arccot"}
_SEVERAL = {"min", "max", "gcd", "lcm"}
_GREEK = {
    "alpha", "beta", "gamma", "delta", "epsilon", "varepsilon", "zeta", "eta", "theta", "vartheta", "iota", "kappa",
    "lambda", "mu", "nu", "xi", "rho", "sigma", "tau", "upsilon", "phi", "varphi", "chi", "psi", "omega", "Gamma",
    "Delta", "Theta", "Lambda", "Xi", "Sigma", "Phi", "Psi", "Omega", "ell", "dots", "infty", "angle", "triangle", "hbar",  # noqa: E501
}  # fmt: skip
_ACCENTS = {"overline", "vec", "hat", "bar", "tilde", "overrightarrow", "widehat", "mathbf", "mathcal", "mathbb"}
_TIMES = {"*", "\\cdot", "\\times"}
_OVER = {"/", "\\div"}
_FENCES = {"(": ")", "[": "]", "\\{": "\\}"}
_UNKNOWN_FUNCTIONS = set("fghFGH")
_STOPS = {")", "]", "}", "|", "\\}", "\\rfloor", "\\rceil", "\\rangle", ",", "&", "+", "-", "=", "<", ">", ":"}


class NotAnExpression(ValueError):
    """The text is not an expression this parser knows in full."""


def parse(text: str) -> Tree:
    """The tree of a whole expression. Raises NotAnExpression."""
    parser = _Parser(text)
    tree = parser.sum()
    if parser.peek():
        raise NotAnExpression(f"{parser.peek()!r} is left over")
    return tree


def tokens(text: str) -> list[str]:
    """The tokens of `text`, spaces dropped. Raises NotAnExpression for a foreign character."""
    found: list[str] = []
    position = 0
    for token in _TOKEN.finditer(text):
        if token.start() != position:
            break
        position = token.end()
        if not token["space"]:
            found.append(token[0])
    if position != len(text):
        raise NotAnExpression(f"{text[position]!r} is no mathematics")
    return found


class _Parser:
    def __init__(self, text: str) -> None:
        self._tokens = tokens(text)
        self._at = 0
        self._depth = 0
        self._in_bars = False

    def peek(self, ahead: int = 0) -> str:
        index = self._at + ahead
        return self._tokens[index] if index < len(self._tokens) else ""

    def _next(self) -> str:
        token = self.peek()
        self._at += 1
        return token

    def _take(self, token: str) -> bool:
        if self.peek() != token:
            return False
        self._at += 1
        return True

    def _expect(self, token: str) -> None:
        if not self._take(token):
            raise NotAnExpression(f"{token!r} is missing")

    def sum(self) -> Tree:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise NotAnExpression("nested too deeply")
        terms = [self._signed()]
        while self.peek() in ("+", "-"):
            terms.append(self._signed())
        self._depth -= 1
        return terms[0] if len(terms) == 1 else ("add", *terms)

    def _signed(self) -> Tree:
        negative = False
        while self.peek() in ("+", "-"):
            negative ^= self._next() == "-"
        term = self._product()
        return ("neg", term) if negative else term

    def _product(self) -> Tree:
        tree = self._factor()
        while (token := self.peek()) and token not in _STOPS:
            if token in _OVER:
                self._next()
                tree = ("div", tree, self._signed_factor())
                continue
            if token in _TIMES:
                self._next()
                tree = ("mul", tree, self._signed_factor())
            else:
                tree = self._beside(tree)
        return tree

    def _signed_factor(self) -> Tree:
        return ("neg", self._factor()) if self._take("-") else self._factor()

    def _beside(self, left: Tree) -> Tree:
        """The product of `left` and the next factor, or a mixed number."""
        after_number, token = self.peek(-1)[-1:].isdigit(), self.peek()
        right = self._factor()
        if after_number and token[:1].isdigit():
            raise NotAnExpression("two numbers side by side")
        whole = left[0] == "num" and left[1].denominator == 1
        if after_number and token == "\\frac" and whole and right[0] == "div" and right[1][0] == right[2][0] == "num":
            return ("add", left, right)
        return ("mul", left, right)

    def _factor(self) -> Tree:
        return self._powers(self._primary())

    def _powers(self, base: Tree) -> Tree:
        raised = False
        while True:
            if self._take("^"):
                if raised and self.peek() not in ("\\circ", "{"):
                    raise NotAnExpression("two exponents")
                base, raised = self._raised(base), True
            elif self._take("!"):
                base = ("call", "factorial", base)
            elif self._take("%") or self._take("\\%"):
                base = ("div", base, ("num", Fraction(100)))
            elif self._take("\\degree"):
                base = ("call", "degree", base)
            else:
                return base

    def _raised(self, base: Tree) -> Tree:
        if self.peek() == "\\circ" or (self.peek() == "{" and self.peek(1) == "\\circ"):
            self._at += 1 if self.peek() == "\\circ" else 3
            return ("call", "degree", base)
        if self._take("*") or self._take("\\prime"):
            raise NotAnExpression("a mark as exponent")
        return ("pow", base, self._argument())

    def _argument(self) -> Tree:
        """A braced group, or the single digit, letter or command that TeX would take."""
        if self._take("{"):
            inner = self.sum()
            self._expect("}")
            return inner
        token = self.peek()
        if token[:1].isdigit() and len(token) > 1:  # \frac12: TeX takes one digit at a time
            self._tokens[self._at : self._at + 1] = [token[0], token[1:]]
        if self._take("-"):
            return ("neg", self._primary())
        return self._primary()

    def _primary(self) -> Tree:
        token = self._next()
        if token[:1].isdigit() or (token.startswith(".") and len(token) > 1):
            return self._number(token)
        if token in _FENCES:
            return self._fenced(token)
        if token == "{":
            inner = self.sum()
            self._expect("}")
            return inner
        if token == "|":
            return self._bars()
        if token.isalpha():
            return self._symbol(token)
        if token.startswith("\\") and len(token) > 1:
            return self._command(token[1:])
        raise NotAnExpression(f"{token!r} is no operand" if token else "it ends too early")

    def _number(self, token: str) -> Tree:
        if self.peek() == "_":
            raise NotAnExpression("a number with an index")
        if self.peek() in ("\\overline", "\\dot", "\\bar") and "." in token:
            return self._repeating(token)
        return ("num", Fraction(token))

    def _repeating(self, token: str) -> Tree:
        self._next()
        self._expect("{")
        period = self._next()
        self._expect("}")
        if not period.isdigit():
            raise NotAnExpression("a period that is no number")
        places = len(token.partition(".")[2])
        value = Fraction(token) + Fraction(int(period), (10 ** len(period) - 1) * 10**places)
        return ("num", value)

    def _fenced(self, opening: str) -> Tree:
        bars, self._in_bars = self._in_bars, False
        inner = self.sum()
        self._expect(_FENCES[opening])
        self._in_bars = bars
        return inner

    def _bars(self) -> Tree:
        if self._in_bars:
            raise NotAnExpression("bars within bars")
        self._in_bars = True
        inner = self.sum()
        self._expect("|")
        self._in_bars = False
        return ("call", "abs", inner)

    def _symbol(self, letter: str) -> Tree:
        name = letter + self._index()
        while self._take("'"):
            name += "'"
        if name in _UNKNOWN_FUNCTIONS and self.peek() == "(":
            return ("call", f"unknown {name}", *self._arguments())
        return ("const", name) if name in ("e", "i") else ("sym", name)

    def _index(self) -> str:
        if not self._take("_"):
            return ""
        if not self._take("{"):
            return "_" + self._next()
        index = ""
        while self.peek() not in ("}", ""):
            index += self._next()
        self._expect("}")
        return "_" + index

    def _arguments(self) -> list[Tree]:
        self._expect("(")
        found = [self.sum()]
        while self._take(","):
            found.append(self.sum())
        self._expect(")")
        return found

    def _command(self, name: str) -> Tree:
        if name == "frac":
            return ("div", self._argument(), self._argument())
        if name == "sqrt":
            return self._root()
        if name == "binom":
            return ("call", "binomial", self._argument(), self._argument())
        if name in ("pi", "mathrme"):
            return ("const", name)
        if name in _FUNCTIONS or name == "log":
            return self._function(name)
        if name in _SEVERAL:
            return ("call", name, *self._arguments())
        if name in ("lfloor", "lceil"):
            return self._rounded(name)
        if name in _ACCENTS:
            return self._argument()
        if name in _GREEK:
            return ("sym", "\\" + name + self._index())
        raise NotAnExpression(f"\\{name} is not known")

    def _root(self) -> Tree:
        degree: Tree = ("num", Fraction(2))
        if self._take("["):
            degree = self.sum()
            self._expect("]")
        return ("pow", self._argument(), ("div", ("num", Fraction(1)), degree))

    def _rounded(self, name: str) -> Tree:
        inner = self.sum()
        self._expect("\\r" + name[1:])
        return ("call", name[1:], inner)

    def _function(self, name: str) -> Tree:
        base = None
        if name == "log" and self._take("_"):
            base = self._argument()
        power = self._argument() if self._take("^") else None
        if power == ("neg", ("num", Fraction(1))) and name in _INVERSE:
            name, power = _INVERSE[name], None
        inner = self._operand()
        tree = ("call", name, inner) if base is None else ("call", "log", inner, base)
        return tree if power is None else ("pow", tree, power)

    def _operand(self) -> Tree:
        """What a function applies to: brackets, or the factors up to a sign or the next function."""
        if self.peek() in ("(", "[", "{"):
            return self._primary()
        inner = self._signed_factor()
        while (token := self.peek()) and token not in _STOPS | _OVER and token[1:] not in _FUNCTIONS | {"log"}:
            if token in ("\\cdot", "\\times", "*", "("):
                break
            inner = self._beside(inner)
        return inner
