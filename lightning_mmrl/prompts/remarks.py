r"""Takes remarks from a text in prose that say nothing about its answer, so that its last sentence states the answer.

A remark is one of a short grammar, never any text that happens to be at the end: `The area is 24, I guess` keeps its
guess. These are remarks:

- a courtesy: `I hope this helps!`, `Done.`, `Let me see.`;
- that the answer is what was asked, or that nothing else is: `and no other number`, `; the rest is not asked`;
- a denial of other values than the one that is stated: `24, not 20`, `not 20 but 24`, `It is 24. It is not 20.`;
- an opening that gives a reason or a step: `Because 20 does not fit, it is 24`, `If we count again, we get 24`. The
  caller checks what it claims.

A denial of the stated value is no remark, nor is one with other words (`not only 20 but 24`, `not less than 20`).
"""

import re

from lightning_mmrl.prompts.answers import HEDGES, doubts, has_doubt_sign, typeset, word_set
from lightning_mmrl.prompts.values import COPULA, values_of

# Linear in the text, since repetitions are bounded or cannot match the character that ends them.
_COURTESY = re.compile(
    r"(?:(?:well|okay|ok|great|sure|alright),? )?(?:"
    r"(?:i )?hope (?:this|that|it) (?:helps|helped|is helpful|was helpful|is clear|makes sense)(?: you)?|"
    r"(?:(?:i am|i'm|we are|we're|it is|it's|all) )?(?:done|finished)|well|okay|ok|great|alright|q\.?e\.?d|"
    r"(?:that's|that is|this is) (?:it|all)|(?:many )?thanks(?: a lot| for asking)?|thank you(?: for asking)?|cheers|"
    r"you're welcome|you are welcome|good luck(?: with [a-z ]{1,40})?|have a (?:nice|good|great) (?:day|one|time)|"
    r"(?:please )?let me know if (?:you|there|anything|something) [a-z ]{1,60}|"
    r"(?:please )?feel free to ask(?: [a-z ]{1,60})?|"
    r"let(?: me| us|'s) (?:see|think|look|start|begin|check|go|solve (?:this|it)|think about (?:this|it)))",
    re.IGNORECASE,
)
_NO_OTHER = re.compile(
    r"(?:,? and|,|;) (?:no others?(?: [a-z]{1,20})?|nothing else|none of the other(?:s| [a-z]{1,20}))$", re.IGNORECASE
)
_NOT_ASKED = re.compile(
    r"(?:,? and|,|;|^) ?(?:the rest|the others|the other [a-z]{1,20}|everything else|all else|nothing else) "
    r"(?:is|are|was|were|does|do|did)(?: not|n't)? "
    r"(?:asked|needed|wanted|relevant|irrelevant|important|required|necessary|matter|count)(?: for)?$",
    re.IGNORECASE,
)
_AS_ASKED = re.compile(r"(?:, (?:which|as)|^(?:which|that|this|it)) ([a-z ]{1,60})$", re.IGNORECASE)
_ASKING = word_set("asked wanted needed sought required wants asks answer")
_ASKED = _ASKING | word_set("is was what the question we you they for us i to find exactly just had have our final")
_CORRECTED = re.compile(r"(?<![\w'])not ([^;]{1,40}?),? but (?:rather )?(?=\S)", re.IGNORECASE)
_EXCLUDED = re.compile(r"(?:, (?:and )?not| and not|,? rather than|,? instead of) ([^;]{1,40})$", re.IGNORECASE)
_REASON = re.compile(r"(?:because|since|as|given that) ((?:[^,]|,(?! ))*), (?=\S)", re.IGNORECASE)
_STEP = re.compile(
    r"(?:if|when|once|after) (?:we|you|i) ((?:count|add|subtract|multiply|divide|compute|calculate|solve|look|compare|"
    r"simplify|check|sum|sort|order|read|measure|substitute|evaluate|combine)(?= |,)(?:[^,]|,(?! ))*), (?=\S)",
    re.IGNORECASE,
)
_CONFIDENCE = word_set(
    "sure certain confident know knows known idea clue remember correct right assume hope luck mistaken"
)
_BESIDE_A_VALUE = word_set("a an the or nor and")
_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?")


def is_remark(sentence: str) -> bool:
    """True for a whole sentence that says nothing about the answer.

    >>> [is_remark(text) for text in ("Hope this helps!", "That is what was asked.", "I hope.", "Is that it?")]
    [True, True, False, False]
    """
    plain = typeset(sentence).rstrip(".!")
    if plain.endswith("?") or not plain:
        return False
    return bool(_COURTESY.fullmatch(plain) or _NOT_ASKED.fullmatch(plain)) or _is_as_asked(plain, whole=True)


def denies_others(sentence: str, stated: str) -> bool:
    """True if a sentence only denies other values than those that another sentence states.

    >>> denies_others("The answer is not 20.", "The answer is 24."), denies_others("It is not 24.0.", "It is 24.")
    (True, False)
    """
    ours, theirs = set(values_of(stated)), set(values_of(sentence))
    words = _words(sentence)
    negations = [word for word in words if word == "not" or word.endswith("n't")]
    if sentence.endswith("?") or has_doubt_sign(sentence) or len(negations) != 1 or doubts(stated):
        return False
    allowed = {"it", "is", "was", "not", "the", "answer", *_words(stated)}
    denied = COPULA.search(sentence) is not None and all(word in allowed or word in negations for word in words)
    return denied and bool(theirs) and len(ours) == 1 and ours.isdisjoint(theirs)


def without_remarks(sentence: str) -> str:
    """A sentence without remarks at its end, and without a denial of other values.

    >>> [without_remarks(text) for text in ("It is 24, not 20.", "Not 20 but 24.", "It is 24, not 24.")]
    ['It is 24', '24.', 'It is 24, not 24.']
    """
    while not has_doubt_sign(sentence):
        plain = sentence.rstrip(" .!")
        found = _NO_OTHER.search(plain) or _NOT_ASKED.search(plain)
        asked = None if found else _AS_ASKED.search(plain)
        excluded = None if found else _EXCLUDED.search(plain)
        corrected = None if found else _CORRECTED.search(sentence)
        if found is not None and found.start():
            sentence = plain[: found.start()]
        elif asked is not None and asked.start() and _is_as_asked(plain, whole=False):
            sentence = plain[: asked.start()]
        elif excluded is not None and _is_other(excluded[1], plain[: excluded.start()]):
            sentence = plain[: excluded.start()]
        elif corrected is not None and _is_other(
            corrected[1], kept := sentence[: corrected.start()] + sentence[corrected.end() :]
        ):
            sentence = kept
        else:
            break
    return sentence


def opening(sentence: str) -> tuple[str, str]:
    """An opening that gives a reason or a step, without its first word, and the rest; the opening is often empty.

    >>> opening("Because 20 does not fit, it is 24."), opening("If I am right, it is 24.")
    (('20 does not fit', 'it is 24.'), ('', 'If I am right, it is 24.'))
    """
    for pattern in (_REASON, _STEP):
        found = pattern.match(sentence)
        if found is None or "?" in found[0] or has_doubt_sign(found[0]):
            continue
        words = set(_words(found[1]))
        # A reason may deny a value, but not the certainty of the answer.
        is_sound = any(values_of(found[1])) if pattern is _REASON else not doubts(found[1])
        if is_sound and HEDGES.isdisjoint(words) and _CONFIDENCE.isdisjoint(words):
            return found[1], sentence[found.end() :]
    return "", sentence


def _is_as_asked(plain: str, *, whole: bool) -> bool:
    found = _AS_ASKED.search(plain)
    if found is None or whole != (found.start() == 0):
        return False
    words = _words(found[1])
    return not _ASKING.isdisjoint(words) and _ASKED.issuperset(words)


def _is_other(excluded: str, kept: str) -> bool:
    """True if a text is only values, and none of those that are kept; its words may be units that are kept."""
    theirs, ours = set(values_of(excluded)), set(values_of(kept))
    if not theirs or not ours or COPULA.search(excluded) is not None:
        return False
    return theirs.isdisjoint(ours) and _BESIDE_A_VALUE.union(_words(kept)).issuperset(_words(excluded))


def _words(text: str) -> list[str]:
    return [word.casefold() for word in _WORD.findall(text)]
