"""Words that may stand around a number without changing it: `She has 7 apples left`, but not `7 lakh` or `less 7`.

Words must be on an allow-list. Before the number these are words of a bare statement, names of values (`total`,
`area`), and a proper name with its verb. After the number and its unit they are a counted noun, words that qualify it,
and words that continue the statement (`left`, `in total`). Words of the question or the solution may stand in each of
these places.

Any plural is accepted as a counted noun (`7 packs`), but a singular (`1 pack`) only if the question or the solution has
it. As a second check, words that change a value are refused everywhere. Before, `spelled` has written numbers in words
as digits, so that the number words here are those next to another number.
"""

import re
from collections.abc import Iterable, Sequence

from lightning_mmrl.prompts.answers import GUESSES, HEDGES, NEGATIONS, STATEMENT_WORDS, is_statement_word, word_set

CHANGING_WORDS = word_set(
    "hundred hundreds thousand thousands million millions billion billions trillion trillions quadrillion googol "
    "lakh lakhs lac lacs crore crores grand grands myriad myriads dozen dozens gross score half halves "
    "quarter quarters third thirds fourth fourths fifth fifths sixth sixths seventh sevenths eighth eighths ninth "
    "ninths tenth tenths twelfths sixteenths hundredth hundredths thousandth thousandths millionths billionths "
    "double doubled twice triple tripled thrice pair pairs k squared cubed root factorial negative "
    "minus plus times divided multiplied modulo mod div choose power powers base remainder over under above below "
    "beyond within than least most minimum maximum up exceeds before percentage percentages permille log ln sin "
    "cos tan exp sqrt wait two three four five six seven eight nine ten eleven twelve twenty thirty forty "
    "fifty sixty seventy eighty ninety estimate estimated rounded first nobody nothing bps ppm"
)
"""Words that change the value of a number next to them, in the answer and in the solution."""
_CHANGING_SIGN = re.compile(
    "[\u5341\u767e\u5343\u4e07\u842c\u4ebf\u5104\u5146\u8d1f\u8ca0\u534a\u500d](?![\u514b\u7c73\u74e6\u5361\u7126])"
)
"""Chinese characters for ten to trillion, minus, half, -fold; not within kilogram, kilometer, kilowatt, kilocalorie."""
_RELATING_WORDS = word_set(
    "couple couples tens ones zero negatives reciprocal inverse hexadecimal hexadecimals hex binary octal decimal "
    "decimals bases ago off short less late early too away backward backwards behind past down "
    "fails miss misses lies contradicts overshoots undershoots differs sometimes otherwise besides perhaps "
    "wrongs nots inverses minuses exponents doublings halvings logs but yet except though although unlike"
)
"""Words that relate a number to another one, or judge it; they are no counted nouns, even if the question has them."""
_NO_NOUNS = CHANGING_WORDS | _RELATING_WORDS | NEGATIONS | HEDGES | GUESSES
_IRREGULAR_PLURALS = word_set(
    "people persons children men women mice geese teeth oxen sheep fish deer dice cattle vertices indices matrices "
    "data criteria phenomena"
)
_NO_PLURALS = word_set("always does goes says this thus yes")
_NO_PLURAL_ENDINGS = ("ss", "us", "is")
_VOWELS = frozenset("aeiouy")
_MIN_LETTERS = 4
_QUALIFYING_WORDS = word_set(
    "square cubic units unit of the a an such different distinct whole full red green blue yellow white black "
    "brown orange pink purple small large big little new old young"
)
CONTINUING_WORDS = STATEMENT_WORDS | word_set(
    "left remain remains remaining total altogether all each per apiece every at a an long wide high tall deep thick "
    "old heavy which exactly precisely and there"
)
"""Words that may follow a number or its noun and are no counted noun themselves, such as `left` and `in`."""
_VALUES = word_set(
    "total sum value values cost costs price probability chance point points number amount area perimeter volume "
    "length width height depth distance time speed velocity age angle rate ratio difference product quotient "
    "average mean median mode range interval set slope radius diameter circumference equation expression "
    "function roots weight mass temperature profit income salary change variable variables unknown measure "
    "coordinates vertex limit integral derivative determinant rank degree order pages page step steps"
)
_VERBS = word_set(
    "has have had gets get got needs need earns earn pays pay paid spends spend spent makes make made costs cost "
    "equals equal becomes become gives give gave yields yield sells sell sold buys buy bought eats eat ate takes "
    "take took travels travel weighs weigh measures contains contain holds hold reads read counts count leaves "
    "leave uses use used receives receive saves save saved collects runs walks drives works owns keeps keep"
)
_LEADING_WORDS = (
    STATEMENT_WORDS
    | _VALUES
    | _VERBS
    | _QUALIFYING_WORDS
    | word_set(
        "there now still also will must can all exactly precisely let where when at which us i'd i've we've going find "
        "found obtain obtained calculated computed remaining missing other"
    )
)
_PREPOSITIONS = word_set("of by from with on to")
_NEVER_LAST = _PREPOSITIONS | {"missing", "other"}
"""Directly before a number, these may relate it to another one: `the product of 7`, `away from 7`, `increased by 7`."""
_PAIRS = frozenset(
    (
        *((value, "of") for value in ("total", "sum", "value", "cost", "price", "probability", "amount", "number")),
        *((value, "of") for value in ("area", "perimeter", "volume", "length", "distance", "speed", "age", "angle")),
        *(("answer", "of"), ("result", "of"), ("solution", "of"), ("go", "with")),
        *((verb, "to") for verb in ("equal", "comes", "amounts", "evaluates", "simplifies", "leads")),
    )
)
_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*")


class Named:
    """The words of a question and a solution, singular or plural, without words of the question that relate numbers.

    >>> named = Named("How many apples are 2 less than 9?", "")
    >>> "apple" in named, "apples" in named, "pears" in named, "less" in named
    (True, True, False, False)
    """

    def __init__(self, question: str = "", solution: str = "") -> None:
        asked = {word.casefold() for word in _WORD.findall(question)} - _NO_NOUNS - _PREPOSITIONS
        self._asked = set(map(stem, asked))
        self._solved = {stem(word.casefold()) for word in _WORD.findall(solution)}
        self._unspaced = tuple(word for word in asked if not _is_spaced(word))

    def __contains__(self, word: str) -> bool:
        word = word.casefold()
        if stem(word) in self._solved:
            return True
        if not _is_spaced(word) and any(word in each for each in self._unspaced):
            return True
        return word not in _NO_NOUNS and stem(word) in self._asked


def _is_spaced(word: str) -> bool:
    """True for a word of a script with spaces between words, unlike Chinese and Japanese."""
    return all(letter < "\u2e80" or "\uac00" <= letter <= "\ud7af" for letter in word)


def stem(noun: str) -> str:
    """A noun without its plural ending.

    >>> [stem(noun) for noun in ("apples", "boxes", "berries", "glass", "people")]
    ['apple', 'box', 'berry', 'glass', 'people']
    """
    if noun.endswith("ies") and len(noun) > 4:
        return f"{noun[:-3]}y"
    if noun.endswith(("xes", "ches", "shes", "sses", "zzes")):
        return noun[:-2]
    return noun if noun.endswith("ss") else noun.removesuffix("s")


def changes(words: Iterable[str]) -> bool:
    r"""True if one of the words, in lower case, changes the value of a number next to it.

    >>> changes(["the", "answer"]), changes(["lakh"]), changes(["\u4e07"])
    (False, True, True)
    """
    return any(word in CHANGING_WORDS or _CHANGING_SIGN.search(word) is not None for word in words)


def may_follow(words: Sequence[str], named: Named) -> bool:
    """True for words that may follow a number and its unit: a counted noun, and words that continue the statement.

    >>> [may_follow(text.split(), Named("How many coins?")) for text in ("red apples left", "coin", "short", "apple")]
    [True, True, False, False]
    """
    position, folded = 0, [word.casefold() for word in words]
    while position < len(words) and (folded[position] in _QUALIFYING_WORDS or folded[position] in named):
        position += 1
    if position < len(words) and is_plural(folded[position]):
        position += 1
    return all(
        word in named or (word not in _NO_NOUNS and (word in CONTINUING_WORDS or is_statement_word(word)))
        for word in folded[position:]
    )


def is_plural(word: str) -> bool:
    """True for a word in lower case that has a vowel and the ending of a plural.

    >>> [is_plural(word) for word in ("apples", "children", "lakh", "plus", "less", "off", "ago", "bps")]
    [True, True, False, False, False, False, False, False]
    """
    if word in _NO_NOUNS or word in _NO_PLURALS:
        return False
    is_regular = len(word) >= _MIN_LETTERS and word.endswith("s") and not word.endswith(_NO_PLURAL_ENDINGS)
    return word in _IRREGULAR_PLURALS or (is_regular and "'" not in word and not _VOWELS.isdisjoint(word))


def may_lead(words: Sequence[str], named: Named) -> bool:
    """True for words that may precede a number: words of a bare statement, or a proper name with its verb.

    >>> [may_lead(text.split(), Named()) for text in ("The total is", "Emma has", "less", "Less", "the product of")]
    [True, True, False, False, False]
    """
    folded = [word.casefold() for word in words]
    last, pair = folded[-1:], tuple(folded[-2:])
    if last and last[0] in _NEVER_LAST and pair not in _PAIRS and last[0] not in named:
        return False
    return all(word in named or _leads(words, folded, position) for position, word in enumerate(folded))


def _leads(words: Sequence[str], folded: Sequence[str], position: int) -> bool:
    """True for a word of a statement, a proper name before its verb, or a plural after the name of a value or "the"."""
    word, previous = folded[position], folded[position - 1] if position else ""
    if word in _RELATING_WORDS:
        return False
    if word in _LEADING_WORDS or is_statement_word(word):
        return True
    is_name = words[position].istitle() and folded[position + 1 : position + 2] and folded[position + 1] in _VERBS
    return bool(is_name) or ((previous in _VALUES or previous in ("of", "the", "all")) and is_plural(word))


def is_point(word: str) -> bool:
    """True for capital letters that name points of a figure, such as `ABC`.

    >>> is_point("ABC"), is_point("LESS"), is_point("Ann")
    (True, False, False)
    """
    return len(word) <= _MIN_LETTERS and word.isupper() and word.casefold() not in _NO_NOUNS
