"""The scenes that `stories` tells: data only, no logic.

A `Move` is one sentence of a question and the solution steps that it calls for. Placeholders:

- ``{A} {B} {C}``: actors; ``{things}``: what the story counts;
- ``{x} {y} {k} {m} {p}``: numbers drawn for this move; ``{s}`` the running amount before it;
- a step is a formula and a sentence; the formula is `left op right` over drawn numbers, constants, ``s`` (the running
  amount) and ``t`` (the result of the move's step before); ``{eq}`` in its sentence becomes e.g. ``12 + 5 = 17``.
  The result of a move's last step is the new running amount.

Scenes of the training split and of the out-of-distribution split share no sentence and no thing that is counted.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["NAMES", "SCENES", "Move", "Relations", "Scene"]


@dataclass(frozen=True)
class Move:
    """One sentence of a question with its solution steps: ``(formula, sentence)`` each."""

    ask: str
    steps: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Relations:
    """A scene of several actors whose amounts are told by comparison with one another."""

    has: str
    more: Move
    fewer: Move
    times: Move
    half: Move
    total: str
    sums: tuple[str, str]
    """Sentence for the sum of two actors, and for adding one more."""
    difference: str
    gap: str


@dataclass(frozen=True)
class Scene:
    """A story world. ``relations`` scenes compare actors; the others push one running amount through moves."""

    name: str
    out_of_distribution: bool
    things: tuple[str, ...]
    openings: tuple[Move, ...] = ()
    moves: tuple[Move, ...] = ()
    closings: tuple[Move, ...] = ()
    relations: Relations | None = None
    distractors: tuple[str, ...] = ()


NAMES = (
    "Mia", "Tom", "Ana", "Ben", "Lily", "Omar", "Eva", "Max", "Nina", "Sam", "Zoe", "Leo", "Ruth", "Ivan", "Ella",
    "Noah", "Aisha", "Kofi", "Mei", "Paul", "Rosa", "Hugo", "Dina", "Carl",
)  # fmt: skip

_COLLECTION = Scene(
    name="collection",
    out_of_distribution=False,
    things=("marbles", "stickers", "shells", "coins", "cards", "stamps", "buttons", "beads"),
    relations=Relations(
        has="{A} has {x} {things}.",
        more=Move("{B} has {x} more {things} than {A}.", (("a + x", "{B} has {eq} {things}."),)),
        fewer=Move("{B} has {x} fewer {things} than {A}.", (("a - x", "{B} has {eq} {things}."),)),
        times=Move("{B} has {k} times as many {things} as {A}.", (("k * a", "{B} has {eq} {things}."),)),
        half=Move("{B} has half as many {things} as {A}.", (("a / 2", "{B} has {eq} {things}."),)),
        total="How many {things} do {all} have together?",
        sums=("{A} and {B} have {eq} {things} together.", "With {B} that makes {eq} {things}."),
        difference="How many more {things} does {A} have than {B}?",
        gap="{A} has {eq} more {things} than {B}.",
    ),
    distractors=(
        "{C} has {x} books.",
        "{A} is {x} years old.",
        "{C} lost {x} {things} last year.",
        "Their school has {x} classrooms.",
    ),
)

_POCKET = Scene(
    name="pocket",
    out_of_distribution=False,
    things=("apples", "pencils", "balloons", "cookies", "pears", "candies", "nuts"),
    openings=(Move("{A} starts the day with {s} {things}."), Move("{A} has {s} {things}.")),
    moves=(
        Move("{B} gives {A} {x} more {things}.", (("s + x", "After the gift {A} has {eq} {things}."),)),
        Move("Then {A} finds {x} {things}.", (("s + x", "With the ones found, {A} has {eq} {things}."),)),
        Move("{A} gives {x} {things} to {B}.", (("s - x", "After giving some away, {A} has {eq} {things}."),)),
        Move("{A} loses {x} of them.", (("s - x", "After the loss {A} has {eq} {things}."),)),
        Move("{A} gives half of them to {B}.", (("s / 2", "{A} keeps {eq} {things}."),)),
        Move(
            "{A} buys {m} bags with {p} {things} in each.",
            (("m * p", "The bags hold {eq} {things}."), ("s + t", "Now {A} has {eq} {things}.")),
        ),
        Move(
            "{A} gives {p} {things} to each of {m} friends.",
            (("m * p", "The friends get {eq} {things}."), ("s - t", "{A} still has {eq} {things}.")),
        ),
    ),
    closings=(
        Move("How many {things} does {A} have in the end?"),
        Move(
            "{A} puts the rest into {k} equal piles. How many {things} are in each pile?",
            (("s / k", "Each pile has {eq} {things}."),),
        ),
        Move(
            "{B} has {k} times as many {things} as {A} has now. How many does {B} have?",
            (("k * s", "{B} has {eq} {things}."),),
        ),
    ),
    distractors=(
        "{C} has {x} {things}.",
        "{B} is {x} years old.",
        "The walk home takes {x} minutes.",
        "{C} ate {x} {things} yesterday.",
    ),
)

_MARKET = Scene(
    name="market",
    out_of_distribution=False,
    things=("dollars",),
    openings=(
        Move("{A} buys {m} notebooks for {p} dollars each.", (("m * p", "The notebooks cost {eq} dollars."),)),
        Move("{A} buys {m} toys that cost {p} dollars each.", (("m * p", "The toys cost {eq} dollars."),)),
    ),
    moves=(
        Move("{A} also buys a hat for {x} dollars.", (("s + x", "With the hat it is {eq} dollars."),)),
        Move("A coupon takes {x} dollars off.", (("s - x", "After the coupon it is {eq} dollars."),)),
        Move(
            "{A} also takes {m} pens at {p} dollars a pen.",
            (("m * p", "The pens cost {eq} dollars."), ("s + t", "Together that is {eq} dollars.")),
        ),
        Move(
            "{A} adds {m} cakes for {p} dollars each.",
            (("m * p", "The cakes cost {eq} dollars."), ("s + t", "So far that is {eq} dollars.")),
        ),
    ),
    closings=(
        Move("How many dollars does {A} pay?"),
        Move("{A} pays with {x} dollars. How much change does {A} get?", (("x - s", "The change is {eq} dollars."),)),
        Move(
            "{A} and some friends, {k} people in all, share the cost equally. How much does each pay?",
            (("s / k", "Each person pays {eq} dollars."),),
        ),
    ),
    distractors=(
        "The shop closes in {x} minutes.",
        "{C} spent {x} dollars there last week.",
        "A lamp in the window costs {x} dollars.",
        "{B} is {x} years old.",
    ),
)

_WORKSHOP = Scene(
    name="workshop",
    out_of_distribution=False,
    things=("chairs", "kites", "candles", "toys", "lamps", "mugs"),
    openings=(
        Move("{A} makes {p} {things} a day for {m} days.", (("m * p", "{A} makes {eq} {things}."),)),
        Move("A workshop makes {p} {things} an hour for {m} hours.", (("m * p", "The workshop makes {eq} {things}."),)),
    ),
    moves=(
        Move("{x} of the {things} break.", (("s - x", "There are {eq} good {things}."),)),
        Move("{B} brings {x} more {things}.", (("s + x", "With those of {B} there are {eq} {things}."),)),
        Move("Half of them are sold.", (("s / 2", "After the sale {eq} {things} remain."),)),
        Move(
            "{m} customers buy {p} {things} each.",
            (("m * p", "The customers buy {eq} {things}."), ("s - t", "That leaves {eq} {things}.")),
        ),
        Move(
            "{B} makes {p} {things} a day for {m} days and adds them.",
            (("m * p", "{B} makes {eq} {things}."), ("s + t", "Both have {eq} {things}.")),
        ),
    ),
    closings=(
        Move("How many {things} are there now?"),
        Move("They are packed in boxes of {k}. How many boxes are needed?", (("s / k", "They need {eq} boxes."),)),
        Move("The goal is {x} {things}. How many are still missing?", (("x - s", "There are {eq} {things} missing."),)),
    ),
    distractors=(
        "{C} has worked there for {x} years.",
        "Each of the {things} weighs {x} grams.",
        "Another workshop has {x} {things}.",
        "The room has {x} windows.",
    ),
)

_GARDEN = Scene(
    name="garden",
    out_of_distribution=False,
    things=("trees", "tulips", "roses", "bushes", "carrots"),
    openings=(
        Move("A garden has {m} rows of {p} {things}.", (("m * p", "The garden has {eq} {things}."),)),
        Move("{A} plants {s} {things}."),
    ),
    moves=(
        Move("{A} plants {x} more.", (("s + x", "After planting there are {eq} {things}."),)),
        Move("A storm destroys {x} of them.", (("s - x", "After the storm there are {eq} {things}."),)),
        Move("Then their number doubles.", (("2 * s", "Doubled, that is {eq} {things}."),)),
        Move(
            "{A} adds {m} rows of {p}.",
            (("m * p", "The new rows have {eq} {things}."), ("s + t", "In all there are {eq} {things}.")),
        ),
        Move(
            "{m} goats eat {p} each.",
            (("m * p", "The goats eat {eq} {things}."), ("s - t", "The goats leave {eq} {things}.")),
        ),
    ),
    closings=(
        Move("How many {things} are left?"),
        Move("{A} and {B} water them for {k} minutes each. How many minutes is that for all of them?",
             (("k * s", "Watering takes {eq} minutes."),)),
        Move("They stand in {k} equal beds. How many {things} are in a bed?", (("s / k", "Each bed has {eq} {things}."),)),
    ),
    distractors=(
        "The garden is {x} years old.",
        "{C} has {x} {things} at home.",
        "A neighbour has {x} hens.",
        "It rained for {x} days.",
    ),
)  # fmt: skip

_LIBRARY = Scene(
    name="library",
    out_of_distribution=True,
    things=("novels", "magazines", "atlases", "comics"),
    openings=(
        Move("A library owns {s} {things}."),
        Move("On {m} shelves of a library there are {p} {things} each.", (("m * p", "The shelves hold {eq} {things}."),)),
    ),
    moves=(
        Move("In the morning {x} {things} are borrowed.", (("s - x", "Then {eq} {things} are in the library."),)),
        Move("At noon readers return {x} {things}.", (("s + x", "After the return there are {eq} {things}."),)),
        Move(
            "A donor sends {m} crates with {p} {things} in each crate.",
            (("m * p", "The crates bring {eq} {things}."), ("s + t", "The library has {eq} {things}.")),
        ),
        Move(
            "{m} classes take {p} {things} each.",
            (("m * p", "The classes take {eq} {things}."), ("s - t", "The library keeps {eq} {things}.")),
        ),
    ),
    closings=(
        Move("How many {things} stand in the library at night?"),
        Move(
            "The librarian spreads them evenly over {k} tables. How many {things} lie on a table?",
            (("s / k", "Each table gets {eq} {things}."),),
        ),
    ),
    distractors=("The library opened {x} years ago.", "{C} has read {x} {things}.", "There are {x} seats to read in."),
)

_TRIP = Scene(
    name="trip",
    out_of_distribution=True,
    things=("kilometers",),
    openings=(
        Move("{A} rides {p} kilometers an hour for {m} hours.", (("m * p", "{A} rides {eq} kilometers."),)),
        Move("On the first day {A} walks {s} kilometers."),
    ),
    moves=(
        Move("Then {A} goes {x} kilometers by bus.", (("s + x", "With the bus it is {eq} kilometers."),)),
        Move(
            "After a rest {A} runs {p} kilometers on each of {m} days.",
            (("m * p", "The runs add {eq} kilometers."), ("s + t", "That is {eq} kilometers from the start.")),
        ),
        Move("{A} forgot the map and goes {x} kilometers back.", (("s - x", "Going back leaves {eq} kilometers."),)),
    ),
    closings=(
        Move("How many kilometers from the start is {A} now?"),
        Move("The goal is {x} kilometers from the start. How far is it still?", (("x - s", "It is {eq} kilometers more."),)),
    ),
    distractors=("The bus has {x} seats.", "{A}'s bag weighs {x} kilograms.", "{C} lives {x} kilometers from the sea."),
)

_SCORES = Scene(
    name="scores",
    out_of_distribution=True,
    things=("points", "goals"),
    relations=Relations(
        has="In a game {A} scores {x} {things}.",
        more=Move("{B} beats {A} by {x} {things}.", (("a + x", "{B} scores {eq} {things}."),)),
        fewer=Move("{B} scores {x} {things} less than {A}.", (("a - x", "{B} scores {eq} {things}."),)),
        times=Move("{B} scores {k} times the {things} of {A}.", (("k * a", "{B} scores {eq} {things}."),)),
        half=Move("{B} scores half the {things} of {A}.", (("a / 2", "{B} scores {eq} {things}."),)),
        total="What is the sum of the {things} of {all}?",
        sums=("{A} and {B} score {eq} {things}.", "Adding {B} gives {eq} {things}."),
        difference="By how many {things} is {A} ahead of {B}?",
        gap="{A} is ahead by {eq} {things}.",
    ),
    distractors=("The game lasts {x} minutes.", "{C} scored {x} {things} last year.", "There are {x} people watching."),
)

SCENES = (_COLLECTION, _POCKET, _MARKET, _WORKSHOP, _GARDEN, _LIBRARY, _TRIP, _SCORES)
