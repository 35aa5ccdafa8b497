"""The words of short statements about amounts, by what they do in them (statement.py). English, lower case."""

from __future__ import annotations

__all__ = [
    "ADJECTIVES",
    "ADVERBS",
    "AMOUNTS",
    "COMPARED",
    "EACH",
    "FILLERS",
    "GENERIC",
    "HAS",
    "HOLDS",
    "IMPERSONAL",
    "LEADS",
    "LESS",
    "MISSING",
    "MORE",
    "PLURALS",
    "PRONOUNS",
    "STARTS",
    "STATES",
    "SUBJECTS",
    "TITLED",
    "VERBS",
]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


FILLERS = _words(
    "a an the this that these those there it its so then now thus hence therefore first firstly second secondly third next "
    "finally lastly also again and or but of in at to for on from all total altogether together both sum difference result "
    "number amount count still only just exactly already with by as we get got which who what calculate compute find step "
    "i s let us see here new one ones they them their day end beginning start morning evening rest remainder ok well "
    "since because means meaning answer equals equal away remain remains remaining up be been same far initially "
    "originally currently afterwards eventually overall alright okay"
)
"""Words that attribute a result to nobody and to nothing."""
IMPERSONAL = _words(
    "is are was were will makes make made making gives giving comes leaves leaving totals becomes would has have had"
)
HAS = _words("has have had owns own owned holds hold held keeps keep kept possesses possess gets will would is are was were")
"""What can be said of a person instead of "has"."""
HOLDS = _words("contain contains include includes receive receives get gets cost costs carry carries")
VERBS = (
    IMPERSONAL
    | HAS
    | HOLDS
    | _words(
        "buys buy bought pay pays got needs need sells sold eats eat ate takes take took collects finds found scores rides "
        "brings plants starts ends wins saves earns spends gave loses lost"
    )
)
PLURALS = _words("feet people children men women mice geese teeth sheep fish")
ADVERBS = _words("still now then also only already just therefore so finally alone")
STATES = _words("there left over remain remains remaining still end rest remainder missing each every now day")
"""What makes of a result a state of the story."""
PRONOUNS = _words("he she him her his hers")
LEADS = _words("after with by since because when if adding including using on at in for from of out during before")
SUBJECTS = _words("there it that they this we he she which")
ADJECTIVES = _words("good more fewer less new other extra additional remaining total whole full of the such left")
GENERIC = _words("thing item piece one unit object of them those in more each per altogether apiece")
MISSING = _words("missing need needs needed short required lacking more")
EACH = _words("each every per apiece")
MORE, LESS = _words("more ahead further"), _words("fewer less behind")
COMPARED = _words("than ahead behind")
AMOUNTS = _words(
    "number total sum amount cost price value result difference rest remainder change answer count quantity bill money "
    "first second third next last final new same whole original"
)
"""What "the X is 12" may name without naming a thing of the story."""

STARTS = (
    FILLERS
    | IMPERSONAL
    | LEADS
    | PRONOUNS
    | _words(
        "another how each half some many if when while every on after today yesterday later together if does do did no "
        "not yes everyone everybody someone somebody nobody people please given using note two three four five six seven "
        "eight nine ten"
    )
)


TITLED = (
    STARTS
    | AMOUNTS
    | VERBS
    | ADJECTIVES
    | ADVERBS
    | _words(
        "monday tuesday wednesday thursday friday saturday sunday january february march april may june july august "
        "september october november december initial current average time rate age distance speed volume base net increase "
        "decrease cents dollars usd step note let equation problem question finding solving using substituting plugging"
    )
)
"""What may have a capital in mid-sentence and is nobody's name."""
