"""The curriculum as a picture: stages in order, what each read from which, and with how many samples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lightning_mmrl.report.markup import Html, escaped, folded, number, table, tag
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
    """Which stage read what another stage made, found by the hashes of what was read.

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


def curriculum_section(runs: Sequence[RunFiles]) -> Html | None:
    """The picture of each run's stages, and the same as a table; None if there is no stage."""
    shown = []
    for run in runs:
        if run.stages:
            links = links_of(run)
            rows = [_row(place, run, links) for place in range(len(run.stages))]
            head = ["stage", "kind", "reads", "steps", "data it made"]
            listed = folded("As a table", table(head, rows, label=f"Stages of {run.name}", texts=5))
            title = tag("figcaption", run.name) if len(runs) > 1 else ""
            shown.append(tag("figure", title, _picture(run, links), listed))
    return tag("div", *shown, class_="side") if shown else None


def _row(place: int, run: RunFiles, links: list[Link]) -> list[object]:
    stage = run.stages[place]
    reads = [f"{_what(link)} of {run.stages[link.start].name}" for link in links if link.end == place]
    if stage.result is not None and WEIGHTS in stage.result.inputs:
        known = [link for link in links if link.end == place and link.artifact == HANDOFF]
        reads = reads if known else [_unknown_weights(stage, run), *reads]
    made = "; ".join(f"{name}: {in_words(counts)}" for name, counts in stage.counts.items())
    steps = "-" if stage.result is None else number(stage.result.num_steps)
    return [stage.name, stage.kind, ", ".join(reads) or "-", steps, made or "-"]


def _unknown_weights(stage: StageFiles, run: RunFiles) -> str:
    """The source of weights that no stage of the run has now: a model from outside, or a stage that ran again since."""
    source = "" if stage.finished is None else stage.finished.content.get("starts_from")
    again = source in [each.name for each in run.stages]
    return f"weights of {source} that were replaced since" if again else "a model from outside"


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
    shapes = [_arc(link, lane) for link, lane in arcs.items()]
    shapes += [_down(place, links) for place in range(len(run.stages) - 1)]
    shapes += [_arc_label(link, arcs) for link in arcs]
    shapes += [_box(place, stage, run) for place, stage in enumerate(run.stages)]
    label = f"Curriculum of {len(run.stages)} stages: {', '.join(stage.name for stage in run.stages)}"
    size = {"viewBox": f"0 0 {width} {height}", "width": width, "height": height}
    return tag("div", tag("svg", *shapes, role="img", aria_label=label, class_="graph", **size), class_="scroll")


def _arc(link: Link, lane: int) -> Html:
    right, y = LEFT + WIDTH, _top(link.end) + 14
    line = tag("path", d=f"M{right} {_top(link.start) + 30}H{right + 10 + lane * LANE}V{y}H{right + 8}", class_="link")
    return tag("g", line, tag("path", d=f"M{right + 9} {y - 4}L{right + 1} {y}L{right + 9} {y + 4}Z", class_="head"))


def _arc_label(link: Link, arcs: Mapping[Link, int]) -> Html:
    """The name at the end of an arc, above the names of arcs further right that end at the same stage."""
    above = sum(1 for other, lane in arcs.items() if other.end == link.end and lane > arcs[link])
    return _label(LEFT + WIDTH + 14 + arcs[link] * LANE, _top(link.end) + 10 - 12 * above, _what(link))


def _down(place: int, links: list[Link]) -> Html:
    """The arrow from a box to the next one, with the names of all that passes; nothing if nothing does."""
    passed = [link for link in links if link.start == place and link.end == place + 1]
    if not passed:
        return Html("")
    x, y = LEFT + 20, _top(place + 1) - 1
    line = tag("path", d=f"M{x} {_top(place) + HEIGHT}V{y - 8}", class_="link")
    head = tag("path", d=f"M{x - 4} {y - 8}L{x} {y}L{x + 4} {y - 8}Z", class_="head")
    return tag("g", line, head, _label(x + 10, y - 9, ", ".join(map(_what, passed))))


def _lanes(links: list[Link]) -> dict[Link, int]:
    """Gives each arc the first lane in which it overlaps no other."""
    lanes: dict[Link, int] = {}
    for link in sorted(links, key=lambda link: (link.end - link.start, link.start, link.artifact)):
        taken = {lane for other, lane in lanes.items() if other.start < link.end and link.start < other.end}
        lanes[link] = next(lane for lane in range(len(links)) if lane not in taken)
    return lanes


def _top(place: int) -> int:
    return place * (HEIGHT + GAP) + 2


def _box(place: int, stage: StageFiles, run: RunFiles) -> Html:
    top, result = _top(place), stage.result
    state = "open" if result is None else "idle" if result.idle else "done"
    if result is None:
        facts = "not finished" if run.is_known else "unknown"
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
    return tag("text", _short(text), x=x, y=y, class_="facts label")


def _short(text: str) -> Html:
    cut = text if len(text) <= MOST_LETTERS else f"{text[: MOST_LETTERS - 3]}..."
    return escaped(cut)
