r"""Converts formulas from LaTeX or plain text to LaTeX for math-verify, and refuses malformed ones.

math-verify would read a part of a malformed formula. All regular expressions here are linear in the text.
"""

import re
from collections.abc import Iterator

from lightning_mmrl.prompts.answers import word_set

FUNCTIONS = word_set("sin cos tan cot sec csc log ln exp sqrt pi arcsin arccos arctan infinity inf infty oo")
SEPARATOR_WORDS = ("and", "or")
TOKEN = re.compile(
    r"\\(?:begin|end) ?\{[a-z*]+\}|\\[A-Za-z]+|\\.|[^\W\d_]+(?:'[^\W\d_]+)*"
    r"|[0-9]{1,3}(?:,[0-9]{3})+(?![0-9,])(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?|\.[0-9]+|\S"
)
_OPENING, _CLOSING = ("(", "[", "{", "\\{"), (")", "]", "}", "\\}")
_ROOT_OR_BRACKET = re.compile(r"\\?(?<![A-Za-z])sqrt ?\(|\\?\bsqrt ?\(|[()]")
_THOUSANDS = re.compile(
    r"(?<![0-9.,])[0-9]{1,3}(?:,[0-9]{3})+(?![0-9,])|(?<![0-9.,])[1-9][0-9]{0,2}(?: [0-9]{3})+(?![0-9,])"
)
_MIXED = re.compile(r"(-?) ?([0-9]+) ?(?:([0-9]+) ?/ ?([0-9]+)|\\[dt]?frac ?\{([0-9]+)\} ?\{([0-9]+)\})")
_TWO_NUMBERS = re.compile(r"[0-9] +[0-9.]")
_POWER = re.compile(r"\^ ?(\( ?-?[0-9a-z/ ]+ ?\)|-?[0-9]{2,}|-[0-9a-z])")
_FUNCTION = re.compile(r"(?<![\\A-Za-z])(sin|cos|tan|cot|sec|csc|log|ln|exp|arcsin|arccos|arctan|pi)(?![A-Za-z])")
_EXPONENT = re.compile(r"(?<=[0-9])[eE]([+-]?[0-9]+)$")
_RATIO = re.compile(r"[0-9.]+(?: ?: ?[0-9.]+)+")
_FORMULA = re.compile(r"[A-Za-z0-9\\{}()\[\]+*/^=<>.,|_'!& -]+")
_BROKEN = re.compile(
    r"^(?:[*/^_=)\]},.!&']|\\(?:cdot|times|div|le|ge|in|cup|cap)\b)"
    r"|(?:[-+*/^_=<>(\[{,\\&.]|\\(?:cdot|times|div|le|ge|in|cup|cap|frac|sqrt))$"
    r"|[0-9)\]}!]_|[0-9)\]}] ?\[|\.\.|(?<![A-Za-z)])'|(?<!\\)\{ ?\}|[(\[,] ?[*/^_=,)\]}]|[-+*/^_=<>] ?[*/^_=,)\]}!]"
    r"|\\[dtc]?frac(?! ?\{| ?[0-9] ?[0-9{])|\\sqrt(?! ?[{\[0-9a-z])|\\(?![A-Za-z{}\\])"
)
"""Marks of a malformed formula: an operator or index without its number, or a lone backslash."""
_COMMAND = re.compile(r"\\([A-Za-z]+)")
_COMMANDS = FUNCTIONS | word_set(
    "frac dfrac tfrac cfrac cdot times div mp le leq ge geq lt gt in cup cap setminus emptyset varnothing mathbb "
    "sinh cosh tanh lim sum int prod binom alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu "
    "xi rho sigma tau phi varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega begin end "
    "overline bar vec hat max min gcd lcm lfloor rfloor lceil rceil langle rangle to pmod bmod limits "
    "displaystyle circ deg det lvert rvert mid prime"
)
_BRACKET = re.compile(r"\\?[{}]|[()\[\]]")
_CLOSED_BY = dict(zip(_OPENING, _CLOSING, strict=True))
_SETS = re.compile(r"(?:^|\\cup|\\cap|\\in|\\setminus) ?$")


def pieces(text: str) -> Iterator[tuple[str, str]]:
    """Splits a text at separators outside brackets; yields each separator with the text after it.

    >>> list(pieces("(1, 2), 1,000 or 3"))
    [('', '(1, 2)'), (',', '1,000'), ('or', '3')]
    """
    depth, start, separator = 0, 0, ""
    for found in TOKEN.finditer(text):
        token = found[0]
        if token in _OPENING or token.startswith("\\begin"):
            depth += 1
        elif token in _CLOSING or token.startswith("\\end"):
            depth -= 1
        elif depth == 0 and (token in (",", ";") or token.casefold() in SEPARATOR_WORDS):
            yield separator, text[start : found.start()].strip()
            start, separator = found.end(), token.casefold()
    yield separator, text[start:].strip()


def in_latex(core: str) -> str:
    r"""Converts a formula to LaTeX, also from plain text; "" if two numbers follow each other without an operator.

    >>> in_latex("sqrt(2)*x**10"), in_latex("2 1/2"), in_latex("1,000"), in_latex("5 6")
    ('\\sqrt{2}\\cdot x^{10}', '(2 + \\frac{1}{2})', '1000', '')
    """
    mixed = _MIXED.fullmatch(core)
    if mixed is not None and (mixed[3] is None or " " in core):
        return f"{mixed[1]}({mixed[2]} + \\frac{{{mixed[3] or mixed[5]}}}{{{mixed[4] or mixed[6]}}})"
    if mixed is not None:
        return core
    core = _THOUSANDS.sub(lambda found: re.sub("[ ,]", "", found[0]), core)
    if _TWO_NUMBERS.search(core):
        return ""
    core = _EXPONENT.sub(r" \\times 10^{\1}", core.replace("**", "^").replace("*", "\\cdot "))
    core = re.sub(r"(?<![0-9])\.(?=[0-9])", "0.", core)
    core = re.sub(r"\\?\b(?:infinity|infty|inf|oo)\b", r"\\infty", core)
    core = _braced_roots(_FUNCTION.sub(r"\\\1 ", core))
    core = _POWER.sub(lambda found: f"^{{{found[1].strip('() ')}}}", core)
    if core.startswith("{") and core.endswith("}"):
        core = f"\\{core[:-1]}\\}}"
    return " ".join(core.split())


def _braced_roots(core: str) -> str:
    """Writes sqrt(x) as in LaTeX, in one pass over the brackets."""
    pieces, stack, position = [], [], 0
    for found in _ROOT_OR_BRACKET.finditer(core):
        pieces.append(core[position : found.start()])
        position = found.end()
        if found[0] == ")":
            pieces.append("}" if stack and stack.pop() else ")")
        else:
            stack.append(found[0] != "(")
            pieces.append("(" if found[0] == "(" else "\\sqrt{")
    return "".join(pieces) + core[position:]


def is_well_formed(formula: str) -> bool:
    r"""True for a formula that math-verify reads as a whole; from `7|8` or `7)` it would only read the 7.

    >>> [is_well_formed(text) for text in (r"\frac{1}{2}", "(0, 4]", "x^2 + 1", "7|8", "7)", "7_5", "7 -")]
    [True, True, True, False, False, False, False]
    """
    if _RATIO.fullmatch(formula):
        return True
    if _FORMULA.fullmatch(formula) is None or _BROKEN.search(formula) is not None or formula.count("|") % 2:
        return False
    commands = _COMMAND.findall(formula)
    if any(command not in _COMMANDS for command in commands) or ("&" in formula and "begin" not in commands):
        return False
    # Brackets match; a half-open interval must be at the start or after an operator on sets.
    opened: list[tuple[str, int]] = []
    for found in _BRACKET.finditer(formula):
        if found[0] in _OPENING:
            opened.append((found[0], found.start()))
            continue
        opening, start = opened.pop() if opened else ("", 0)
        interval = found[0] in ")]" and opening and opening in "([" and _SETS.search(formula[:start]) is not None
        if found[0] != _CLOSED_BY.get(opening) and not interval:
            return False
    return not opened


def bracketed(formula: str) -> tuple[str, list[str], str] | None:
    r"""The brackets and items of a pair, an interval, a set or a ratio; None for any other formula.

    >>> bracketed("(0, 4]"), bracketed("(1)(2)"), bracketed("2:3")
    (('(', ['0', '4'], ']'), None, (':', ['2', '3'], ':'))
    """
    if _RATIO.fullmatch(formula):
        return ":", [item.strip() for item in formula.split(":")], ":"
    tokens = list(TOKEN.finditer(formula))
    if len(tokens) < 2 or tokens[0][0] not in _OPENING or tokens[-1][0] not in _CLOSING:
        return None
    depth = 0
    for found in tokens[:-1]:
        depth += (found[0] in _OPENING) - (found[0] in _CLOSING)
        if depth == 0:
            return None
    inside = formula[tokens[0].end() : tokens[-1].start()].strip()
    items = [item for _, item in pieces(inside)]
    is_set = tokens[0][0] == "\\{"
    if len(items) < 2 and not is_set:
        return None
    return tokens[0][0], [in_latex(item) for item in items] if inside else [], tokens[-1][0]
