"""Joins tokens to runs: operands and operators without a gap, what may stand on one side of an equals sign."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from caspo.steps.tokens import (
    AFTER,
    BEFORE,
    CONNECTIVES,
    CONVERTIBLE,
    LABELS,
    MAX_UNIT_WORDS,
    OPERATORS,
    SAYS,
    SCALES,
    Number,
    Token,
    read_number,
    singular,
)

__all__ = ["MAX_DEPTH", "MAX_ITEMS", "Item", "Reader", "Run"]

MAX_ITEMS = 128
MAX_DEPTH = 24

Item: TypeAlias = "Number | Literal['+', '-', '*', '/', '(', ')', 'neg']"


@dataclass
class Run:
    """Operands and operators that follow each other without a gap; one side of an equation."""

    start: int
    led: bool
    """Words stand before it in its clause."""
    at_head: bool
    """Nothing stands between it and the equals sign before it."""
    sure: bool
    end: int = 0
    dash: int = 0
    """Where the items begin anew if a dash after a word ("3 kids - 4 + 5 = 9") is no minus; 0: there is none."""

    def __post_init__(self) -> None:
        self.items: list[Item] = []
        self.open: list[tuple[str, int, int]] = []
        """Open parentheses: kind (see `Reader.on_open`), index of the item after it, position in the text."""
        self.unit_words = 0
        self.last_word = ""
        self.unreadable = False
        self.fractions: list[int] = []
        """Indices of the division signs written without spaces: 3 / 1/2 may mean 3 / (1/2)."""

    @property
    def expecting(self) -> bool:
        """Whether an operand must come next."""
        return not self.items or not (isinstance(self.items[-1], Number) or self.items[-1] == ")")

    def readings(self) -> list[list[Item]]:
        """The items as written, and the other ways to take them."""
        found = [self.items]
        if self.dash:
            found.append(self.items[self.dash :])
        if self.fractions and self.items.count("/") > 1:
            bound = list(self.items)
            for i in reversed(self.fractions):
                match bound[i - 1 : i + 2]:  # anything else: a sign taken back ($5/hour), a parenthesis
                    case [Number() as over, "/", Number() as under]:
                        bound[i - 1 : i + 2] = ["(", over, "/", under, ")"]
            found.append(bound)
        return found

    @property
    def has_operator(self) -> bool:
        return bool({"+", "-", "*", "/"} & set(self.items))


class Reader:
    """Reads the tokens between two equals signs into the run that starts there and the run that ends there."""

    def __init__(self, tokens: Sequence[Token], after_equals: bool) -> None:
        self.tokens = tokens
        self.head: Run | None = None
        self.run: Run | None = None
        self.lead: list[str] = []  # words of the clause since the last run
        self.poisoned = False  # something unreadable in this clause
        self.fresh = after_equals  # nothing but white space and currency since the equals sign
        self.unsure_next = False
        self.part_of_next = False  # "1/2 of the 10 ..."
        self.currency = ""

    def read(self) -> tuple[Run | None, Run | None]:
        for i, token in enumerate(self.tokens):
            self.position = i
            self.before = self.tokens[i - 1] if i else None
            self.after = self.tokens[i + 1] if i + 1 < len(self.tokens) else None
            getattr(self, f"on_{token.kind}", self.poison)(token)
            if token.kind != "cur" and self.run is None:
                self.fresh = False
            if self.run is not None and len(self.run.items) > MAX_ITEMS:
                self.poison(token)
        tail, readable = self.run, not self.poisoned
        self.finish()
        if tail is None or not readable or tail.unreadable or tail.expecting:
            return self.head, None
        return self.head, _strip(tail)

    def poison(self, token: Token) -> None:
        self.poisoned = True

    def finish(self) -> None:
        """The current run ends; it is the head if it began right after the equals sign."""
        run, self.run = self.run, None
        if run is None or self.poisoned or run.unreadable or run.expecting or run.open:
            return
        if run.at_head and self.head is None:
            self.head = run

    def start(self, token: Token) -> Run:
        said = next((i for i in range(len(self.lead), 0, -1) if self.lead[i - 1] in SAYS), 0)
        self.run = Run(token.start, bool(self.lead), self.fresh, sure=not self.unsure_next)
        self.run.unreadable = self.part_of_next or bool(BEFORE & set(self.lead[max(said, len(self.lead) - 4) :]))
        self.lead, self.unsure_next, self.part_of_next = [], False, False
        return self.run

    def _adjacent(self, token: Token) -> bool:
        return self.before is not None and self.before.end == token.start

    def _operand_follows(self) -> bool:
        return self.after is not None and self.after.kind in ("num", "mixed", "open", "frac", "cur")

    def _proper_fraction_follows(self) -> bool:
        rest = [t for t in self.tokens[self.position + 1 : self.position + 7] if t.kind not in ("cur", "open")]
        match [(t.kind, t.text) for t in rest[:3]]:
            case [("num", over), ("op", "/"), ("num", under)]:
                return over.isdigit() and under.isdigit() and int(over) < int(under)
        return any(t.kind in ("frac", "mixed") for t in rest[:1])

    def on_break(self, token: Token) -> None:
        self.finish()
        self.lead, self.poisoned, self.currency = [], False, ""
        self.unsure_next = self.part_of_next = False

    def on_bang(self, token: Token) -> None:
        """A factorial; after a single result ("= 7!") perhaps the end of a sentence."""
        run = self.run
        if run is None or run.unit_words:
            return self.on_break(token)
        goes_on = self.after is not None and self.after.kind in ("op", "open", "close", "bang", "percent")
        if goes_on or run.has_operator or (self.after is None and not run.at_head):
            return self.poison(token)
        run.sure = False
        return self.on_break(token)

    def on_cur(self, token: Token) -> None:
        unit = "cent" if token.text == "¢" else "dollar"
        if self.run is not None and not self.run.expecting and not self._operand_follows():
            self._set_unit(unit)
        else:
            self.currency = unit

    def on_num(self, token: Token) -> None:
        number, run = read_number(token), self.run
        glued = self.before is not None and self.before.kind == "word" and self._adjacent(token)
        if number is None or (glued and not (run is not None and run.expecting)):
            return self.poison(token)  # A1; but 3x4 is a product, its x taken already
        if run is not None and not run.expecting:
            if not run.unit_words:
                return self.poison(token)
            self.unsure_next = run.has_operator  # "add 20 + 10 cakes to the 29 + 24 cakes"
            self.lead = ["#", run.last_word]
            self.finish()
            run = None
        if run is None:
            if self.lead and singular(self.lead[-1]) in LABELS and not self.currency:
                self.lead.append("#")
                return None
            run = self.start(token)
        elif run.open and run.open[-1][0] == "fraction":
            return self.poison(token)
        if re.match("0[0-9]", token.text):
            run.sure = False  # 0900 - 0130: a time of day, or a code
        run.items.append(number._replace(unit=self.currency))
        run.end, run.unit_words, self.currency = token.end, 0, ""

    on_mixed = on_num

    def on_compound(self, token: Token) -> None:
        """15 4-packs, a 1000-foot wall: a word that ends the run, not a number."""
        if self.run is not None and self.run.expecting:
            return self.poison(token)
        self.finish()
        self.lead.append(token.text)

    def on_percent(self, token: Token) -> None:
        if self.run is None or self.run.unit_words or not isinstance(self.run.items[-1], Number):
            return self.poison(token)
        self.run.items[-1] = self.run.items[-1]._replace(percent=True)
        self.run.end = token.end

    def on_op(self, token: Token) -> None:
        if token.text[0].isalpha() and not self._operand_follows():
            return self.on_word(token)  # "rang 12 times", "a $10 fee plus another $7"
        op, run = OPERATORS.get(token.text, token.text), self.run
        close_right = self.after is not None and self.after.start == token.end
        if op == ":":
            spaced = not close_right and not self._adjacent(token)
            if run is None or run.expecting or not (spaced and self._operand_follows()):
                return self.on_break(token)
            op, run.sure = "/", False
        if run is None:
            return self._leading_operator(op, token, close_right)
        if run.expecting or (run.open and run.open[-1][0] == "fraction"):
            if op != "-" or run.items[-1:] == ["neg"]:
                return self.poison(token)
            run.items.append("neg")
            return None
        if op == "/" and close_right and self._adjacent(token):
            run.fractions.append(len(run.items))
        run.items.append(op)  # type: ignore[arg-type]
        if op == "-" and run.unit_words and not close_right and not run.open:
            run.dash = len(run.items)
        run.unit_words = 0

    def _leading_operator(self, op: str, token: Token, close_right: bool) -> None:
        line_start = not self.fresh and (self.before is None or self.before.text == "\n")
        if line_start and op in "-*" and not close_right:
            return  # a bullet
        if op == "-" and (self.fresh or (close_right and not self._adjacent(token))):
            self.unsure_next = self.unsure_next or bool(self.lead)
            self.start(token).items.append("neg")
        elif op == "-":
            self.unsure_next = True  # "apples - 3 + 4 = 7": a dash, or an unknown number of apples
        else:
            self.poison(token)

    def on_frac(self, token: Token) -> None:
        if self.run is not None and not self.run.expecting:
            return self.poison(token)
        self._push(self.run or self.start(token), "fraction", token)

    def on_open(self, token: Token) -> None:
        """Kinds: group; fraction, and inside it over and under; comment: "7 (3 + 4 = 7)", no product."""
        run, kind = self.run, "group"
        if run is None:
            if self.before is not None and self.before.kind == "word" and self._adjacent(token):
                return self.poison(token)  # f(x)
            run = self.start(token)
        elif run.open and run.open[-1][0] == "fraction":
            kind = "over" if run.items[-1] == "(" else "under"
        elif not run.expecting:
            if self._adjacent(token) and not run.unit_words:
                run.items.append("*")
            else:
                if self.after is not None and (self._operand_follows() or len(self.after.text) == 1):
                    run.sure = False  # 6/2 [2a + 5d] may be a product
                self.finish()
                self.lead.append("(")
                run, kind = self.start(token), "comment"
        self._push(run, kind, token)

    def _push(self, run: Run, kind: str, token: Token) -> None:
        run.items.append("(")
        run.open.append((kind, len(run.items), token.end))
        if len(run.open) > MAX_DEPTH:
            self.poison(token)

    def on_close(self, token: Token) -> None:
        run = self.run
        if run is None or not run.open:
            self.finish()
            self.lead.append(")")
            return None
        kind = run.open.pop()[0]
        if run.expecting or kind in ("comment", "fraction"):
            return self.poison(token)
        run.items.append(")")
        if kind == "over":
            run.items.append("/")
        elif kind == "under":
            run.items.append(")")
            run.open.pop()
        run.end, run.unit_words = token.end, 0

    def on_text(self, token: Token) -> None:
        r"""``\text{...}``: the unit of the number before it, or the name of something unknown."""
        if self.run is not None and self.run.expecting:
            return self.poison(token)
        for word in re.findall(r"[^\W\d_]+", token.text.partition("{")[2].lower()):
            if self.run is None:
                self.lead.append(word)
            else:
                self._unit_word(word, token, adjacent=False)

    def on_word(self, token: Token) -> None:
        word, run = token.text.lower(), self.run
        if run is None:
            self.lead.append(word)
            return None
        if run.expecting:
            return self._word_for_operand(word, token)
        if word == "of" and not run.unit_words and self._operand_follows():
            run.sure = run.sure and not run.at_head  # 1 - 2/3 = 1/3 of $150
            run.items.append("*")
            return None
        if word == "x" and self._operand_follows():
            run.items.append("*")
            run.unit_words = 0
            return None
        return self._unit_word(word, token, self._adjacent(token))

    def _word_for_operand(self, word: str, token: Token) -> None:
        run = self.run
        assert run is not None
        op = run.items[-1] if run.items else ""
        before = self.before
        glued = before is not None and self._adjacent(token)
        if len(word) > 1 and len(run.items) > 1 and op in ("-", "/") and glued:
            run.items.pop()  # $5/hour, 3-day
            return self._unit_word(word, token, False)
        if len(word) > 1 and op == "-" and len(run.items) > 1 and not run.open:
            run.items.pop()  # a dash: "= 7 - that is"
            self.finish()
            self.lead = [word]
            return None
        return self.poison(token)

    def _unit_word(self, word: str, token: Token, adjacent: bool) -> None:
        run = self.run
        assert run is not None
        last = run.items[-1]
        if word in SCALES and not run.unit_words and isinstance(last, Number):
            zeros = len(str(SCALES[word])) - 1
            value, decimals = last.value * SCALES[word], max(0, last.decimals - zeros)
            run.items[-1] = last._replace(value=value, decimals=decimals, scaled=True)
            run.end = token.end
        elif len(word) == 1 and (adjacent or word not in ("a", "i") or not self._article()):
            if word not in ("m", "g", "h", "s", "l"):
                return self.poison(token)  # 2x + 3 = 7
            run.sure = False
            run.unit_words += 1
        elif adjacent and len(word) < 4 and isinstance(last, Number) and singular(word) not in CONVERTIBLE:
            return self.poison(token)  # 3ab + 7
        elif word in AFTER and not run.unit_words:
            return self.poison(token)
        elif (word in CONNECTIVES and not (word == "of" and run.unit_words)) or run.unit_words >= MAX_UNIT_WORDS:
            part = isinstance(last, Number) and (last.percent or last.value.denominator > 1 or "/" in run.items)
            if word == "and":
                run.sure = run.sure and not self._proper_fraction_follows()  # 4 / 3 = 1 and 1/3
                self.unsure_next = self._operand_follows() and not run.has_operator and not run.at_head  # sum of 3 and 4 * 5
            elif word == "the":
                self.unsure_next = run.has_operator  # "add 20 + 10 cakes to the 29 + 24 cakes"
            self.finish()
            self.lead = [word]
            self.part_of_next = word == "of" and part
        else:
            run.unit_words += 1
            run.last_word = word
            self._set_unit(singular(word))

    def _article(self) -> bool:
        """Whether a single "a" goes with the word after it ("5 * 8 a day"), and is no variable ("9/4 a = 36")."""
        return self.after is not None and self.after.kind == "word" and len(self.after.text) > 1

    def _set_unit(self, unit: str) -> None:
        last = self.run.items[-1] if self.run is not None else None
        if self.run is not None and isinstance(last, Number) and unit in CONVERTIBLE:
            self.run.items[-1] = last._replace(unit=unit)


def _strip(run: Run) -> Run | None:
    """The part of a run after its last open parenthesis: "7 (3 + 4" before an equals sign is 3 + 4."""
    if any(kind not in ("group", "comment") for kind, _, _ in run.open):
        return None
    if run.open:
        kind, index, position = run.open[-1]
        if kind == "group" and index > 1:
            run.sure = False  # 100 + (20 * 3 = 160: the parenthesis was never closed
        run.items, run.start, run.led, run.dash = run.items[index:], position, False, max(0, run.dash - index)
        run.fractions = [i - index for i in run.fractions if i > index]
    return run
