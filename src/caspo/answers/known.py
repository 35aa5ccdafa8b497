"""Whether an answer is right where one is known: if it is the same, or by one rule the same said with less or more."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

from caspo.answers.compare import BASED, TIME, Key, key, values_by_name
from caspo.answers.parts import named, relation, several, tight, undecorated
from caspo.answers.quantities import quantity

__all__ = ["right_answer"]

MIN_DIGITS = 6
"""Of a decimal that may stand for a number without an end."""

_RATE = re.compile(r"(?:per|each|every|an?)[\s}~]+(second|minute|hour|day|week|month|year)s?\}?$", re.IGNORECASE)
_TO = re.compile(r"\s*\\text\s*\{\s*to\s*\}\s*|\s+to\s+")
_DECIMAL = re.compile(r"-?[0-9]*\.([0-9]+)")


def right_answer(answer: str | None, known: str | None, *, ordered: bool = False) -> bool:
    r"""Whether an answer is right where ``known`` is: if it is the same, or the same but for what only one of them names.

    That is a unit (known "5 km", answer "5": then the numbers are compared as they are written), a number base, "p.m.",
    the names of values ("x = 1, y = 2", "(1, 2)"), that a number is a ratio ("3:4", "3/4"), the words after a number
    ("3 left"), the left side of an equation (known "y = 2x", answer "2x"), and what is rounded: a decimal
    of six or more significant digits may stand for a number whose decimals never end (\sqrt2 for 1.41421, 1/3 for
    0.333333). Where both name one, they must agree. ``ordered``: the parts come in the order of the known answer.

    >>> right_answer("5", "5 km"), right_answer("5 m", "5 km"), right_answer("0.333333", "1/3"), right_answer("0.33", "1/3")
    (True, False, True, False)
    """
    mine, gold = key(answer), key(known)
    if mine is None or gold is None or answer is None or known is None:
        return False
    parts, wanted = several(undecorated(answer)), several(undecorated(known))
    if _contradict(_names(parts), _names(wanted)) or _at_other_rates(answer, known):
        return False
    if not (ordered and len(wanted) > 1) and (mine == gold or _leniently(answer, known)):
        return True
    if len(parts) != len(wanted) or len(parts) < 2:
        return False
    left = list(parts)
    for part in wanted:
        found = next((i for i, x in enumerate(left[:1] if ordered else left) if right_answer(x, part)), None)
        if found is None:
            return False
        del left[found]
    return True


def _names(parts: Sequence[str]) -> list[str]:
    """The names before "=" in parts of an answer."""
    return sorted(tight(found[0]) for part in parts if (found := named(part)))


def _contradict(names: Sequence[str], others: Sequence[str]) -> bool:
    """Whether the names before "=" differ: single letters, or names with other digits ("x_1", "x_2")."""
    return any(
        a != b and (len(a) == len(b) == 1 or re.sub(r"\d", "", a) == re.sub(r"\d", "", b))
        for a, b in zip(names, others, strict=False)
        if len(names) == len(others)
    )


def _at_other_rates(answer: str, known: str) -> bool:
    """ "5 pages per day" is not "5 pages per week"."""
    a, b = _RATE.search(answer), _RATE.search(known)
    return a is not None and b is not None and a[1].casefold() != b[1].casefold()


def _leniently(answer: str, known: str) -> bool:
    """Without what only one of the two names, or rounded."""
    if " to " in answer + known and ":" in answer + known:
        answer, known = _TO.sub(":", answer), _TO.sub(":", known)
        if key(answer) == key(known):
            return True
    if _pair(answer) == _pair(known) is not None:
        return True
    a, b = _bare(answer), _bare(known)
    if (a is None) != (b is None):
        bare = a or b
        other = key(known if a is not None else answer)
        if bare == other or (bare and other and _rounded(bare, other, answer if a is None else known)):
            return True
    mine, gold = key(answer), key(known)
    return mine is not None and gold is not None and (_rounded(mine, gold, answer) or _rounded(gold, mine, known))


def _pair(answer: str) -> Key | None:
    """Coordinates, also where they are named: "x = 1, y = 2" for (1, 2)."""
    if names := values_by_name(several(undecorated(answer))):
        return "(", *(key(value) for _, value in sorted(names)), ")"
    found = key(answer)
    return found if found and found[0] == "(" and found[-1] == ")" else None


def _bare(answer: str) -> Key | None:  # noqa: PLR0911
    """The key of an answer without the unit, base, words or left side that it names; None where it names none."""
    text = undecorated(answer)
    found = quantity(text)
    if found is not None:
        return key(found.number) if found.named or found.words else None
    if match := BASED.fullmatch(tight(text)):
        return key(match[1])
    if (match := TIME.fullmatch(text)) and match[4]:
        return key(text[: match.end(3) if match[3] else match.end(2)])
    if (said := key(text)) is not None and said[0] == "ratio" and len(said) == 3:
        return "number", said[1]
    if names := values_by_name(several(text)):
        return key(", ".join(value for _, value in names))
    sides = relation(text)
    if sides is not None and sides[1] == "=" and re.fullmatch(r"\\?[a-zA-Z]+(?:_\{?\w+\}?)?", sides[0].strip()):
        return key(sides[2])
    return None


def _rounded(decimal: Key, other: Key, written: str) -> bool:
    """Whether a decimal, as it is written, is another number to as many places, rounded or cut off."""
    match = _DECIMAL.fullmatch(undecorated(written).replace(",", ""))
    if match is None or decimal[0] != "number" or other[0] not in ("number", "formula"):
        return False
    digits = re.sub(r"\D", "", match[0]).lstrip("0")
    value = _approximately(other)
    if len(digits) < MIN_DIGITS or value is None:
        return False
    unit = Fraction(1, 10 ** len(match[1]))
    cut = (abs(value) // unit) * unit
    return decimal[1] in (round(value / unit) * unit, cut if value >= 0 else -cut)


def _approximately(found: Key) -> Fraction | None:
    """The value of a number without a finite decimal, to 30 digits."""
    if found[0] == "number" and isinstance(found[1], Fraction):
        under = found[1].denominator
        for prime in (2, 5):
            while under % prime == 0:
                under //= prime
        return found[1] if under > 1 else None
    said = str(found[1])
    return (
        Fraction(said.removeprefix("irrational ")) if re.fullmatch(r"irrational -?[0-9.]+(?:e[+-]?\d{1,3})?", said) else None
    )
