"""A picture of where a number of things went: one block at the left, and a ribbon to each place at the right."""

from collections.abc import Mapping

from lightning_mmrl.report.markup import Html, number, tag

WIDTH, BLOCK, RIGHT, HEIGHT, LINE, GAP = 560, 10, 240, 120, 18, 6
"""Width of the picture and of a block, place of the blocks at the right, height of the block at the left, height of a
label, and space between two places; in pixels."""
MOST_LETTERS = 34


def ribbons(title: str, counts: Mapping[str, int]) -> Html | None:
    """The picture; None if nothing went anywhere.

    The height of a ribbon is its share, but at least a pixel. `counts` are of places that exclude each other.
    """
    parts = {name: count for name, count in counts.items() if count > 0}
    total = sum(parts.values())
    if not total:
        return None
    shapes, left, right = [], 0.0, 0.0
    for name, count in parts.items():
        share = HEIGHT * count / total
        own = max(share, 1.0)
        middle = (BLOCK + RIGHT) / 2
        shapes.append(
            tag(
                "path",
                d=f"M{BLOCK} {left:.1f}C{middle} {left:.1f} {middle} {right:.1f} {RIGHT} {right:.1f}V{right + own:.1f}"
                f"C{middle} {right + own:.1f} {middle} {left + share:.1f} {BLOCK} {left + share:.1f}Z",
                class_="ribbon",
            )
        )
        shapes.append(tag("rect", x=RIGHT, y=f"{right:.1f}", width=BLOCK, height=f"{own:.1f}", class_="fill"))
        label = f"{_short(name)}: {number(count)} ({count / total:.0%})"
        shapes.append(tag("text", label, x=RIGHT + BLOCK + 8, y=f"{right + max(own, LINE) / 2 + 4:.1f}"))
        left, right = left + share, right + max(own, LINE) + GAP
    shapes.append(tag("rect", x=0, y=0, width=BLOCK, height=HEIGHT, class_="fill"))
    height = max(HEIGHT, round(right))
    size = {"viewBox": f"0 0 {WIDTH} {height}", "width": WIDTH, "height": height}
    told = f"{title}: {number(total)} in all"
    picture = tag("svg", *shapes, role="img", aria_label=told, class_="graph", **size)
    return tag(
        "figure",
        tag("figcaption", told),
        tag("div", picture, class_="scroll", tabindex="0", role="region", aria_label=told),
    )


def _short(name: str) -> str:
    shown = name.replace("_", " ")
    return shown if len(shown) <= MOST_LETTERS else f"{shown[: MOST_LETTERS - 3]}..."
