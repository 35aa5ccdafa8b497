"""Units as they stand after numbers, from a list, each with its dimension and factor; what is not in it is no unit.

Lengths, masses, times, volumes, speeds, energies and the like are converted exactly ("5 km" is "5000 m"); degrees and
radians say nothing of the number, like the name of what is counted. What is not covered: temperatures on different
scales, rates of currencies, months in days.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

__all__ = ["PERCENT", "Unit", "currency", "read_unit"]


@dataclass(frozen=True)
class Unit:
    """What a number is multiplied by, and the powers of the base units that stand with it."""

    factor: Fraction = Fraction(1)
    dimension: tuple[tuple[str, int], ...] = ()
    """Base unit and power, sorted; none for dollars, cents, percent and angles."""

    def times(self, other: Unit, power: int = 1) -> Unit:
        """The product with a power of another unit."""
        powers = dict(self.dimension)
        for base, n in other.dimension:
            powers[base] = powers.get(base, 0) + n * power
        return Unit(self.factor * other.factor**power, tuple(sorted((b, n) for b, n in powers.items() if n)))


PERCENT = Unit(Fraction(1, 100))
_CURRENCIES = {"$": Unit(), "€": Unit(dimension=(("EUR", 1),)), "£": Unit(dimension=(("GBP", 1),))}
_CURRENCIES |= {"¥": Unit(dimension=(("JPY", 1),)), "₹": Unit(dimension=(("INR", 1),)), "¢": PERCENT}

# name, factor, dimension: the names of a line are one unit. "m2" is a power of the base unit m.
_LIST = """
nm nanometer nanometre | 1e-9 m
µm μm micrometer micrometre micron | 1e-6 m
mm millimeter millimetre | 1e-3 m
cm centimeter centimetre | 1e-2 m
dm decimeter decimetre | 1e-1 m
m meter metre | 1 m
km kilometer kilometre | 1e3 m
in inch inches | 0.0254 m
ft foot feet | 0.3048 m
yd yard | 0.9144 m
mi mile | 1609.344 m
furlong | 201.168 m
fathom | 1.8288 m
ly lightyear light-year | 9460730472580800 m
Å angstrom | 1e-10 m
ha hectare | 1e4 m2
acre | 4046.8564224 m2
ml mL milliliter millilitre cc | 1e-6 m3
cl cL centiliter centilitre | 1e-5 m3
L l liter litre | 1e-3 m3
gal gallon | 0.003785411784 m3
qt quart | 0.000946352946 m3
pt pint | 0.000473176473 m3
cup | 0.0002365882365 m3
tbsp tablespoon | 0.00001478676478125 m3
tsp teaspoon | 0.00000492892159375 m3
mg milligram | 1e-3 g
g gram gramme gm | 1 g
kg kilogram kilo | 1e3 g
tonne | 1e6 g
ton | 1 ton
lb lbs pound | 453.59237 g
oz ounce | 28.349523125 g
stone | 6350.29318 g
carat | 0.2 g
ns nanosecond | 1e-9 s
µs μs microsecond | 1e-6 s
ms millisecond | 1e-3 s
s sec second | 1 s
min minute | 60 s
h hr hour | 3600 s
day | 86400 s
week | 604800 s
month | 1 month
year yr | 12 month
decade | 120 month
century centuries | 1200 month
Hz hertz | 1 s-1
kHz kilohertz | 1e3 s-1
MHz megahertz | 1e6 s-1
GHz gigahertz | 1e9 s-1
mph | 0.44704 m s-1
kph kmh kmph | 5/18 m s-1
knot | 463/900 m s-1
N newton | 1e3 g m s-2
kN kilonewton | 1e6 g m s-2
J joule | 1e3 g m2 s-2
kJ kilojoule | 1e6 g m2 s-2
MJ megajoule | 1e9 g m2 s-2
cal calorie | 4184 g m2 s-2
kcal kilocalorie | 4184000 g m2 s-2
eV electronvolt | 1 eV
keV | 1e3 eV
MeV | 1e6 eV
GeV | 1e9 eV
W watt | 1e3 g m2 s-3
kW kilowatt | 1e6 g m2 s-3
MW megawatt | 1e9 g m2 s-3
kWh | 3600000000 g m2 s-2
Pa pascal | 1e3 g m-1 s-2
kPa kilopascal | 1e6 g m-1 s-2
MPa megapascal | 1e9 g m-1 s-2
bar | 1e8 g m-1 s-2
atm atmosphere | 101325000 g m-1 s-2
V volt | 1e3 g m2 s-3 A-1
mV millivolt | 1 g m2 s-3 A-1
kV kilovolt | 1e6 g m2 s-3 A-1
A amp ampere | 1 A
mA milliamp | 1e-3 A
ohm Ω Ohm | 1e3 g m2 s-3 A-2
mol mole | 1 mol
mmol | 1e-3 mol
K kelvin | 1 K
°C ℃ celsius | 1 degC
°F ℉ fahrenheit | 1 degF
B byte | 1 byte
KB kB kilobyte | 1e3 byte
MB megabyte | 1e6 byte
GB gigabyte | 1e9 byte
TB terabyte | 1e12 byte
am a.m. | 1 am
pm p.m. | 1 pm
% percent | 1/100
percentage | 1/100
dollar USD usd buck | 1
cent penny pennies ¢ | 1/100
euro EUR € | 1 EUR
GBP £ | 1 GBP
pence | 1/100 GBP
yen JPY ¥ | 1 JPY
rupee INR ₹ Rs | 1 INR
° deg degree rad radian | 1
"""
_ALONE = frozenset(["m", "s", "g", "h", "l", "L", "N", "J", "W", "V", "A", "K", "B", "in", "am", "pm", "bar"])
"""Units that are also letters or other words: only where nothing else follows."""
_PLURAL = re.compile(r"(?<=[a-z]{2})s$")
_WRAPPED = re.compile(r"\\(?:text|mathrm|textbf|mathbf|textit|mbox|textrm|textnormal|hbox|rm|operatorname)\s*\{([^{}]*)\}")


def _listed() -> dict[str, Unit]:
    found: dict[str, Unit] = {}
    for line in _LIST.strip().splitlines():
        names, _, rest = line.partition("|")
        factor, *bases = rest.split()
        powers = [re.fullmatch(r"([A-Za-z]+)(-?\d*)", base) for base in bases]
        dimension = tuple(sorted((p[1], int(p[2] or 1)) for p in powers if p))
        for name in names.split():
            found[name] = Unit(Fraction(factor), dimension)
    return found


_UNITS = _listed()


def currency(sign: str) -> Unit | None:
    """The unit of a currency's sign."""
    return _CURRENCIES.get(sign.removeprefix("\\"))


def _named(word: str) -> Unit | None:
    word = word.rstrip(".") if word not in ("a.m.", "p.m.") else word
    if word in _UNITS:
        return _UNITS[word]
    low = word.casefold()
    # Capitals matter in symbols (mW, MW), not in words.
    names = (
        (low, _PLURAL.sub("", low), low.removesuffix("es")) if len(low) > 3 or low in ("am", "pm", "a.m.", "p.m.") else ()
    )
    return next((_UNITS[name] for name in names if name in _UNITS), None)


@lru_cache(maxsize=4096)
def read_unit(words: str) -> tuple[Unit, str] | None:
    r"""The unit that a phrase begins with, and the words after it; None where it begins with none.

    >>> read_unit("km per hour")[0] == read_unit(r"\mathrm{~km}/\mathrm{h}")[0] == read_unit("kph")[0]
    True
    >>> read_unit("square feet of carpet")[1], read_unit("apples")
    ('of carpet', None)
    """
    text = _WRAPPED.sub(r"\1", words).replace("\\cdot", "·").replace("**", "^")
    text = re.sub(r"\^\s*\{?\s*\\circ\s*\}?", "°", text)
    text = (
        re.sub(r"\\[,;!: ]|[~{}$\\]", " ", re.sub(r"\blight[ -]years?\b", "lightyear", text))
        .replace("²", "^2")
        .replace("³", "^3")
    )
    text = re.sub(r"\bper\s+cent\b", "percent", re.sub(r"\b(\w+) (?:an|a) (?=hour\b)", r"\1 per ", text)).strip()
    text = re.sub(
        r"°\s*([CF])\b", r"°\1", re.sub(r"\bdegrees? (?=celsius|fahrenheit|[CF]\b)", "°", text, flags=re.IGNORECASE)
    )
    text = text.replace("°celsius", "°C").replace("°Celsius", "°C").replace("°fahrenheit", "°F").replace("°Fahrenheit", "°F")
    found, at, sign = Unit(), 0, 1
    began = False
    step = re.compile(
        r"\s*(/|\bper\b|[·*⋅-])?\s*(square\s+|sq\.?\s+|cubic\s+|cu\.?\s+)?(°[CF]?|[ap]\.m\.|%|[¢€£¥₹$]|[^\W\d_]+(?:-years?)?\.?)"
        r"(?:\s*\^\s*(-?\d)|(?<=[a-z])([23])(?!\d)|\s+(squared|cubed)\b)?"
    )
    while match := step.match(text, at):
        operator, shape, name, power, glued, spelt = match.groups()
        unit = _CURRENCIES.get(name) or _named(name)
        if unit is None or (operator and not began) or (not operator and began and " " not in text[at : match.start(3)]):
            break
        if began and not operator and (shape or len(name) > 3 or not unit.dimension):
            break  # "5 hours day" is no product; "N m" is
        sign = -1 if operator in ("/", "per") else sign if operator is None else 1
        n = int(power or glued or 0) or {"squared": 2, "cubed": 3, None: 0}[spelt] or 1
        if shape:
            n = 2 if shape.startswith("s") else 3
        found, at, began = found.times(unit, sign * n), match.end(), True
    rest = text[at:].strip()
    if not began or (rest and text[:at].strip() in _ALONE):
        return None
    return found, rest
