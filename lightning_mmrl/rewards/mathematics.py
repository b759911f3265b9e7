r"""Reads a mathematical answer: numbers or expressions with their units, from a bare statement.

Only words of an allow-list may stand around the number of a statement (`She earns $35`), see `wording`. None of them
denies, hedges, compares or changes the value, as in `about 7`, `7 million` or `less 7`. All regular expressions here
are linear in the text.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from lightning_mmrl.prompts.answers import LEAD_INS, QUOTES, doubts, has_doubt_sign, typeset, without_latex, word_set
from lightning_mmrl.rewards.formulas import (
    FUNCTIONS,
    SEPARATOR_WORDS,
    TOKEN,
    bracketed,
    in_latex,
    is_well_formed,
    pieces,
)
from lightning_mmrl.rewards.units import CURRENCY_SIGNS, Unit, read_unit
from lightning_mmrl.rewards.wording import CONTINUING_WORDS, Named, changes, is_point, may_follow, may_lead, stem

MOST_WORDS = 25
"""Maximum number of words around the numbers of a statement."""
MOST_ELEMENTS = 16

_SHORT_WORDS = word_set("and or not is no the so to of if in at by an as it es est ist")
_OPERATORS = "+-*/^=<>()"
_SIGNS = str.maketrans(
    {
        **{
            "\u00d7": "\\times ",
            "\u00b7": "\\cdot ",
            "\u22c5": "\\cdot ",
            "\u2217": "*",
            "\u00f7": "/",
            "\u221e": "\\infty ",
            "\u00b1": "\\pm ",
        },
        **{"\u2264": "\\le ", "\u2265": "\\ge ", "\u222a": "\\cup ", "\u2229": "\\cap ", "\u2208": "\\in "},
        **{"\u03c0": "\\pi ", "\u03b8": "\\theta ", "\u03b1": "\\alpha ", "\u03b2": "\\beta ", "\u03bb": "\\lambda "},
        **{"\u221a": "\\sqrt", "\u2205": "\\emptyset "},
    }
)
_MONEY = "\u00a4"
"""Placeholder for a dollar sign that means money; all other dollar signs enclose formulas."""
_DISPLAY = re.compile(r"\$\$([^$]+)\$\$")
_INLINE = re.compile(r"(?<!\\)\$([^$]*[^$\\ ]) ?\$(?![0-9])|(?<!\\)\$ ([^$]+) \$")
_ROOT = re.compile(r"\\sqrt ?([0-9]+|[a-z])(?![0-9])")
_DEGREES = re.compile(r"\^? ?\{? ?\\circ|\u00b0|\\?%|[\u20ac\u00a3\u00a5\u20b9$\u00a2]$")
_SINGLE_UNIT = re.compile(
    r"^((?:[A-Za-z] ?= ?)?-?[0-9\\][0-9., ^/{}\\a-z]*?(?<=[0-9}]))(?: +[A-Za-z]| ?[mgshLl])"
    r"(?:\^[23]|\^\{-?[1-3]\})?(?: ?(?:/|\\cdot ?[a-z]).*)?$"
)
_DECIMAL_COMMA = re.compile(r"(-?[0-9]+),([0-9]+)")
_MINUS_WORD = re.compile(r"\b(?:minus|negative) (?=[0-9\\$])", re.IGNORECASE)
_CURRENCY = re.compile(r"\b(USD|EUR|GBP|CNY|RMB|JPY) ?(-?[0-9][0-9,]*(?:\.[0-9]+)?)")
_GLUED = re.compile(r"([\u662f\u4e3a])(?=[A-Za-z\\(])")
"""A Chinese "is" directly before a formula."""
_MEMBER = re.compile(r"\b([a-z]) in (?=\\?[(\[{])")
_EQUALS = re.compile(
    r"\b(?:is equal to|equals)\b|\u7b49\u4e8e|(?<=\b[A-Za-z] )(?:is|must be|has to be)(?= [-(\[\\.0-9])|"
    r"(?<=\bof [A-Za-z]):(?= [-(\[\\.0-9])"
)
_CHOOSES = re.compile(r"\bI choose(?= [-(\[\\.0-9$])")
"""Before a number, as opposed to a binomial coefficient: `I choose 5`, `5 choose 2`."""
_WORD = re.compile(r"(?<!\\)\b[A-Za-z]{2,}\b")
_LEFT_SIDE = re.compile(r"(?:[^\W\d]|[ \\.,:'(){}])+=(?=[^=]*[0-9])")
"""The left side of an equation if it is a name, and no calculation or relation."""
_NAME = re.compile(r"((?:[A-Za-z]|\\[a-z]+)(?:_\{?[A-Za-z0-9]+\}?)?(?: ?\( ?(?:[a-z]|-?[0-9.]+) ?\))?) ?= ?(?=\S)")
_SWAPPED = re.compile(r"([^=]+?) ?= ?([A-Za-z])")
"""An equation with its name on the right."""
_POINT = re.compile(r"([A-Z]'?) ?=? ?(?=\()")
"""The name of a point before its coordinates."""
_OWN_NAME = re.compile(r"(?<= )[A-Za-z] ?=$")
"""The name of the number at the end of a longer left side, as in `The answer is x = 2`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantity:
    """One number or expression.

    Attributes:
        formula: LaTeX, without the name and the unit.
        name: Left side of the equation, if there is one.
        unit: Unit of the quantity, if there is one.
        noun: Stems of the nouns that the number counts.
        is_verbatim: True if the formula is a whole text that only math-verify can read.
    """

    formula: str
    name: str | None = None
    unit: Unit | None = None
    noun: frozenset[str] = frozenset()
    is_verbatim: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """The text between two separators: words before the formula, the formula if there is one, its unit, words after."""

    before: tuple[str, ...]
    core: str | None = None
    unit: Unit | None = None
    after: tuple[str, ...] = ()


def read_mathematics(text: str, named: Named | None = None) -> tuple[Quantity, ...] | None:
    r"""The quantities that a text states: one, or several for a list or a set; None if it states nothing clearly.

    `named` has further words that may stand around a number: the words of the question and of the solution.

    >>> [[each.formula for each in read_mathematics(text) or ()] for text in ("It is $7$.", r"\{1, 2\}", "not 7")]
    [['7'], ['1', '2'], []]
    >>> read_mathematics("5 cm")[0].unit.factor, read_mathematics("5 million")
    (Fraction(1, 100), None)
    """
    flat = _flattened(text)
    parts = None if "~" in flat or has_doubt_sign(flat) else _parts(flat)
    if parts is None:
        return None
    words = [word.casefold() for part in parts for word in (*part.before, *part.after)]
    if len(words) > MOST_WORDS or doubts(" ".join(words)) or changes(words):
        return None
    if not _words_fit(parts, named or Named()):
        return None
    stated = [quantity for part in parts if part.core is not None for quantity in _quantities(part)]
    if not stated or len(stated) > MOST_ELEMENTS or any(not quantity.formula for quantity in stated):
        return None
    if len(stated) == 1 and stated[0].unit is None:
        opening, items, closing = bracketed(stated[0].formula) or ("", [], "")
        if items and (opening, closing) == ("\\{", "\\}"):
            return tuple(Quantity(formula=item) for item in items)
    return tuple(stated)


def _words_fit(parts: list[_Part], named: Named) -> bool:
    """True if all words around the numbers are allowed, also in parts without a number."""
    reached = False
    for part, following in zip(parts, (*parts[1:], None), strict=True):
        if part.core is not None:
            reached = True
            if not (may_lead(part.before, named) and may_follow(part.after, named)):
                return False
        elif not may_lead(part.before, named) and not (reached and may_follow(part.before, named)):
            first = part.before[0].casefold()
            leads_in = first in LEAD_INS or first.endswith("ing")
            if reached or not leads_in or following is None or not following.before:
                return False
    return True


def verbatim(text: str) -> Quantity:
    r"""The whole text as one formula, without any check.

    >>> verbatim(r"$x \neq 3$").formula
    'x \\neq 3'
    """
    return Quantity(formula=_flattened(text), is_verbatim=True)


def _flattened(text: str) -> str:
    """The text in one line without LaTeX delimiters, fonts and boxes; remaining dollar signs mean money."""
    text = typeset(text).replace("{,}", ",").replace("\\!", "").replace("\\$", _MONEY).translate(_SIGNS)
    text = _INLINE.sub(lambda found: f" {found[1] or found[2]} ", _DISPLAY.sub(r" \1 ", text))
    text = (without_latex(text) if "\\" in text else text).replace(_MONEY, "$")
    text = _MINUS_WORD.sub("-", _ROOT.sub(r"\\sqrt{\1}", " ".join(text.split())))
    text = _CHOOSES.sub("I pick", _GLUED.sub(r"\1 ", text))
    text = _MEMBER.sub(r"\1 \\in ", _CURRENCY.sub(r"\2 \1", _EQUALS.sub("=", text)))
    is_sentence = _WORD.search(text) is not None
    if len(text) > 1 and text[0] == text[-1] and text[0] in QUOTES:
        text = text[1:-1]
    return text.rstrip(" .;,!" if is_sentence else " .;,").lstrip(" :")


def _is_word(text: str, found: re.Match[str]) -> bool:
    """True for a word of a natural language, as opposed to a variable, a product of variables or a function."""
    token, before, after = found[0], text[: found.start()], text[found.end() :].lstrip(" ")[:1]
    if not token[0].isalpha() or token.casefold() in FUNCTIONS:
        return False
    if len(token) == 1:
        alone = before[-1:] in ("", " ") and before.rstrip()[-1:] not in tuple("+-*/^=<>0123456789")
        return not token.isascii() or (token in "aAI" and alone and after.isalpha())
    attached = before[-1:].isdigit() or before.rstrip()[-1:] in tuple(_OPERATORS) or after in tuple(_OPERATORS)
    is_product = len(token) <= 3 and token.isascii() and token.islower() and attached and bool(before or after)
    return not (is_product and token not in _SHORT_WORDS and read_unit(token)[0] is None)


def _parts(text: str) -> list[_Part] | None:
    """The parts of a statement; None if formulas are not separated, or if "and" or "or" joins anything but formulas."""
    parts: list[_Part] = []
    for separator, piece in pieces(text):
        part = _part(piece)
        if part is None or (
            separator in SEPARATOR_WORDS and (not parts or parts[-1].core is None or part.core is None)
        ):
            return None
        parts.append(part)
    return parts


def _part(piece: str) -> _Part | None:
    """Splits the text between two separators; None if it has several formulas."""
    before: list[str] = []
    named = _LEFT_SIDE.match(piece)
    if (
        named is not None
        and _NAME.match(piece) is None
        and all(named[0].count(opening) == named[0].count(closing) for opening, closing in ("()", "{}"))
    ):
        before += [word for word in _WORD.findall(named[0]) if not is_point(word)]
        own = _OWN_NAME.search(named[0])
        piece = piece[named.end() if own is None else own.start() :].strip()
    tokens = list(TOKEN.finditer(piece))
    first = 0
    while first < len(tokens) and (
        _is_word(piece, tokens[first]) or tokens[first][0] in ":\"'" or tokens[first][0] == "="
    ):
        before += [tokens[first][0]] if tokens[first][0][0].isalpha() else []
        first += 1
    if first == len(tokens):
        return _Part(before=tuple(before))
    glued = first > 0 and before and tokens[first - 1].end() == tokens[first].start() and tokens[first - 1][0].isascii()
    if glued and tokens[first - 1][0].isalpha() and tokens[first][0][0].isdigit():
        return None
    last = first
    while last < len(tokens) and not _is_word(piece, tokens[last]):
        last += 1
    start, end = tokens[first].start(), tokens[last].start() if last < len(tokens) else len(piece)
    core, unit, rest = _with_unit(piece[start:end], piece[end:])
    after = [found[0] for found in TOKEN.finditer(rest)]
    if any(not (token[0].isalpha() or token in ".:!\"'") for token in after):
        return None
    words = tuple(token for token in after if token[0].isalpha())
    return _Part(before=tuple(before), core=core.lstrip(" :;").rstrip(" .:;"), unit=unit, after=words)


def _with_unit(core: str, rest: str) -> tuple[str, Unit | None, str]:
    """Splits off the unit, which comes after the formula, or before it for money: formula, unit, rest of the text."""
    core = core.strip()
    money = core.lstrip("-")[:1]
    if money and money in CURRENCY_SIGNS:
        unit, _ = read_unit(money)
        return core.replace(money, "", 1).strip(), unit, rest
    # In the formula, a unit begins at a sign of degrees or percent, or at a single letter after a bare number.
    degrees, letter = _DEGREES.search(core), _SINGLE_UNIT.search(core)
    after_number = len(core) if letter is None else letter.end(1)
    end = after_number if degrees is None else degrees.start()
    unit, left = read_unit(core[end:] + " " * bool(rest) * (not core[end:]) + rest) if end else (None, rest)
    if unit is not None:
        return core[:end], unit, left
    return core, None, rest


def _quantities(part: _Part) -> Iterator[Quantity]:
    """Yields the quantity of a part, or two quantities for a plus-minus sign."""
    core, name = part.core or "", None
    found, swapped, point = _NAME.match(core), _SWAPPED.fullmatch(core), _POINT.match(core)
    if found is not None:
        name, core = found[1].replace(" ", ""), core[found.end() :]
    elif swapped is not None:
        name, core = swapped[2], swapped[1]
    elif point is not None and bracketed(core[point.end() :]) is not None:
        name, core = point[1], core[point.end() :]
    noun = frozenset(stem(word) for word in map(str.casefold, part.after) if word not in CONTINUING_WORDS)
    signs = ("+", "-") if core.count("\\pm") == 1 else ("",)
    for sign in signs:
        formula = in_latex(core.replace("\\pm", sign).strip().removeprefix("+"))
        formula = formula if is_well_formed(formula) else ""
        yield Quantity(formula=formula, name=name, unit=part.unit, noun=noun)


def with_decimal_point(text: str) -> str | None:
    """Replaces the decimal comma of a number by a point; None for any other text.

    >>> with_decimal_point("3,14"), with_decimal_point("1, 2")
    ('3.14', None)
    """
    found = _DECIMAL_COMMA.fullmatch(text.strip(" $."))
    return None if found is None else f"{found[1]}.{found[2]}"
