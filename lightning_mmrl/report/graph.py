"""The curriculum as a picture: stages in order, what each read from which, and with how many samples."""

from collections.abc import Mapping
from dataclasses import dataclass

from lightning_mmrl.report.markup import Html, escaped, folded, joined, number, table, tag
from lightning_mmrl.report.run_files import RunFiles, StageFiles
from lightning_mmrl.types.records import HANDOFF, WEIGHTS

WIDTH, HEIGHT, GAP, LEFT, LANE = 200, 46, 26, 6, 14
"""Size of a box, the space below it, its distance from the left edge, and the distance of two arcs."""
MOST_LETTERS = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """An artifact that one stage made and another read; places count from the first stage."""

    start: int
    end: int
    artifact: str
    num_samples: int | None


def links_of(run: RunFiles) -> list[Link]:
    """What the finished stages read from each other, by the hashes of what was read.

    Of several artifacts with one hash, the last one before the reader counts.
    """
    found = []
    for end, reader in enumerate(run.stages):
        for digest in dict.fromkeys((reader.result.inputs if reader.result else {}).values()):
            makers = [
                Link(start=start, end=end, artifact=name, num_samples=maker.counts.get(name, {}).get("kept"))
                for start, maker in enumerate(run.stages[:end])
                if maker.result is not None
                for name, made in maker.result.artifacts.items()
                if made.digest == digest
            ]
            found += makers[-1:]
    return found


def graph_section(run: RunFiles) -> Html:
    """The picture of a run's stages, and the same as a table."""
    links = links_of(run)
    rows = [_row(place, run, links) for place in range(len(run.stages))]
    head = ["stage", "kind", "reads", "steps", "data it made"]
    return joined([_picture(run, links), folded("As a table", table(head, rows, label="Stages", texts=5))])


def _row(place: int, run: RunFiles, links: list[Link]) -> list[object]:
    stage = run.stages[place]
    reads = [f"{_what(link)} of {run.stages[link.start].name}" for link in links if link.end == place]
    if stage.result is not None and WEIGHTS in stage.result.inputs:
        known = [link for link in links if link.end == place and link.artifact == HANDOFF]
        reads = reads if known else ["a model from outside", *reads]
    made = "; ".join(f"{name}: {in_words(counts)}" for name, counts in stage.counts.items())
    steps = "-" if stage.result is None else number(stage.result.num_steps)
    return [stage.name, stage.kind, ", ".join(reads) or "-", steps, made or "-"]


def in_words(counts: Mapping[str, int]) -> str:
    """Counts by name.

    >>> in_words({"kept": 1200, "wrong": 3})
    '1,200 kept, 3 wrong'
    """
    return ", ".join(f"{number(count)} {name}" for name, count in counts.items())


def _what(link: Link) -> str:
    if link.num_samples is None:
        return "weights" if link.artifact == HANDOFF else link.artifact
    return f"{link.artifact} ({link.num_samples:,})"


def _picture(run: RunFiles, links: list[Link]) -> Html:
    """Boxes below one another; a stage reads from the box above, or over an arc at the right from one further up."""
    arcs = _lanes([link for link in links if link.end - link.start > 1])
    height = len(run.stages) * (HEIGHT + GAP)
    width = LEFT + WIDTH + (1 + max(arcs.values(), default=-1)) * LANE + 110
    shapes: list[object] = []
    for link in links:
        start, end = _top(link.start), _top(link.end)
        if link in arcs:
            right = LEFT + WIDTH
            out = right + 10 + arcs[link] * LANE
            path = f"M{right} {start + 30}H{out}V{end + 14}H{right + 6}"
            shapes.append(tag("path", d=path, class_="link", marker_end="url(#arrow)"))
            shapes.append(_label(out + 4, end + 10 - 12 * _rank(link, arcs), _what(link)))
        else:
            path = f"M{LEFT + 20} {start + HEIGHT}V{end - 6}"
            if not any(s.start == link.start and s.end == link.end for s in links[: links.index(link)]):
                shapes.append(tag("path", d=path, class_="link", marker_end="url(#arrow)"))
            beside = [s for s in links if s.start == link.start and s.end == link.end]
            if link == beside[0]:
                shapes.append(_label(LEFT + 28, start + HEIGHT + 16, ", ".join(map(_what, beside))))
    shapes += [_box(place, stage) for place, stage in enumerate(run.stages)]
    arrow = Html(
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="4" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto"><path class="head" d="M0 0L8 4L0 8Z"/></marker></defs>'
    )
    label = f"Curriculum of {len(run.stages)} stages: {', '.join(stage.name for stage in run.stages)}"
    size = {"viewBox": f"0 0 {width} {height}", "width": width, "height": height}
    return tag("div", tag("svg", arrow, *shapes, role="img", aria_label=label, class_="graph", **size), class_="scroll")


def _rank(link: Link, arcs: Mapping[Link, int]) -> int:
    """The number of arcs further right that end at the same stage, whose labels stand above."""
    return sum(1 for other, lane in arcs.items() if other.end == link.end and lane > arcs[link])


def _lanes(links: list[Link]) -> dict[Link, int]:
    """Gives each arc the first lane in which it overlaps no other."""
    lanes: dict[Link, int] = {}
    for link in sorted(links, key=lambda link: (link.end - link.start, link.start, link.artifact)):
        taken = {lane for other, lane in lanes.items() if other.start < link.end and link.start < other.end}
        lanes[link] = next(lane for lane in range(len(links)) if lane not in taken)
    return lanes


def _top(place: int) -> int:
    return place * (HEIGHT + GAP) + 2


def _box(place: int, stage: StageFiles) -> Html:
    top, result = _top(place), stage.result
    state = "open" if result is None else "idle" if result.idle else "done"
    if result is None:
        facts = "not finished"
    elif stage.trains:
        facts = f"{number(result.num_steps)} steps"
    else:
        facts = "made data"
    return tag(
        "g",
        tag("rect", x=LEFT, y=top, width=WIDTH, height=HEIGHT, rx=6),
        tag("text", _short(stage.name), x=LEFT + 10, y=top + 19, class_="name"),
        tag("text", _short(f"{stage.kind}, {facts}"), x=LEFT + 10, y=top + 36, class_="facts"),
        class_=f"node {state}",
    )


def _label(x: int, y: int, text: str) -> Html:
    return tag("text", _short(text), x=x, y=y, class_="facts")


def _short(text: str) -> Html:
    cut = text if len(text) <= MOST_LETTERS else f"{text[: MOST_LETTERS - 3]}..."
    return escaped(cut)
