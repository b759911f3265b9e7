"""Reads and converts the units of numbers, from an allow-list: `5 m`, `40 km/h`, `36 square feet`, `7 percent`.

Case matters for symbols (`mg` is not `Mg`), but not for words and abbreviations (`Minutes`, `FT`).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from lightning_mmrl.prompts.answers import word_set

PERCENT = "percent"
_YEN_OR_YUAN = "yen or yuan"
"""Base unit of the sign that yen and yuan share."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """`factor` times a product of powers of base units; `powers` maps the name of each base unit to its exponent.

    For example, 1 km/h is 5/18 m/s:

    >>> unit, rest = read_unit("km/h")
    >>> unit.powers, unit.factor
    ({'m': 1, 's': -1}, Fraction(5, 18))
    """

    powers: Mapping[str, int]
    factor: Fraction

    @property
    def is_percent(self) -> bool:
        """True for percent, which is a value (1/100) rather than a unit."""
        return PERCENT in self.powers

    def measures_like(self, other: "Unit") -> bool:
        """True for units of the same kind; the sign shared by yen and yuan is of the same kind as both.

        >>> sign, yen, yuan = UNITS["\u00a5"], UNITS["yen"], UNITS["yuan"]
        >>> sign.measures_like(yen), sign.measures_like(yuan), yen.measures_like(yuan)
        (True, True, False)
        """
        if self.powers == other.powers:
            return True
        one, another = (
            {_YEN_OR_YUAN if name in ("yen", "yuan") else name: power for name, power in powers.items()}
            for powers in (self.powers, other.powers)
        )
        return _YEN_OR_YUAN in {*self.powers, *other.powers} and one == another

    def times(self, other: "Unit", power: int) -> "Unit":
        """This unit times a power of another unit."""
        powers = {
            name: self.powers.get(name, 0) + power * other.powers.get(name, 0)
            for name in dict.fromkeys((*self.powers, *other.powers))
        }
        return Unit(
            powers={name: each for name, each in powers.items() if each}, factor=self.factor * other.factor**power
        )


_NAMES: tuple[tuple[str, str, int | Fraction], ...] = (
    ("m meter meters metre metres", "m", 1),
    ("cm Cm CM centimeter centimeters centimetre centimetres", "m", Fraction(1, 100)),
    ("mm millimeter millimeters millimetre millimetres", "m", Fraction(1, 1000)),
    ("dm decimeter decimeters decimetre decimetres", "m", Fraction(1, 10)),
    ("km Km KM kilometer kilometers kilometre kilometres", "m", 1000),
    ("inch inches in", "m", Fraction(254, 10_000)),
    ("ft foot feet", "m", Fraction(3048, 10_000)),
    ("yd yard yards", "m", Fraction(9144, 10_000)),
    ("mi mile miles", "m", Fraction(1_609_344, 1000)),
    ("kg Kg KG kilogram kilograms kilogramme kilogrammes", "g", 1000),
    ("g gram grams gramme grammes", "g", 1),
    ("mg milligram milligrams", "g", Fraction(1, 1000)),
    ("ton tons tonne tonnes", "g", 1_000_000),
    ("lb lbs pound pounds", "g", Fraction(45_359_237, 100_000)),
    ("oz ounce ounces", "g", Fraction(45_359_237, 1_600_000)),
    ("s sec secs second seconds", "s", 1),
    ("ms millisecond milliseconds", "s", Fraction(1, 1000)),
    ("min mins minute minutes", "s", 60),
    ("h hr hrs hour hours", "s", 3600),
    ("day days", "s", 86_400),
    ("week weeks", "s", 604_800),
    ("month months", "year", Fraction(1, 12)),
    ("year years", "year", 1),
    ("\u00b0 degree degrees deg", "degree", 1),
    ("rad radian radians", "radian", 1),
    ("\u00b0c celsius", "celsius", 1),
    ("\u00b0f fahrenheit", "fahrenheit", 1),
    ("kelvin kelvins", "kelvin", 1),
    ("$ dollar dollars usd buck bucks", "dollar", 1),
    ("cent cents \u00a2", "dollar", Fraction(1, 100)),
    ("\u20ac euro euros eur", "euro", 1),
    ("\u00a3 gbp", "sterling", 1),
    ("\u00a5", _YEN_OR_YUAN, 1),
    ("yen jpy", "yen", 1),
    ("yuan yuans rmb cny", "yuan", 1),
    ("\u20b9 rupee rupees", "rupee", 1),
    ("% percent pct", PERCENT, 1),
    ("N newton newtons", "newton", 1),
    ("J joule joules", "joule", 1),
    ("kJ kilojoule kilojoules", "joule", 1000),
    ("W watt watts", "watt", 1),
    ("kW kilowatt kilowatts", "watt", 1000),
    ("V volt volts", "volt", 1),
    ("kV kilovolt kilovolts", "volt", 1000),
    ("mV millivolt millivolts", "volt", Fraction(1, 1000)),
    ("A amp amps ampere amperes", "ampere", 1),
    ("mA milliampere milliamperes", "ampere", Fraction(1, 1000)),
    ("\u03a9 ohm ohms", "ohm", 1),
    ("k\u03a9 kiloohm kiloohms", "ohm", 1000),
    ("Hz hertz", "hertz", 1),
    ("kHz kilohertz", "hertz", 1000),
    ("MHz megahertz", "hertz", 1_000_000),
    ("Pa pascal pascals", "pascal", 1),
    ("mol mole moles", "mole", 1),
    ("\u5398\u7c73", "m", Fraction(1, 100)),
    ("\u6beb\u7c73", "m", Fraction(1, 1000)),
    ("\u5206\u7c73", "m", Fraction(1, 10)),
    ("\u5343\u7c73 \u516c\u91cc", "m", 1000),
    ("\u7c73", "m", 1),
    ("\u5343\u514b \u516c\u65a4", "g", 1000),
    ("\u6beb\u514b", "g", Fraction(1, 1000)),
    ("\u514b", "g", 1),
    ("\u5428", "g", 1_000_000),
    ("\u5c0f\u65f6", "s", 3600),
    ("\u5206\u949f", "s", 60),
    ("\u79d2", "s", 1),
    ("\u5929", "s", 86_400),
    ("\u5ea6", "degree", 1),
    ("\u5143", "yuan", 1),
)
UNITS: Mapping[str, Unit] = {
    **{
        name: Unit(powers={dimension: 1}, factor=Fraction(factor))
        for names, dimension, factor in _NAMES
        for name in names.split()
    },
    **dict.fromkeys(("L", "l", "liter", "liters", "litre", "litres"), Unit(powers={"m": 3}, factor=Fraction(1, 1000))),
    **dict.fromkeys(("mL", "ml", "milliliter", "milliliters"), Unit(powers={"m": 3}, factor=Fraction(1, 1_000_000))),
    "mph": Unit(powers={"m": 1, "s": -1}, factor=Fraction(1_609_344, 3_600_000)),
    "kph": Unit(powers={"m": 1, "s": -1}, factor=Fraction(5, 18)),
}
_SYMBOLS = word_set("m cm mm dm km kg g mg s ms h N J kJ W kW V kV mV A mA Hz kHz MHz Pa mol L l mL ml")
"""Symbols whose case matters: mg is a milligram but Mg a ton, and ms is a millisecond but MS is no unit."""
CURRENCY_SIGNS = "$\u20ac\u00a3\u00a5\u20b9"
_ONE = Unit(powers={}, factor=Fraction(1))
_POWERS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3, "\u5e73\u65b9": 2, "\u7acb\u65b9": 3}
_AFTER = {"squared": 2, "cubed": 3}
_CHINESE = sorted((name for name in UNITS if name[0] >= "\u2e80"), key=len, reverse=True)
_PRODUCT = re.compile(r" *(?:\\cdot\b|\*|\\times\b) *(?=[A-Za-z\u03a9])")
_TOKEN = re.compile(
    rf" *(\u5e73\u65b9|\u7acb\u65b9|{'|'.join(_CHINESE)}|k?\u03a9|"
    r"\^? ?\{? ?\\circ ?\}? ?(?:[CF]\b)?|\u00b0 ?(?:[CF]\b)?|\\?%|per ?cent\b|\^ ?\{?-?[1-9]\}?|/|[A-Za-z]+|"
    rf"[{CURRENCY_SIGNS}\u00a2])"
)
_SENTENCE = re.compile(r"(?<=[.?!])\s+|\n|\u3002")
_ASKING = re.compile(
    r"\b(?:what|how|find|give|write|calculate|compute|determine|express|answer|state)\b|\u6c42|\u591a\u5c11|\u8ba1\u7b97",
    re.IGNORECASE,
)
_TELLING = re.compile(r"\b(?:given|measured|sides|lengths|dimensions|is|are|shown|labell?ed) in\b", re.IGNORECASE)
_IN = re.compile(r"\b(?:in|nearest) |\( ?(?:in )?", re.IGNORECASE)
_GOES_ON = re.compile(r" +[A-Za-z]")
"""If this follows "in", it is a preposition (`5 in total`); otherwise it means inches."""
_DEGREE = re.compile(r"\^? ?\{? ?\\circ ?\}? ?|\u00b0 ?")


def read_unit(text: str) -> tuple[Unit | None, str]:
    """The unit at the start of a text, and the rest of the text; if there is no unit, None and the whole text.

    >>> read_unit("percent of it")[1], read_unit("apples"), read_unit("m^2 long")[0].powers
    (' of it', (None, 'apples'), {'m': 2})
    """
    unit, end, sign, pending = None, 0, 1, 1
    position = 0
    while True:
        product = _PRODUCT.match(text, position) if unit is not None and sign == 1 else None
        found = _TOKEN.match(text, position if product is None else product.end())
        if found is None:
            break
        token, position = found[1], found.end()
        if token.casefold() in ("per", "/") and unit is not None and sign == 1:
            sign = -1
        elif token.casefold() in _POWERS and pending == 1:
            pending = _POWERS[token.casefold()]
        else:
            known = _named(token)
            is_preposition = token.casefold() == "in" and _GOES_ON.match(text, position) is not None
            if known is None or is_preposition or (unit is not None and sign == 1 and product is None):
                break
            power, position = _power(text, position)
            unit = (unit or _ONE).times(known, sign * pending * power)
            end, pending = position, 1
            if sign == -1:
                break
    return unit, text[end:]


def unit_asked(question: str) -> Unit | None:
    """The only unit in which a question wants its answer; None if it names none or several.

    >>> unit_asked("Find the length of BC in cm.") == UNITS["cm"], unit_asked("The sides are in cm. Find the area.")
    (True, None)
    >>> unit_asked("Find the area (cm^2)").powers, unit_asked("How far in km and in miles?")
    ({'m': 2}, None)
    """
    asked: list[Unit] = []
    for sentence in _SENTENCE.split(question):
        if _ASKING.search(sentence) is None or _TELLING.search(sentence) is not None:
            continue
        for found in _IN.finditer(sentence):
            unit, rest = read_unit(sentence[found.end() :])
            name, bracket = sentence[found.end() : len(sentence) - len(rest)].strip(), "(" in found[0]
            closed = rest.lstrip().startswith(")") if bracket else rest.strip()[:1] in ("", ".", "?", ",", ":")
            if unit is not None and closed and not (len(name) == 1 and name.isupper()):
                asked.append(unit)
            elif not bracket and unit is not None and rest.startswith(" and in "):
                asked += [unit, _ONE]
    return asked[0] if asked and all(unit == asked[0] for unit in asked) else None


def _named(token: str) -> Unit | None:
    plain = _DEGREE.sub("\u00b0", token).strip("\\") if "\u00b0" in token or "circ" in token else token.strip("\\")
    plain = "percent" if plain.replace(" ", "").casefold() == "percent" else plain
    folded = plain.casefold()
    return UNITS.get(plain) or (UNITS.get(folded) if len(plain) > 1 and folded not in _SYMBOLS else None)


def _power(text: str, position: int) -> tuple[int, int]:
    """The exponent at a position (1 if there is none), and the position after it."""
    found = _TOKEN.match(text, position)
    if found is None:
        return 1, position
    token = found[1]
    if token.casefold() in _AFTER:
        return _AFTER[token.casefold()], found.end()
    digits = token.strip("^{} ")
    return (int(digits), found.end()) if token[0] == "^" and digits.lstrip("-").isdigit() else (1, position)
