"""What a step says its result is: whose it is, of what, and whether it is compared with another's.

Each result of a generated problem has a line in the written solution ("Kofi has 7 + 5 = 12 shells."). A step that comes
to the same result is held against that line: it may use other words, but names the same person and the same thing. What
it says is right, wrong, or not understood; for that the words of such short statements are listed here, and one that is
neither listed nor in the problem makes a statement not understood.

What is not covered: meaning. "After the gift" for what was found is not understood, where "After the loss" stands for a
loss it passes because the solution says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from caspo.judges.wording import (
    ADJECTIVES,
    ADVERBS,
    AMOUNTS,
    COMPARED,
    EACH,
    FILLERS,
    GENERIC,
    HAS,
    HOLDS,
    IMPERSONAL,
    LEADS,
    LESS,
    MISSING,
    MORE,
    PLURALS,
    PRONOUNS,
    STARTS,
    STATES,
    SUBJECTS,
    TITLED,
    VERBS,
)
from caspo.records import Label
from caspo.steps import equations

__all__ = ["Cast", "Claim", "claim_at", "claims", "compare", "lead_stems", "says_nothing", "strangers"]


_WORD = re.compile(r"[^\W\d_]+(?:[-'’][^\W\d_]+)*|[.,;:!?\n$]|[0-9]+")


@dataclass(frozen=True)
class Cast:
    """Who and what a problem tells of."""

    people: frozenset[str]
    words: frozenset[str]
    """Stems of all its words."""
    first: frozenset[str]
    """Stems of its first sentence."""
    leading: str = ""
    """The person named first."""

    @staticmethod
    @lru_cache(maxsize=4096)
    def of(text: str) -> Cast:
        """Read a question. A word with a capital is a name, but for those that begin a sentence and are ordinary."""
        lower = {word for word in _WORD.findall(text) if word.islower()}
        names = [w for w in map(_bare, _WORD.findall(text)) if w[:1].isupper() and w.lower() not in STARTS | lower]
        first = re.split(r"[.?!]", text, maxsplit=1)[0]
        return Cast(frozenset(names), _stems(text), _stems(first), names[0] if names else "")


@dataclass(frozen=True)
class Claim:
    """One result of a step and the words around it."""

    before: tuple[str, ...]
    """Words of its clause before the equation."""
    after: tuple[str, ...]
    money: bool = False
    """The result is written with a currency sign."""
    people: tuple[str, ...] = field(default=())
    """Known people of the main clause, in order."""

    @property
    def words(self) -> tuple[str, ...]:
        """All of them."""
        return self.before + self.after

    @property
    def lowered(self) -> frozenset[str]:
        """All of them without capitals."""
        return frozenset(word.lower() for word in self.words)

    @property
    def thing(self) -> str:
        """The stem of what is counted: the first word after the result that is no adjective; "" if there is none."""
        for word in self.after:
            if word.lower() not in ADJECTIVES:
                return "" if word in _PUNCTUATION or word.lower() in FILLERS | VERBS else _stem(word)
        return ""

    @property
    def compared(self) -> bool:
        """It says how much more one has than another."""
        return bool(self.lowered & COMPARED)


_PUNCTUATION = frozenset(".,;:!?\n$")


def claims(text: str, cast: Cast) -> list[Claim]:
    """The claims of a step, one for each of its equations that stand apart; a chain of equations makes one."""
    spans: list[list[int]] = []
    for equation in equations(text):
        start, end = equation.span
        if spans and start <= spans[-1][1]:
            spans[-1][1] = max(end, spans[-1][1])
        else:
            spans.append([start, end])
    return [claim_at(text, (a, b), cast, spans[i - 1][1] if i else 0) for i, (a, b) in enumerate(spans)]


def claim_at(text: str, span: tuple[int, int], cast: Cast, begin: int = 0) -> Claim:
    """The claim about the number or equation at ``span``, read from ``begin`` on."""
    start, end = span
    # A unit that ran into the span ("= 12 shells + ...") is not lost: only its end counts.
    lead = re.split(r"[.;:!?\n](?:\s|$)|\band\s+(?=[a-z]*\s*$)", text[begin:start])[-1]
    tail = re.split(r"[;:!?\n]|[.](?![0-9])", text[end:], maxsplit=1)[0]
    if (following := next((e.span[0] for e in equations(text) if e.span[0] >= end), None)) is not None:
        tail = text[end : min(following, end + len(tail))]
        tail = re.split(r",|\band\b|\bthen\b", tail, maxsplit=1)[0]
    before = tuple(_bare(word) for word in _WORD.findall(lead))
    after = tuple(_bare(word) for word in _WORD.findall(tail))
    money = "$" in text[start:end] or before[-1:] == ("$",)
    main = before[_lead_length(before, cast) :]
    people = tuple(word for word in (*main, *after) if word in cast.people)
    return Claim(tuple(w for w in before if w != "$"), after, money, people)


def strangers(text: str, cast: Cast, known: Iterable[str] = ()) -> list[str]:
    """Names in a step that are nobody's in the problem.

    A capital in mid-sentence makes a name; at the start of a sentence it takes a verb after it ("Napoleon has").
    """
    ordinary = TITLED | frozenset(known)
    found = []
    words = [w for w in map(_bare, _WORD.findall(text)) if w != "$"]
    for at, word in enumerate(words):
        if len(word) < 2 or not word[0].isupper() or word in cast.people or word.lower() in ordinary:
            continue
        if _stem(word) in cast.words:
            continue
        starts = at == 0 or words[at - 1] in ".;:!?\n"
        rest = [w for w in words[at + 1 : at + 4] if w.lower() not in ADVERBS]
        acts = bool(rest) and (rest[0].lower() in VERBS or (rest[0] == "and" and rest[-1][0].isupper()))
        if not starts or (acts and not word.endswith(("ing", "ed"))):
            found.append(word)
    return found


def compare(said: Claim, true: Claim, cast: Cast, others: Sequence[Claim]) -> tuple[Label, str]:
    """Whether ``said`` says of its result what the solution's line ``true`` says: a label and a reason.

    ``others`` are all lines of the solution: what they count and what they follow on is not that of this one.
    """
    things = frozenset(line.thing for line in others if line.thing)
    wrong = _wrong_person(said, true, cast) or _wrong_thing(said, true, cast, things) or _wrong_subject(said, true, cast)
    if wrong:
        return "wrong", wrong
    doubt = _other_lead(said, true, others, cast) or _doubt(said, true, cast)
    return ("unknown", doubt) if doubt else ("right", "")


def _wrong_person(said: Claim, true: Claim, cast: Cast) -> str:
    if true.compared or said.compared:
        return _wrong_comparison(said, true)
    if said.people and true.people and set(said.people) != set(true.people):
        return f"{_listed(true.people)}, not {_listed(said.people)}, is what the result is of"
    lead, others = _lead_people(said, cast), _lead_people(true, cast)
    if lead and others and not lead & others:
        return f"the result is with {_listed(sorted(others))}, not with {_listed(sorted(lead))}"
    return ""


def _wrong_comparison(said: Claim, true: Claim) -> str:
    if not true.compared:
        return "the result is an amount, no difference"
    if not said.compared:
        alone = said.people and not said.lowered & (MORE | LESS | {"difference"})
        return "the result is a difference, no amount" if alone else ""
    ahead = tuple(reversed(said.people)) if said.lowered & LESS else said.people
    expected = tuple(reversed(true.people)) if true.lowered & LESS else true.people
    if len(said.people) > 1 and ahead != expected:
        return f"{_listed(expected[:1])} is ahead of {_listed(expected[1:])}"
    if len(said.people) == 1 and ahead[0] not in expected:
        return f"the difference is that of {_listed(expected)}"
    return ""


def _wrong_thing(said: Claim, true: Claim, cast: Cast, things: frozenset[str]) -> str:
    thing = said.thing
    if said.money and true.thing and true.thing not in ("dollar", "cent"):
        return f"the result is {true.thing}, no money"
    if not thing or not true.thing or thing in GENERIC | {_stem(w) for w in true.after} or said.after[0] in cast.people:
        return ""
    raw = next(word for word in said.after if _stem(word) == thing)
    if thing in things or thing in cast.words or (raw.islower() and (raw.endswith("s") or raw in PLURALS)):
        return f"the result counts {true.thing}, not {raw}"
    return ""


def _wrong_subject(said: Claim, true: Claim, cast: Cast) -> str:
    """The cakes cost ..., where the problem has no cakes, or where it is the pens that do."""
    main = [w for w in said.before[_lead_length(said.before, cast) :] if w not in _PUNCTUATION]
    lowered = [word.lower() for word in main]
    if len(main) < 2 or lowered[0] not in ("the", "each", "all", "every", "both", "a") or lowered[-1] not in VERBS:
        return ""
    noun = next((w for w in reversed(lowered[1:]) if w not in VERBS | FILLERS | ADVERBS), "")
    stem = _stem(noun)
    allowed = {_stem(word) for word in true.words}
    if not noun or noun in AMOUNTS or stem in allowed or noun in ADJECTIVES | LEADS or len(main) > 4:
        return ""
    if stem not in cast.words:
        return f"the problem has no {noun}"
    subject = next((w.lower() for w in true.before[_lead_length(true.before, cast) :] if w.lower() != "the"), "")
    if subject in SUBJECTS or not subject:
        return ""  # it is said of nothing in particular
    return f"the result is not that of the {noun}"


def _other_lead(said: Claim, true: Claim, others: Sequence[Claim], cast: Cast) -> str:
    """After the coupon ..., where the solution says so of another result."""
    own = {_stem(word) for word in true.words}
    of_others = {stem for line in others for stem in lead_stems(line, cast)} - own
    odd = lead_stems(said, cast) & of_others
    return f"another result is what follows on the {min(odd)}" if odd else ""


def _doubt(said: Claim, true: Claim, cast: Cast) -> str:
    """Why it is not sure that the two say the same, or ""."""
    if said.people and not true.people:
        return f"whether it is what {said.people[0]} has is not known"
    length = _lead_length(said.before, cast)
    if said.before[length:] and said.before[length].lower() in HAS:
        return "whose it is is not said"
    odd = next((word for word in said.words if word not in cast.people and not _understood(word, said, true, cast)), "")
    return f"{odd!r} is not understood" if odd else _qualified(said, true)


def _understood(word: str, said: Claim, true: Claim, cast: Cast) -> bool:
    """Whether a word of a statement is one that says the same as the solution's line, or nothing."""
    length = _lead_length(said.before, cast)
    lower, stem = word.lower(), _stem(word)
    if stem in {_stem(w) for w in true.words} or (true.compared and lower in MORE | LESS | COMPARED):
        return True
    if word in said.before[length:]:
        impersonal = not true.people and _subject(true, cast) in SUBJECTS | {""}
        verbs = HAS if said.people else IMPERSONAL | HAS | HOLDS
        his = lower in PRONOUNS and (not true.people or true.people[0] == cast.leading or len(cast.people) < 2)
        place = impersonal and stem in cast.first
        return lower in verbs | AMOUNTS or (_plain(word) and lower not in IMPERSONAL) or his or place
    if word in said.before[:length]:
        return _plain(word) or _told(word, cast.words)
    return _plain(word) or stem in GENERIC | cast.words or lower in HAS | ADJECTIVES | MISSING | EACH


def _qualified(said: Claim, true: Claim) -> str:
    """What one of the two says of its result and the other does not: more, each, missing."""
    said_words, true_words = said.lowered, true.lowered
    if "more" in said.after and not true_words & (MORE | MISSING):
        return "more than what is not said"
    if said_words & EACH and not true_words & EACH:
        return "the result is not of each"
    if "missing" in true_words and not says_nothing(said) and not said_words & MISSING:
        return "the result is what is missing"
    if "missing" in said_words and not true_words & MISSING:
        return "the result is not what is missing"
    return ""


def _subject(claim: Claim, cast: Cast) -> str:
    main = claim.before[_lead_length(claim.before, cast) :]
    return next((word.lower() for word in main if word.lower() not in ("the", "a", "so", "then", "now")), "")


def _lead_length(before: Sequence[str], cast: Cast) -> int:
    """How many of the words make an introduction: "After the coupon", "With those of Ivan", "Then"."""
    at = next((i for i, word in enumerate(before) if word.lower() in LEADS or not _plain(word)), len(before))
    if at == len(before) or before[at].lower() not in LEADS:
        return 0
    comma = next((i for i in range(len(before) - 1, at, -1) if before[i] == ","), None)
    if comma is not None:
        return comma + 1 + _lead_length(before[comma + 1 :], cast)
    for i in range(at + 2, len(before)):
        lower = before[i].lower()
        person = before[i] in cast.people and before[i - 1].lower() not in ("of", "with", "and", "by", "to", "from", "for")
        if person or (lower in SUBJECTS and i > at + 1) or (lower in ("the", "each") and before[i - 1].lower() not in LEADS):
            return i
    return len(before)


def lead_stems(claim: Claim, cast: Cast) -> set[str]:
    """What a claim says its result follows on: the coupon, the storm."""
    lead = claim.before[: _lead_length(claim.before, cast)]
    return {_stem(word) for word in lead if word not in cast.people and not _plain(word)}


def _lead_people(claim: Claim, cast: Cast) -> set[str]:
    return {word for word in claim.before[: _lead_length(claim.before, cast)] if word in cast.people}


def _told(word: str, stems: frozenset[str] | set[str]) -> bool:
    """Whether a word is one of these, or a form of one: giving, gives."""
    root = re.sub(r"(?:ing|ed)$", "", word.lower())
    return _stem(word) in stems or (2 < len(root) < len(word) and any(stem.startswith(root) for stem in stems))


def _plain(word: str) -> bool:
    return word in _PUNCTUATION or word.isdigit() or word.lower() in FILLERS | LEADS


def _listed(names: Sequence[str]) -> str:
    return " and ".join(dict.fromkeys(names)) or "nobody"


def _bare(word: str) -> str:
    return re.sub(r"['’]s$", "", word)


@lru_cache(maxsize=65536)
def _stem(word: str) -> str:
    word = word.lower()
    if word in ("buck", "bucks"):
        return "dollar"
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if re.search(r"(?:x|ch|sh|ss)es$", word):
        return word[:-2]
    if len(word) > 3 and word.endswith("s") and not word.endswith("ss"):
        return word[:-1]
    return word


def _stems(text: str) -> frozenset[str]:
    return frozenset(_stem(_bare(word)) for word in _WORD.findall(text) if word not in _PUNCTUATION)


def says_nothing(claim: Claim) -> bool:
    """Whether nobody and nothing is said to be what the result is: "That makes ...", "So we get ..."."""
    return all(_plain(w) or w.lower() in ("is", "makes", "gives", "was", "equals") for w in claim.before) and not (
        claim.lowered & STATES
    )
