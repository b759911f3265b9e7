"""Writes HTML whose every text is escaped: text, tables, bars, and data for scripts."""

import html
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lightning_mmrl.types.text import printable

_UNSEEN = re.compile("[\u061c\u200b\u200e\u200f\ufeff]")
"""Characters that `printable` keeps and that a page does not show: marks of direction, and spaces without width."""


class Html(str):
    """A text that is HTML already; every other text is escaped by `escaped`."""

    __slots__ = ()


def visible(text: str) -> str:
    r"""Returns a text with control codes, bidirectional marks and lone surrogates written out.

    A model's answer may hold any of them, and a page would hide, reorder or refuse them.

    >>> visible("a\x00b\u202ec\u200f")
    'a\\x00b\\u202ec\\u200f'
    """
    shown = printable(text.replace("\r\n", "\n"))
    return _UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), shown)


def escaped(value: object) -> Html:
    """A value as HTML; `Html` stays as it is.

    >>> escaped("</td><script>")
    '&lt;/td&gt;&lt;script&gt;'
    """
    return value if isinstance(value, Html) else Html(html.escape(visible(str(value))))


def tag(name: str, *children: object, **attributes: object) -> Html:
    """An element; an underscore at the end of an attribute's name is dropped, another one becomes a hyphen.

    An attribute that is None is left out.

    >>> tag("p", "a < b", class_="note", aria_label='"x"')
    '<p class="note" aria-label="&quot;x&quot;">a &lt; b</p>'
    """
    named = (
        f' {key.rstrip("_").replace("_", "-")}="{escaped(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Html(f"<{name}{''.join(named)}>{joined(children)}</{name}>")


def joined(parts: Iterable[object], between: str = "") -> Html:
    """Parts as HTML, one after another."""
    return Html(between.join(escaped(each) for each in parts))


def table(head: Sequence[str], rows: Iterable[Sequence[object]], *, label: str, texts: int = 1) -> Html:
    """A table in a box that scrolls sideways on a narrow screen; the first `texts` columns are texts, others numbers.

    The first cell of a row is the row's header.
    """
    kinds = ["" if place < texts else "number" for place in range(len(head))]
    top = joined(tag("th", each, scope="col", class_=kind or None) for each, kind in zip(head, kinds, strict=True))
    body = joined(
        tag(
            "tr",
            *(
                tag("td" if place else "th", cell, scope=None if place else "row", class_=kinds[place] or None)
                for place, cell in enumerate(row)
            ),
        )
        for row in rows
    )
    inner = tag("table", tag("thead", tag("tr", top)), tag("tbody", body))
    return tag("div", inner, class_="scroll", role="region", aria_label=label, tabindex="0")


def bar(value: float, interval: Mapping[str, Any] | None = None, *, most: float = 1.0) -> Html:
    """A horizontal bar of `value` on a scale from 0 to `most`; a line from `low` to `high` of the interval, if given.

    The number stands beside the bar, so the picture is hidden from screen readers.
    """

    def place(number: float) -> str:
        return f"{100 * min(max(number / most if most > 0 else 0.0, 0.0), 1.0):.2f}"

    drawn = f'<rect class="track" width="100" height="10"/><rect class="fill" width="{place(value)}" height="10"/>'
    if interval is not None:
        low, high = place(interval["low"]), place(interval["high"])
        drawn += f'<path class="whisker" d="M{low} 5H{high}M{low} 2V8M{high} 2V8"/>'
    return Html(f'<svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">{drawn}</svg>')


def folded(title: str, *content: object) -> Html:
    """Content that is shown when its title is opened."""
    return tag("details", tag("summary", title), *content)


def data(content: Any, name: str) -> Html:
    r"""Values for a script, as ASCII JSON that cannot end its element.

    >>> data("</script>", "x")
    '<script type="application/json" id="x">"\\u003c/script\\u003e"</script>'
    """
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Html(f'<script type="application/json" id="{name}">{text}</script>')


def rounded(value: float | None) -> float | None:
    """A number with six digits for a script; None if it is not finite."""
    return float(f"{value:.6g}") if value is not None and math.isfinite(value) else None


def number(value: object) -> str:
    """A number for humans.

    >>> number(12345), number(0.123456), number(float("nan")), number(None)
    ('12,345', '0.1235', 'nan', '-')
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "-" if value is None else str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def duration(seconds: float) -> str:
    """A time for humans.

    >>> duration(5.25), duration(754), duration(7384)
    ('5.2 s', '12 min 34 s', '2 h 3 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
