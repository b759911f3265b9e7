r"""Finds the boxes (`\boxed{...}`) of a text in linear time."""

import re

# Linear in the text, since no alternative repeats a character. Escaped braces are no braces.
_BRACE = re.compile(r"\\(?:boxed|fbox) ?\{|\\[{}\\]|[{}]")


def boxes(text: str) -> list[str] | None:
    r"""The contents of all outermost boxes, in order; None if a box is never closed, as in a text that was cut off.

    >>> boxes(r"$\boxed{\frac{1}{2}}$ or \boxed{7}"), boxes("7"), boxes(r"\boxed{7")
    (['\\frac{1}{2}', '7'], [], None)
    """
    found: list[str] = []
    stack: list[int] = []  # for each open brace: where the content of its box begins, or -1
    outer = 0  # boxes that are open
    for brace in _BRACE.finditer(text):
        token = brace[0]
        if token == "{":
            stack.append(-1)
        elif token == "}":
            start = stack.pop() if stack else -1
            outer -= start >= 0
            if start >= 0 and not outer:
                found.append(text[start : brace.start()].strip())
        elif token.endswith("{") and len(token) > 2:
            stack.append(brace.end())
            outer += 1
    return None if outer else found


def only_box(text: str) -> str | None:
    r"""The content of a text's only box, which may be repeated; None without a box, or if two boxes differ.

    >>> only_box(r"So \boxed{7}, that is, \boxed{ 7 }."), only_box(r"\boxed{7} or \boxed{8}")
    ('7', None)
    """
    contents = {"".join(content.split()): content for content in boxes(text) or ()}
    return next(iter(contents.values())) if len(contents) == 1 else None
