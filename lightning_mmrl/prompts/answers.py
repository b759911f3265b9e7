r"""Reads answers for all rewards: normalization, the grammar of bare statements, and words of doubt.

An answer names something either by itself (`B`) or in a bare statement (`The answer is B.`). The grammar of a
statement is a list of words that may stand around the thing that it names. A word outside the list, such as a
negation, is never skipped, so that `The answer is not B` names nothing. All functions here take time linear in the
text, or in the text times the few words of its opening.
"""

import json
import re
import unicodedata
from collections.abc import Iterator

from lightning_mmrl.types.records import Sample


def word_set(words: str) -> frozenset[str]:
    """The words of a text as a set.

    >>> sorted(word_set("not never"))
    ['never', 'not']
    """
    return frozenset(words.split())


QUOTES = "\"'"
_FRACTION_SLASH = "\u2044"
_TYPOGRAPHY = str.maketrans(
    {
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212\u2796", "-"),
        **dict.fromkeys("\u2018\u2019\u201a\u201b\u2039\u203a\u300c\u300d\u00b4", "'"),
        **dict.fromkeys("\u201c\u201d\u201e\u201f\u00ab\u00bb\u300e\u300f\u300a\u300b", '"'),
        **dict.fromkeys("\u3002\u0964\u06d4\u0589", "."),
        **dict.fromkeys("\u061f\u00bf\u2753\u2754", "?"),
        **{"\u3010": "[", "\u3014": "[", "\u3011": "]", "\u3015": "]", "\u3001": ",", "\u060c": ",", "\u061b": ";"},
        _FRACTION_SLASH: "/",
    }
)
_SUPERSCRIPTS = str.maketrans(
    "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079\u207a\u207b", "0123456789+-"
)
_RAISED = re.compile("[\u2070\u00b9\u00b2\u00b3\u2074-\u207b]+")
_FRACTION = re.compile("([0-9]?)([\u00bc-\u00be\u2150-\u215e])")

# Linear in the text, since no repetition can match the character that ends it.
_MARKUP = re.compile(r"<(b|strong|i|em|u|code)>([^<>]*)</\1>", re.IGNORECASE)
_HEADING = re.compile(r"^#{1,6} ")
_BACKTICKS = re.compile(r"(?<!`)`+([^`]+)`+")
_STARS = re.compile(r"(?<![^\s(\[{\"'])\*+(?=[^\s*])([^*]*)(?<=[^\s*])\*+(?![^\s.,:;!?)\]}\"'])")
_UNDERSCORES = re.compile(r"(?<!\w)_+(?=[^\W_])([^_]*)(?<=[^\s_])_+(?!\w)")
_DOLLARS = re.compile(r"\$\$([^$]+)\$\$|(?<![\\$])\$(?! )([^$]+)(?<![ \\])\$")
_WRAPPER = re.compile(
    r"\\(?:boxed|fbox|text|textbf|textit|textrm|textsf|texttt|mathrm|mathbf|mathit|mathsf|mbox|emph) ?\{|[{}]"
)
_LATEX_SPACE = re.compile(r"\\(?:[ ,;:!]|quad\b|qquad\b|left\b|right\b)|~(?=[\\\w])|\\[()\[\]]")

NEGATIVE_PICTURES = "\u274c\u274e\u2715\u2716\u2717\u2718\u26d4\U0001f6ab\U0001f44e\U0001f645\U0001f914\U0001f937"
"""Pictures that deny or doubt, such as a cross, a thumb down or a shrug."""
_JOINERS = "\ufe0f\u200d\u20e3"


def question_of(sample: Sample) -> str:
    """The text of all user turns of a sample.

    >>> from lightning_mmrl.types.records import Message
    >>> question_of(Sample(id="q1", messages=(Message(role="user", content="How many apples?"),)))
    'How many apples?'
    """
    return "\n".join(message.content for message in sample.messages if message.role == "user")


def typeset(text: str) -> str:
    """Normalizes typography: one form for every kind of dash, quote, full stop, digit, width and emphasis.

    This is NFKC, but a superscript stays a power and a fraction one number. Whitespace is collapsed. Headings, Markdown
    and HTML emphasis, and decorative pictures at both ends are removed. Invisible and look-alike characters and
    pictures that deny stay.

    >>> typeset("**\uff22\u3002**"), typeset("\u22125 m\u00b2"), typeset("2\u00bd"), typeset("`happy` \U0001f60a")
    ('B.', '-5 m^2', '2 1/2', 'happy')
    """
    text = _FRACTION.sub(lambda found: f"{found[1]} {unicodedata.normalize('NFKC', found[2])}".lstrip(), text)
    text = _RAISED.sub(lambda found: f"^{found[0]}" if len(found[0]) == 1 else f"^{{{found[0]}}}", text)
    text = text.translate(_SUPERSCRIPTS)
    text = " ".join(unicodedata.normalize("NFKC", text).translate(_TYPOGRAPHY).split())
    text = _HEADING.sub("", _BACKTICKS.sub(r"\1", _MARKUP.sub(r"\2", text)))
    text = _UNDERSCORES.sub(r"\1", _STARS.sub(r"\1", text)).strip()
    start, end = 0, len(text)
    while end > start and (_is_picture(text[end - 1]) or text[end - 1] in _JOINERS or text[end - 1] == " "):
        end -= 1
    while start < end and (_is_picture(text[start]) or text[start] in _JOINERS or text[start] == " "):
        start += 1
    dropped = text[:start] + text[end:]
    return text[start:end] if start < end and (not dropped or any(map(_is_picture, dropped))) else text


def _is_picture(character: str) -> bool:
    decorative = "\u2600" <= character <= "\u27bf" or "\u2b00" <= character <= "\u2bff" or character >= "\U0001f000"
    return decorative and unicodedata.category(character) in ("So", "Sk") and character not in NEGATIVE_PICTURES


def without_latex(text: str) -> str:
    r"""Removes LaTeX wrappers (math delimiters, boxes and fonts), and leaves the formulas in them unchanged.

    >>> without_latex(r"The answer is $\boxed{\textbf{(B)}\ 75}$"), without_latex("$5 or $10"), without_latex(r"\neg B")
    ('The answer is (B) 75', '$5 or $10', '\\neg B')
    """
    if "$" in text:
        text = _DOLLARS.sub(lambda found: f" {found[1] or found[2]} ", text)
    if "\\" in text:
        # A power belongs to the text before it, even if that text was wrapped: \text{ m}^2.
        text = _LATEX_SPACE.sub(" ", _unwrapped(text)).replace("  ", " ").replace(" ^", "^")
    return " ".join(text.split())


def _unwrapped(text: str) -> str:
    """Removes the command and the braces of each wrapper; returns the text unchanged if braces do not match."""
    pieces, position = [], 0
    open_wrappers: list[bool] = []
    for found in _WRAPPER.finditer(text):
        pieces.append(text[position : found.start()])
        position = found.end()
        if found[0] == "}":
            if not open_wrappers:
                return text
            pieces.append(" " if open_wrappers.pop() else "}")
        else:
            open_wrappers.append(found[0] != "{")
            pieces.append(" " if found[0] != "{" else "{")
    return text if open_wrappers else "".join(pieces) + text[position:]


def without_assurance(answer: str) -> str:
    """Removes a remark in brackets at the end that only assures.

    >>> without_assurance("3 (I checked it)."), without_assurance("3 (approximately)")
    ('3', '3 (approximately)')
    """
    found = _ASSURANCE.search(answer)
    if found is None or not _ASSURING.issuperset(found[1].casefold().replace(",", " ").split()):
        return answer
    return answer[: found.start()]


def bare(answer: str) -> str:
    """Strips an answer of typography, LaTeX wrappers, a JSON object around it, a bullet, outer quotes and full stops.

    >>> bare('- "Option B."'), bare('{"answer": "C"}'), bare("B?")
    ('Option B', 'C', 'B?')
    """
    text = _json_value(without_latex(typeset(answer)))
    start, end = 0, len(text)
    while True:
        before = (start, end)
        while end > start and text[end - 1] in " .!:;,":
            end -= 1
        while start < end and (text[start] == " " or _is_bullet(text, start)):
            start += 1
        if end - start > 1 and text[start] in QUOTES and text[end - 1] == text[start]:
            start, end = start + 1, end - 1
        if before == (start, end):
            return text[start:end]


def _is_bullet(text: str, start: int) -> bool:
    """True for a dash, star or dot before a word; a dash before a number is its sign."""
    return (
        text[start] in "-*\u2022" and text[start + 1 : start + 2] == " " and not text[start + 2 : start + 3].isdigit()
    )


def _json_value(text: str) -> str:
    """The value of a JSON object whose single key consists of statement words; any other text unchanged."""
    if not (text.startswith("{") and text.endswith("}") and '"' in text):
        return text
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):  # it is no JSON, but an ordinary answer
        return text
    if not isinstance(found, dict) or len(found) != 1:
        return text
    [(key, value)] = found.items()
    named = all(word in STATEMENT_WORDS for word in key.casefold().replace("_", " ").split())
    return str(value) if named and isinstance(value, str | int | float) and not isinstance(value, bool) else text


STATEMENT_WORDS = word_set(
    "ok okay c'est "
    "the this that it its it's that's here my our i i'm we he he's she she's they they're so thus hence therefore "
    "then finally overall clearly definitely certainly surely obviously simply just only both am is are was be to "
    "of in for on by with from certain sure confident answer answers ans option choice letter result solution "
    "solutions conclusion response prediction label labels class category emotion emotions feeling feelings mood "
    "moods expression expressions sentiment state tone facial vocal emotional voice face speaker person man woman "
    "boy girl child character subject individual guy lady actor actress people video clip image picture scene "
    "audio recording question final correct right best true predicted detected dominant main primary expressed "
    "displayed shown conveyed portrayed depicted pick choose select go feel feels look looks sound sounds express "
    "expresses expressing show shows showing display displays displaying think believe say conclude la el "
    "respuesta correcta es opci\u00f3n die das richtige antwort ist lautet r\u00e9ponse bonne est resposta "
    "correta \u00e9 risposta corretta \u00e8 \u043e\u0442\u0432\u0435\u0442"
)
"""Words that may stand around the thing that a bare statement names; none of them denies, doubts or counts."""
_ADJECTIVES = word_set("right correct true")
"""Statement words that are answers themselves (`right`, `true`) unless another statement word follows them."""
_NEVER_FIRST = word_set("is are was be am to of in for on by with from est es")
"""Words that cannot begin a statement, since they would begin a question or a fragment."""
_CHINESE = (
    *("\u6700\u7ec8", "\u6b63\u786e", "\u7b54\u6848", "\u9009\u9879", "\u9009\u62e9", "\u60c5\u7eea", "\u60c5\u611f"),
    *("\u8868\u60c5", "\u6807\u7b7e", "\u56e0\u6b64", "\u6240\u4ee5", "\u611f\u5230", "\u611f\u89c9", "\u8fd9\u4e2a"),
    *("\u8bf4\u8bdd", "\u89c6\u9891", "\u4e2d", "\u4eba", "\u4ed6", "\u5979", "\u8005", "\u5e94", "\u6545", "\u9009"),
    *("\u662f", "\u4e3a", "\u7684", "\u8be5", "\u6211", "\u5f88"),
)
"""Chinese statement words: final, correct, answer, option, emotion, label, therefore, feels, person, is, and more."""
_CHINESE_WORDS = re.compile(f"(?:{'|'.join(_CHINESE)})+")
_CLOSING_WORDS = word_set(
    "the my a final correct right best true answer option choice letter result solution label emotion feeling one "
    "shown expressed here"
)
_ASSURANCE = re.compile(r" ?\(([A-Za-z', -]+)\)[ .]*$")
_ASSURING = word_set(
    "i i'm i've we have am is it this that the my checked double-checked verified confirmed computed calculated sure "
    "certain twice again carefully myself by hand"
)
_CERTAINLY = re.compile(r"\b(?:without (?:a |any )?doubt|no doubt|beyond doubt)\b", re.IGNORECASE)
_WORD = re.compile(r"[A-Za-z\u00c0-\u024f\u0400-\u04ff]+(?:'[A-Za-z]+)?")
_LINK = re.compile(r"[ \"]*(?:(?:->|=>|[:=,.]) *)*")
LEAD_INS = word_set(
    "based looking according given judging considering because since as after from in by with on for listening watching"
)
"""First words of a lead-in: `Based on the picture, it is B`."""


def is_statement_word(word: str) -> bool:
    """True for a word in lower case, or a run of Chinese words, that may stand in a bare statement.

    >>> is_statement_word("answer"), is_statement_word("\u7b54\u6848\u662f"), is_statement_word("less")
    (True, True, False)
    """
    return word in STATEMENT_WORDS or _CHINESE_WORDS.fullmatch(word) is not None


def readings(answer: str) -> Iterator[tuple[str, str]]:
    """Yields the possible readings of an answer: pairs of a lead-in, which is often empty, and the remaining text.

    The first reading is the whole answer. Later ones leave out more and more words of its opening, and a closing such
    as "is correct". The caller uses the first reading that names something, and checks its lead-in for other
    candidates.

    >>> [rest for _, rest in readings("The answer is B.")]
    ['The answer is B', 'answer is B', 'is B', 'B']
    >>> list(readings("Based on the image, it is B"))[-1]
    ('Based on the image', 'B')
    >>> [rest for _, rest in readings("not B")]
    ['not B']
    """
    text = _CERTAINLY.sub("certainly", bare(answer))
    for start in _openings(text):
        yield from _closed("", text[start:])
    first = _WORD.match(text)
    if first is None or first[0].casefold() not in LEAD_INS:
        return
    comma = text.find(", ")
    while comma >= 0:
        lead, rest = text[:comma], text[comma + 2 :]
        starts = list(_openings(rest))
        if len(starts) > 1 and not doubts(lead):
            for start in starts[1:]:
                yield from _closed(lead, rest[start:])
            return
        comma = text.find(", ", comma + 2)


def _openings(text: str) -> Iterator[int]:
    """Yields the start of the text, and its start without the first word, the first two words, and so on."""
    yield 0
    position = 0
    while position < len(text):
        word = _WORD.match(text, position)
        if word is not None and word[0].casefold() in STATEMENT_WORDS:
            if position == 0 and word[0].casefold() in _NEVER_FIRST:
                return
            end = word.end()
            if word[0].casefold() in _ADJECTIVES:
                noun = _WORD.match(text, end + 1)
                if noun is None or not is_statement_word(noun[0].casefold()):
                    return
        else:
            known = next((each for each in _CHINESE if text.startswith(each, position)), None)
            if known is None:
                return
            end = position + len(known)
        link = _LINK.match(text, end)
        position = end if link is None else link.end()
        if position < len(text):
            yield position


def _closed(lead: str, rest: str) -> Iterator[tuple[str, str]]:
    yield lead, rest
    for verb in (" is ", " are "):
        head, found, closing = rest.rpartition(verb)
        if found and closing and all(word in _CLOSING_WORDS for word in closing.casefold().split()):
            yield lead, head


NEGATIONS = word_set(
    "not no nor neither never none nope non without cannot except excluding excluded exclude anything everything "
    "opposite rather instead unlike lack lacks lacking absence absent free far hardly barely scarcely wrong false "
    "incorrect untrue mistaken mistake eliminate rule ain't isnt arent dont doesnt wasnt nicht kein keine nunca "
    "jamais sans"
)
GUESSES = word_set(
    "maybe perhaps probably possibly presumably apparently guess guessing guessed unsure uncertain doubt suspect "
    "suppose vielleicht quiz\u00e1s"
)
HEDGES = GUESSES | word_set(
    "possible likely unlikely might may could seems seem appears appear either or between somewhat sort kind "
    "almost nearly about approximately approx roughly around circa close near if unless otherwise depends "
    "depending whether assuming versus vs oder ou peut ungef\u00e4hr etwa environ unknown unclear"
)
_CHINESE_DOUBTS = "\u4e0d\u6ca1\u975e\u6216\u53ef\u7ea6\u65e0"
"""Chinese characters for not, has not, non-, or, may, about, without."""
_DOUBT_SIGN = re.compile(rf"[?\u00ac\u2260\u2248\u00b1{NEGATIVE_PICTURES}]|!=|~~|\\(?:neg|lnot|not|neq|approx|sim)\b")


def doubts(text: str) -> bool:
    """True if the text has a word or a sign of negation, hedging or a question.

    >>> [doubts(text) for text in ("The man is not red", "B?", "isn't it", "it is red")]
    [True, True, True, False]
    """
    words = map(str.casefold, _WORD.findall(text))
    return has_doubt_sign(text) or any(word in NEGATIONS or word in HEDGES or word.endswith("n't") for word in words)


def has_doubt_sign(text: str) -> bool:
    r"""True if the text has a sign of doubt, including LaTeX commands and Chinese characters.

    >>> has_doubt_sign("7?"), has_doubt_sign(r"x \neq 7"), has_doubt_sign("not 7")
    (True, True, False)
    """
    return _DOUBT_SIGN.search(text) is not None or any(sign in text for sign in _CHINESE_DOUBTS)
