"""Tells an equation that a text states from one that it only tries, asks about or rejects.

"Is 2 + 1 = 1? No", "suppose 2 + 1 = 1", "2 + 1 = 1 (False)", "8 + 8 = 6 (mod 10)": false as sums, and no mistakes. Only
the words right around the equation are read, in English. What is not covered: an equation that a later step takes back.
"""

from __future__ import annotations

import re

__all__ = ["only_tried"]

_REACH = 160
"""Characters before and after an equation that are read."""

_END = r"(?=\s*(?:[.,;:!?)\]\n]|$|because\b|since\b|so\b|as\b|and\b|but\b|for\b))"
_FALSE = r"(?:false|incorrect|wrong|untrue|impossible|invalid|absurd|nonsense|inconsistent)"
_FITS = (
    r"(?:true|correct|right|equal|possible|valid|hold\w*|work\w*|satisf\w*|match\w*|fit\w*|consistent|the case|make sense|"
    r"check out|add up)"
)
_NOT = r"(?:(?:is|are|was|does|do|did|can|could|will)(?: not|n['’]t)|cannot|not|never)"

_BEFORE = re.compile(
    rf"""
    \b(?:suppose|supposing|assume|assuming|imagine|if|unless|whether|let|try|trying|say|claim)
        (?:\s+(?:that|we|it|had|were|is|be|have|get|also|instead)\b)*[\s:,$(\\\[]*$
  | \b(?:check|verify|test|see|ask|determine|wonder|decide)\w*\s+(?:if|whether)\b[^.,;:!?\n]*$
  | \b(?:not|cannot|never|\w+n['’]t)
        (?:\ (?:the\ case|true|that|have|get|be|been|say|claim|conclude|write|use|possible|correct|right|it|we|to)\b)*
        [\s:$(\\\[]*$
  | \b(?:instead\ of|rather\ than|(?:might|may|would|could)\ (?:think|say|guess)
        |mistakes?|errors?|misconceptions?)\b[^.,;:!?\n]*$
  | \b{_FALSE}\b[\s:}}]*$
  | \b(?:said|says|wrote|writes|claims|claimed|mistakenly|wrongly|incorrectly|erroneously|answered)\b[^.;!?\n]*$
    """,
    re.VERBOSE | re.IGNORECASE,
)
_RIGHT_AFTER = re.compile(
    rf"""
    ^[^\w?\n]*\? | ^[^.!?\n]{{0,20}}\?
  | ^[\s\\\])$]*(?:[:,;(.→✗]|->|=>|-|—|–)?\s*
        (?:wait\b|oops\b|(?:no|nope)\b(?=\s*(?:[.,;:!?)\]]|$|(?:wait|it|this|that|we|he|she|they)\b)))
  | ^[^.!?\n]*?[✗✘❌✖]
  | ^[^.!?\n]*?\b{_FALSE}\b{_END}
  | ^[^.!?\n]*?\b(?:contradict\w*|a\ mistake|an\ error|fails?{_END}|an?\ {_FALSE}|impossibility)
  | ^[^.!?\n]*?\b{_NOT}\ (?:be\ |a\ |\w+ly\ )?{_FITS}
  | ^[^.!?\n]*[.!]\s+(?:(?:but|since|however|as|because|so|and|which)\b,?\s+)?
        (?:this|that|it|which|these|they)?\s*(?:['’]s|is|are|was)?\s*
        (?:wait\b|oops\b|{_FALSE}\b{_END}|a\ contradiction|contradict\w*|{_NOT}\ (?:be\ )?{_FITS})
  | ^[\s\\)\]$]*[({{]?\s*(?:\\(?:p|b)?mod\b|mod\b|modulo\b|in\ base\b)
    """,
    re.VERBOSE | re.IGNORECASE,
)
_INSIDE = re.compile(r"\b(?:not|never|cannot|\w+n['’]t)\b", re.IGNORECASE)


def only_tried(text: str, span: tuple[int, int]) -> bool:
    """Whether the equation at ``span``, which does not hold, is asked, supposed, denied, another's or meant otherwise."""
    start, end = span
    before, after = text[max(0, start - _REACH) : start], text[end : end + _REACH]
    return bool(
        _BEFORE.search(before) or _RIGHT_AFTER.search(after) or _INSIDE.search(text[start:end]) or _listed(before, after)
    )


def _listed(before: str, after: str) -> bool:
    """One of a list of expressions whose values are listed after it: (0 - 2), (5 - 2) = -2, 3."""
    return bool(re.search(r"[0-9)]\s*,\s*$", before) and re.match(r"\s*,\s*[-−(]?[0-9]", after))
