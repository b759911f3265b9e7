r"""Reads the answer of a completion in plain prose, for models that write no tags: its last sentence states it.

Reward on a last sentence alone can be gamed: `The smallest is 1\n\n269 is the smallest.` earned it, although its first
sentence says the opposite. So an earlier clause that claims another value for the same thing leaves no answer. A claim
is a clause with one value (`The smallest is 1`, `1`, `Tom has 12 apples`); its frame is the set of its other words, but
for the words of a bare statement. Two claims are about the same thing if

- their frames are equal, where words such as `minimum` and `smallest` are one word (`The minimum is 1. 269 is the
  smallest`);
- the earlier frame is empty, since a bare value is an answer (`It is 1. 269 is the smallest.`);
- both state what something is, and the words by which their frames differ mark no change (`The smallest is 1. 269 is
  the smallest one there`, in contrast to `There are 9 apples. There are 7 apples left.`);
- the last frame is empty, and the earlier one is what the question asks for (`The smallest is 1. The answer is 269.`,
  `The area is 20, so it is 24.`).

A last sentence without a value (`It is left`) is contradicted by an earlier clause that names something else in the
same way (`It is right`). A calculation (`12 - 5 = 7`), an equation (`2x = 10`), a list and a question claim nothing.
An earlier clause that denies the last value leaves no answer either (`It is not 269. 269 is the smallest.`).

Remarks are no part of any sentence (`I hope this helps!`, `24, not 20`), see `prompts.remarks`, and reasons are earlier
claims (`Because it is 20, it is 24`).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from lightning_mmrl.prompts.answers import STATEMENT_WORDS, doubts, typeset, word_set
from lightning_mmrl.prompts.remarks import denies_others, is_remark, opening, without_remarks
from lightning_mmrl.prompts.scanner import TAGS, scan
from lightning_mmrl.prompts.values import COPULA, VALUE, values_of
from lightning_mmrl.types.records import Completion

# Linear in the text, since no repetition can match the character that ends it.
_SENTENCE_END = re.compile(r"[.!?][\"')*]?\s")
_CONCLUSION = re.compile(
    r", (?:and )?(?:so|thus|hence|therefore|which means|meaning)(?: that)?,? |"
    r", (?:and |so )?(?=I (?:choose|pick|select|go with) )",
    re.IGNORECASE,
)
_LIST_NUMERAL = re.compile(r"^(?:step )?([0-9]{1,2})[.):] (?=\S)", re.IGNORECASE)
_CLAUSE_END = re.compile(
    r"; |, (?:and |but |so |or |then |while )?|(?:^| )(?:and|but|so|while|whereas|yet) ", re.IGNORECASE
)
_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?")
_SAME = {
    **dict.fromkeys(("minimum", "min", "least", "lowest", "fewest", "tiniest"), "smallest"),
    **dict.fromkeys(("maximum", "max", "biggest", "greatest", "highest", "most", "longest"), "largest"),
    **dict.fromkeys(("sum", "altogether", "overall"), "total"),
}
_ASKED_FOR = re.compile(
    r"\b(?:what(?: is| are| was| were|'s)|find|determine|compute|calculate|how many|how much) ([^,.?;]*)", re.IGNORECASE
)
_CONDITION = re.compile(
    r" (?:if|when|with|in|on|at|given|where|that|which|after|before|do|does|did)(?= |$)", re.IGNORECASE
)
_EXTREMES = frozenset(("smallest", "largest"))
_FRAMELESS = STATEMENT_WORDS - {"value"} | word_set(
    "number numbers numeral digit value a an and equals equal one there's get obtain find"
)
_FITS = word_set("do does did fit fits work works hold holds match matches")
"""Words that a denial may have beside its value: `5 does not fit`."""
_OPERATION = re.compile(r"[0-9] ?[a-z](?![A-Za-z])|[+*/^]|(?<=[0-9a-z]) ?- ?(?=[0-9a-z])")
"""Within the left side of an equation: `2x = 10`, `x + 5 = 10`."""
_MOST_NAMED = 3
"""Words that a clause may name."""
_MARKS_OF_CHANGE = word_set(
    "left now still remain remains remaining after before then later more less first second next begin beginning start "
    "end another other each total new old initial initially originally today yesterday tomorrow bought sold lost gave"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Claim:
    """A clause with one value; `is_copular` if it says what something is, and `is_lone` if it has no other value."""

    value: str
    frame: frozenset[str]
    is_copular: bool
    is_lone: bool


def prose_answer(completion: Completion, question: str = "") -> str | None:
    """The last sentence of the last line, and of that the part after `, so` or another conclusion.

    None if the text is blank, if the length limit ended it, or if an earlier clause contradicts the last sentence. A
    tag is a promise: a text with any of them has the answer that `scan` finds, or none.

    >>> def read(text):
    ...     return prose_answer(Completion(text=text, num_tokens=9, truncated=False))
    >>> read("12 - 5 = 7 and 7 + 2 = 9. So Tom has 9 apples left.")
    'So Tom has 9 apples left.'
    >>> read("Mia had 7 coins and lost 5, so 7 - 5 = 2 coins are left.")
    '7 - 5 = 2 coins are left.'
    >>> read("<think>12 - 5</think><answer>7</answer>"), read("It is 7. <answer>"), read(" ")
    ('7', None, None)
    >>> read("The smallest is 1. 269 is the smallest.") is None
    True
    """
    text = completion.text
    if any(tag in text for tag in TAGS):
        return scan(text).answer
    if completion.truncated:
        return None
    sentences = _sentences(text)
    remarks = {sentence for sentence in set(sentences) if is_remark(sentence)}
    sentences = [sentence for sentence in sentences if sentence not in remarks]
    while len(sentences) > 1 and denies_others(sentences[-1], sentences[-2]):
        sentences.pop()
    if not sentences:
        return None
    *reasons, last = _pieces(sentences.pop())
    # What a text repeats, it claims once.
    before = [piece for sentence in dict.fromkeys(sentences) for piece in _pieces(sentence)] + reasons
    return None if not last or _contradicts(list(dict.fromkeys(before)), last, question) else last


def _pieces(sentence: str) -> list[str]:
    """What a sentence claims in its reasons, and last in its conclusion, without remarks."""
    *heads, last = _CONCLUSION.split(without_remarks(sentence))
    reason, last = opening(last)
    return [*heads, *([reason] if reason else []), last.strip()]


def _sentences(text: str) -> list[str]:
    """The sentences of all lines, without numerals of lists and without quotation marks and brackets at their ends."""
    lines = [line for line in map(str.strip, text.split("\n")) if line]
    numerals = [found[1] for found in map(_LIST_NUMERAL.match, lines) if found is not None]
    # A number may begin a line of prose, but not in a list whose lines are counted.
    is_counted = len(numerals) > 1 and numerals == [str(number) for number in range(1, len(numerals) + 1)]
    sentences: list[str] = []
    for line in lines:
        numeral = _LIST_NUMERAL.match(line)
        is_listed = numeral is not None and (is_counted or not line[numeral.end()].isdecimal())
        start = numeral.end() if numeral is not None and is_listed else 0
        for end in _SENTENCE_END.finditer(line):
            # The mark at the end tells a question from a claim.
            sentences.append(line[start : end.start() + 1])
            start = end.end()
        sentences.append(line[start:])
    return [sentence for sentence in map(str.strip, sentences) if sentence]


def _contradicts(before: list[str], last: str, question: str) -> bool:
    """True if an earlier text claims another value for what the last sentence is about, or denies its value."""
    final = typeset(last)
    stated, values = _frame(final), set(values_of(final))
    if not values:
        return any(_named(clause) not in (None, _named(final)) for clause in _clauses(before, wordy=True))
    asked = typeset(question)
    is_copular = COPULA.search(final) is not None
    for clause in _clauses(before):
        claim = _claim(clause)
        if claim is None:
            continue
        if doubts(clause):
            if claim.value in values and {word for word in claim.frame - _FITS if not doubts(word)} <= stated:
                return True
        elif claim.value not in values and _same_thing(claim, stated, asked, is_copular=is_copular):
            return True
    return False


def _same_thing(claim: _Claim, stated: frozenset[str], asked: str, *, is_copular: bool) -> bool:
    """True if an earlier claim is about what the last sentence is about."""
    if not claim.frame or claim.frame == stated:
        return True
    if not stated:
        extremes = _frame(asked) & _EXTREMES
        return (len(extremes) == 1 and claim.frame & _EXTREMES == extremes) or _is_asked(claim, asked)
    nested = claim.frame < stated or stated < claim.frame
    return nested and claim.is_copular and is_copular and _MARKS_OF_CHANGE.isdisjoint(claim.frame ^ stated)


def _is_asked(claim: _Claim, question: str) -> bool:
    """True if a claim is about what a question asks for: it has the first word of that, and no word beside that.

    So `The area is 20` and `The area of the rectangle is 20` answer `What is the area of the rectangle?`, but `The area
    of the circle is 20` does not.
    """
    found = list(_ASKED_FOR.finditer(question))
    if not found or not claim.is_copular or not claim.is_lone:
        return False
    words = [word for word in _WORD.findall(_CONDITION.split(found[-1][1], maxsplit=1)[0]) if _frame(word)]
    wanted = _frame(" ".join(words))
    return (
        bool(words) and _frame(words[0]) <= claim.frame <= wanted and _MARKS_OF_CHANGE.isdisjoint(wanted - claim.frame)
    )


def _named(clause: str) -> str | None:
    """The word or short phrase that a clause names by itself or after `it is`; None if it states more."""
    copulas = list(COPULA.finditer(clause))
    if copulas and _frame(clause[: copulas[-1].start()]):
        return None
    named = " ".join(map(str.casefold, _WORD.findall(clause[copulas[-1].end() if copulas else 0 :])))
    return named if named and len(named.split()) <= _MOST_NAMED and not doubts(clause) else None


def _clauses(texts: list[str], *, wordy: bool = False) -> Iterator[str]:
    """Yields clauses of texts that have a value, without questions; if `wordy`, those without a value instead."""
    for text in map(typeset, texts):
        for sentence in _SENTENCE_END.sub(lambda found: f"{found[0][0]}\n", text).split("\n"):
            if not sentence.endswith("?") and (VALUE.search(sentence) is None) == wordy:
                yield from _glued(_CLAUSE_END.split(sentence))


def _glued(pieces: list[str]) -> Iterator[str]:
    """Joins pieces to clauses with one copula at most, so that a list stays in its clause."""
    clause: list[str] = []
    complete = False
    for piece in pieces:
        has_copula = COPULA.search(piece) is not None
        if complete and has_copula:
            yield ", ".join(clause)
            clause, complete = [], False
        clause.append(piece)
        complete = complete or has_copula
    yield ", ".join(clause)


def _claim(clause: str) -> _Claim | None:
    """The value that a clause states, beside its last copula or as its only one; None if it states no single value."""
    copulas = list(COPULA.finditer(clause))
    frame = _frame(clause)
    if not copulas:
        values = list(values_of(clause))
        return _Claim(value=values[0], frame=frame, is_copular=False, is_lone=True) if len(values) == 1 else None
    head, tail = list(values_of(clause[: copulas[-1].start()])), list(values_of(clause[copulas[-1].end() :]))
    is_equation = copulas[-1][0] == "=" and _OPERATION.search(clause[: copulas[-1].start()]) is not None
    if head and tail and (not frame or is_equation):
        return None  # a calculation, or a step to the value of a variable
    for values in (tail, head):
        if len(values) == 1:
            return _Claim(value=values[0], frame=frame, is_copular=True, is_lone=len(head) + len(tail) == 1)
    return None


def _frame(text: str) -> frozenset[str]:
    """The words of a text without values and words of a bare statement."""
    words = map(str.casefold, _WORD.findall(VALUE.sub(" ", COPULA.sub(" ", text))))
    return frozenset(_SAME.get(word, word) for word in words if word not in _FRAMELESS)
