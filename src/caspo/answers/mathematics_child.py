"""The process behind `mathematics`: reads a formula a line as JSON, answers with its fingerprint. Run as a script.

A fingerprint is the value of a formula: exactly, where it is a rational number, else 30 digits of it, calculated with 80;
where the formula has variables, at points that are drawn by their names (and with one of them negative in turn, where that
gives a real number). Equal formulas have equal fingerprints, so that comparing them is an equivalence relation, at any
magnitude: nothing is held to be zero that is not zero by 60 digits of its own terms.

It needs nothing of caspo. Memory is limited, as is the time of a question in case the parent, which keeps the limit, is
gone.
"""

import hashlib
import json
import logging
import signal
import sys
from fractions import Fraction
from typing import Any

MEMORY = 4 << 30
"""Bytes of address space."""
SECONDS = 30
"""After which a question whose parent is gone ends the process."""
DIGITS = 30
"""Of a fingerprint; 80 are calculated."""
MAX_BITS = 40000
"""Of an exact number."""
SIZES = (1.0, 5.0, 0.25)
"""Of the values of variables, a point each."""


class UnreadableError(Exception):
    """The formula has no value that can be calculated."""


def main() -> None:
    """Answer until the input ends."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    except (ImportError, ValueError, OSError):  # Windows, or a limit below ours: the time limit stays
        pass
    logging.disable()
    sys.setrecursionlimit(3000)
    if hasattr(sys, "set_int_max_str_digits"):
        sys.set_int_max_str_digits(0)
    import latex2sympy2_extended  # noqa: F401
    import mpmath

    mpmath.mp.dps = 80
    for line in sys.stdin:
        alarm = getattr(signal, "alarm", None)
        if alarm is not None:
            alarm(SECONDS)
        try:
            answer = fingerprint(*json.loads(line)) if line.strip() else "ready"
        except Exception:  # sympy raises anything; a formula that cannot be read has no value
            answer = "none"
        print(answer.replace("\n", " "), flush=True)
        if alarm is not None:
            alarm(0)


def fingerprint(latex: str, kind: str) -> str:
    """``kind``: "value", or "=", "<" for a formula that is compared with 0, where a factor does not matter."""
    from latex2sympy2_extended import latex2sympy
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig
    from sympy import MatrixBase

    formula = latex2sympy(latex, conversion_config=ConversionConfig(lowercase_symbols=False))
    if not isinstance(formula, MatrixBase) and getattr(formula, "is_Matrix", False):
        formula = formula.doit()
    if isinstance(formula, MatrixBase):
        return f"matrix {formula.shape} " + "; ".join(of_formula(x, kind) for x in formula)
    return of_formula(formula, kind)


def of_formula(formula: Any, kind: str) -> str:
    """The fingerprint of one that is no matrix."""
    import sympy

    names = sorted(str(x) for x in formula.free_symbols if str(x) != "i")
    if not names and kind == "value":
        number = exact(formula)
        return f"number {number}" if number is not None else constant(evaluate(formula, {}))
    steps = any(type(x).__name__ in ("floor", "ceiling") for x in sympy.preorder_traversal(formula))
    sizes = (*SIZES, *(2.0**n for n in range(3, 11))) if steps else SIZES  # steps look alike at a few points
    points = [{name: size * drawn(name, k) for name in names} for k, size in enumerate(sizes)]
    values = [evaluate(formula, point) for point in points]
    spread = [abs(v - values[0]) <= abs(values[0]) * ulp() for v in values]
    if kind == "value" and all(spread):
        return constant(values[0])
    flipped = [real(formula, {**points[0], name: -points[0][name]}) for name in names[:4]]
    scale: Any = 1
    if kind != "value" and values[0]:
        scale = values[0] if kind == "=" else abs(values[0])
    return "values " + " ".join(shown(v / scale) if v is not None else "~" for v in (*values, *flipped))


def drawn(name: str, k: int) -> Any:
    """A number between 1 and 2, always the same for a name."""
    from mpmath import mpf

    return 1 + mpf(int.from_bytes(hashlib.sha256(f"{k} {name}".encode()).digest()[:16])) / (1 << 128)


def real(formula: Any, point: dict[str, Any]) -> Any:
    """The value at a point if it is a real number, else None."""
    try:
        value = evaluate(formula, point)
    except Exception:
        return None
    return None if value.imag else value


def ulp() -> Any:
    """What is nothing beside 1."""
    from mpmath import mpf

    return mpf(10) ** -60


def tidy(value: Any) -> Any:
    """Without a real or imaginary part that is nothing beside the other."""
    from mpmath import isfinite, mpc

    if not isfinite(value):
        raise UnreadableError
    value = mpc(value)
    re, im = value.real, value.imag
    size = max(abs(re), abs(im)) * ulp()
    return mpc(0 if abs(re) <= size else re, 0 if abs(im) <= size else im)


def shown(value: Any) -> str:
    """Both parts, to `DIGITS` digits."""
    from mpmath import nstr

    value = tidy(value)
    return f"{nstr(value.real, DIGITS)} + {nstr(value.imag, DIGITS)}i" if value.imag else nstr(value.real, DIGITS)


def constant(value: Any) -> str:
    """A rational number where the value is one with few digits, however it was written."""
    from mpmath import floor, log10, mpf

    value = tidy(value)
    if value.imag:
        return f"complex {shown(value)}"
    v = value.real
    if not v:
        return "number 0"
    places = int(floor(log10(abs(v))))
    if abs(places) < 5000:
        scaled = Fraction(int(v * mpf(10) ** (70 - places)), 10**70)
        near = scaled.limit_denominator(10**10)
        if abs(scaled - near) < Fraction(1, 10**58):
            return f"number {near * Fraction(10) ** places}"
    return f"irrational {shown(value)}"


def exact(formula: Any) -> Fraction | None:
    """The value of sums, products, whole powers and factorials of rational numbers, if it is not too long."""
    name, args = type(formula).__name__, [] if formula.is_Atom else [exact(x) for x in formula.args]
    if formula.is_Rational:
        return Fraction(int(formula.p), int(formula.q))
    found: Fraction | None = None
    if not args or any(x is None for x in args):
        return None
    numbers = [x for x in args if x is not None]
    if name == "Add":
        found = sum(numbers, Fraction(0))
    elif name == "Mul":
        found = Fraction(1)
        for x in numbers:
            found *= x
    elif name == "Pow" and numbers[1].denominator == 1 and (numbers[0] or numbers[1] > 0):
        bits = max(numbers[0].numerator.bit_length(), numbers[0].denominator.bit_length())
        found = numbers[0] ** int(numbers[1]) if bits * abs(numbers[1]) < MAX_BITS else None
    elif name == "factorial" and numbers[0].denominator == 1 and 0 <= numbers[0] < 2000:
        from math import factorial

        found = Fraction(factorial(int(numbers[0])))
    elif name == "binomial" and all(x.denominator == 1 and 0 <= x < 5000 for x in numbers):
        from math import comb

        found = Fraction(comb(int(numbers[0]), int(numbers[1])))
    elif name == "UnevaluatedExpr":
        found = numbers[0]
    if found is None or max(found.numerator.bit_length(), found.denominator.bit_length()) > MAX_BITS:
        return None
    return found


def evaluate(formula: Any, point: dict[str, Any]) -> Any:  # noqa: PLR0911
    """The value with 80 digits at a point. Raises UnreadableError where there is none."""
    import mpmath as mp

    name = type(formula).__name__
    if formula.is_Rational:
        return mp.mpf(int(formula.p)) / int(formula.q)
    if formula.is_Symbol:
        return mp.mpc(0, 1) if str(formula) == "i" else point[str(formula)]
    if name in _CONSTANTS:
        return _CONSTANTS[name](mp)
    if name in ("Sum", "Product", "Integral", "Limit") or (name == "Derivative" and not formula.args[0].is_Atom):
        done = formula.doit()
        if type(done).__name__ == name:
            return unknown(formula, point)
        return evaluate(done, point)
    if name == "Derivative" or (formula.is_Function and name not in _KNOWN):
        return unknown(formula, point)
    args = [evaluate(x, point) for x in formula.args]
    return tidy(_calculated(name, args, mp))


def _calculated(name: str, args: list[Any], mp: Any) -> Any:  # noqa: PLR0911
    if name == "Add":
        total = mp.fsum(args)
        return mp.mpf(0) if abs(total) <= max(abs(x) for x in args) * ulp() else total
    if name == "Mul":
        return mp.fprod(args)
    if name in ("Pow", "exp"):
        base, power = args if name == "Pow" else (mp.e, args[0])
        if abs(power) > 1e18 or (not base and mp.re(power) <= 0):
            raise UnreadableError  # a tower of powers, or 1/0
        return mp.power(base, power) if base else mp.mpf(0)
    if name == "log":
        return mp.log(args[0]) / (mp.log(args[1]) if len(args) > 1 else 1)
    if name in ("floor", "ceiling"):  # what is calculated may miss a whole number by a little
        return mp.floor(mp.re(args[0]) + ulp()) if name == "floor" else mp.ceil(mp.re(args[0]) - ulp())
    if name in ("factorial", "gamma", "binomial") and any(abs(x) > 1e9 for x in args):
        raise UnreadableError
    if name in ("UnevaluatedExpr", "Tuple"):
        return args[0]
    if name not in _FUNCTIONS:
        raise UnreadableError
    value = _FUNCTIONS[name](mp)(*args)
    return mp.mpf(0) if name in _SAME_NAME and abs(value) < ulp() else value  # sin(pi)


def unknown(formula: Any, point: dict[str, Any]) -> Any:
    """A value for what has none of its own, f(x) or dx/dt: drawn by its name and its arguments."""
    if formula.is_Function:
        name = f"{type(formula).__name__}({', '.join(shown(evaluate(x, point)) for x in formula.args)})"
        return drawn(name, 0)
    return drawn(str(formula) + " ".join(shown(point[x]) for x in sorted(point)), 0)


_CONSTANTS = {
    "Pi": lambda mp: mp.mpf(mp.pi),
    "Exp1": lambda mp: mp.mpf(mp.e),
    "ImaginaryUnit": lambda mp: mp.mpc(0, 1),
    "GoldenRatio": lambda mp: mp.mpf(mp.phi),
    "EulerGamma": lambda mp: mp.mpf(mp.euler),
}
_CIRCLE = "sin cos tan cot sec csc asin acos atan acot asec acsc"
_SAME_NAME = frozenset(f"{_CIRCLE} sinh cosh tanh coth sech csch asinh acosh atanh sign gamma".split())
_FUNCTIONS: dict[str, Any] = {name: (lambda mp, name=name: getattr(mp, name)) for name in _SAME_NAME}
_FUNCTIONS |= {
    "Abs": lambda mp: abs,
    "factorial": lambda mp: mp.factorial,
    "binomial": lambda mp: mp.binomial,
    "re": lambda mp: mp.re,
    "im": lambda mp: mp.im,
    "arg": lambda mp: mp.arg,
    "conjugate": lambda mp: mp.conj,
    "Max": lambda mp: lambda *x: max(x, key=mp.re),
    "Min": lambda mp: lambda *x: min(x, key=mp.re),
    "Mod": lambda mp: lambda a, b: a - b * mp.floor(mp.re(a / b) + ulp()),
}
_KNOWN = frozenset({*_FUNCTIONS, "exp", "log", "floor", "ceiling"})


if __name__ == "__main__":
    main()
