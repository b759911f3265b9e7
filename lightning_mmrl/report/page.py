"""One HTML page that shows a run, or two side by side; it loads nothing and needs no network."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_mmrl.errors import ConfigError, MmrlError
from lightning_mmrl.files import write_whole
from lightning_mmrl.report.against import against_section
from lightning_mmrl.report.answers import evaluated_groups
from lightning_mmrl.report.breakdown import breakdown_section
from lightning_mmrl.report.curves import curves_section
from lightning_mmrl.report.document import PLAIN_STYLES, document
from lightning_mmrl.report.doubts import doubts_of
from lightning_mmrl.report.flows import costs_section, distribution_section, routing_section
from lightning_mmrl.report.glance import glance_section
from lightning_mmrl.report.graph import curriculum_section
from lightning_mmrl.report.markup import Html, data, folded, joined, tag, visible
from lightning_mmrl.report.packing import packed
from lightning_mmrl.report.rollouts import Shown, browser_groups, read_rollouts
from lightning_mmrl.report.run_files import RunFiles, read_runs
from lightning_mmrl.report.scores import confusion_section, modality_section, stages_section

if TYPE_CHECKING:
    from lightning_mmrl.report.media import MediaFolder

FILE = "report.html"
MOST_RUNS = 2
FAULTS = (MmrlError, OSError, KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError)
"""Errors of a builder that meets a file with unexpected content."""
TERMS = (
    "A group is one prompt with its answers: the G answers that a stage sampled while it trained, or the answers that "
    "all stages gave to one sample of an evaluation set.",
    "'advantage' is what the algorithm trained on, if the stage recorded it; none if the answer's group was not "
    "trained on, or if each token has its own. 'over' is an answer's reward minus the mean reward of its group, which "
    "most algorithms scale. An answer without a reward was not scored and counts in no mean.",
    "Filters of answers apply together: a group matches if one of its answers passes all of them.",
)
SCRIPTS = ("browser.js", "uPlot.iife.min.js", "curves.js")
STYLES = ("uPlot.min.css", *PLAIN_STYLES)


def write_report(folders: Sequence[Path], target: Path | None = None, media: "MediaFolder | None" = None) -> Path:
    """Writes the page of a run, or of two runs, and returns its path: `report.html` in the first run's folder.

    With `media`, a folder beside the page, `report_media`, holds the media of the groups that it shows.

    Raises:
        ConfigError: There are no runs or more than two, the target is no place for a file, or the folder of media
            holds files of somebody else.
        DataError: A folder is none of a run.
        DiskError: The page cannot be written.
    """
    if not 1 <= len(folders) <= MOST_RUNS:
        raise ConfigError(f"a report shows one run or two, not {len(folders)}; name one or two run folders")
    path = target or folders[0] / FILE
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; name the page to write, such as {path / FILE}")
    if target is not None and not path.parent.is_dir():
        raise ConfigError(f"{path.parent} is no folder; create it, or write the page elsewhere")
    beside = path.with_name(f"{path.stem}_media")
    runs = read_runs(folders)
    write_whole(path, page(runs, None if media is None else partial(media.fill, beside, runs)))
    return path


def page(runs: Sequence[RunFiles], fill: Callable[[Sequence[Shown]], None] | None = None) -> str:
    """The HTML of the page; the same folders give the same bytes.

    Args:
        runs: One run or two.
        fill: Lays media of the groups beside the page, and adds to the groups where they lie.
    """
    runs = [replace(run, number=place) for place, run in enumerate(runs)]
    found = [_tried(lambda of, run=run: read_rollouts(run), [run], "rollouts") or [] for run in runs]
    sampled = [group for place, stages in enumerate(found) for group in browser_groups(place, stages)]
    if fill is not None:
        fill(sampled)
    judged = [_tried(lambda of, run=run: evaluated_groups(run), [run], "Evaluated answers") or [] for run in runs]
    groups = [*(group.values for group in sampled), *chain.from_iterable(judged)]
    answers, num_shown = packed(groups)
    curves: list[dict[str, Any]] = []
    builders: list[tuple[str, str, Callable[[slice], Html | None]]] = [
        ("glance", "In short", lambda of: glance_section(runs[of])),
        ("scores", "What each stage brought", lambda of: stages_section(runs[of])),
        ("against", "The second run against the first", lambda of: against_section(runs[of])),
        ("curriculum", "Curriculum", lambda of: curriculum_section(runs[of])),
        ("curves", "Learning curves", lambda of: curves_section(runs[of], curves)),
        ("modalities", "Whether the model looks and listens", lambda of: modality_section(runs[of])),
        ("breakdown", "Under the scores", lambda of: breakdown_section(runs[of])),
        ("confusion", "Confusion matrices", lambda of: confusion_section(runs[of])),
        ("costs", "Time and tokens", lambda of: costs_section(runs[of])),
        ("routing", "Where samples went", lambda of: routing_section(runs[of])),
        ("answers", "Rewards and lengths of sampled answers", lambda of: distribution_section(runs[of], found[of])),
        ("rollouts", "Answers", lambda of: _browser(runs[of], found[of], len(groups), num_shown)),
    ]
    built = [(key, title, _tried(make, runs, title)) for key, title, make in builders]
    shown = [(key, title, content) for key, title, content in built if content is not None]
    names = " and ".join(run.name for run in runs)
    body = joined(
        [
            tag("header", tag("h1", names), *(_facts(run) for run in runs)),
            tag("nav", *(tag("a", title, href=f"#{key}") for key, title, _ in shown), aria_label="Sections"),
            tag("main", _missing(runs), *(_section(key, title, content) for key, title, content in shown)),
            data({"runs": [visible(run.name) for run in runs], "curves": curves}, "report-data"),
            tag("script", Html(answers), type="text/plain", id="report-answers"),
        ]
    )
    return document(names, body, SCRIPTS, STYLES, with_media=fill is not None)


def _tried(make: Callable[[slice], Any], runs: Sequence[RunFiles], what: str) -> Any:
    """The result of a builder for all runs; a file of a shape that no version writes costs its run the section.

    If the builder also fails for a run alone, the page says so of that run and shows the section for the other one. If
    it fails for none alone, the page says so of all.
    """
    try:
        return make(slice(None))
    except FAULTS as error:
        alone = [_fault(make, slice(place, place + 1)) for place in range(len(runs))]
        for run, fault in zip(runs, alone if any(alone) else [error] * len(runs), strict=True):
            if fault is not None:
                run.missing.append(f"{what}: cannot be shown ({type(fault).__name__}: {fault}).")
    whole = [place for place, fault in enumerate(alone) if fault is None]
    if len(whole) == len(runs) or not whole:
        return None
    content = make(slice(whole[0], whole[0] + 1))
    return None if content is None else joined([tag("p", f"Of {runs[whole[0]].name} alone.", class_="note"), content])


def _fault(make: Callable[[slice], Any], of: slice) -> Exception | None:
    try:
        make(of)
    except FAULTS as error:
        return error
    return None


def _section(key: str, title: str, content: Html) -> Html:
    return tag("section", tag("h2", title), content, id=key, class_="part")


def _missing(runs: Sequence[RunFiles]) -> Html:
    found = {run.name: [*dict.fromkeys(run.missing), *doubts_of(run)] for run in runs}
    notes = [f"{name}: {note}" if len(runs) > 1 else note for name, each in found.items() for note in each]
    if not notes:
        return Html("")
    listed = tag("ul", *(tag("li", note) for note in notes))
    return tag("section", tag("h2", "What is missing or in doubt"), listed, id="missing", class_="part")


def _facts(run: RunFiles) -> Html:
    contents = [stage.finished.content for stage in run.stages if stage.finished is not None]
    seeds = sorted({str(content["seed"]) for content in contents if "seed" in content})
    sets = {
        f"{key.removeprefix('data.')} {str(value)[:12]}"
        for content in contents
        for key, value in content.items()
        if key.startswith("data.") and key.endswith((".jsonl", ".json", ".parquet", ".csv")) and isinstance(value, str)
    }
    settings = run.settings
    facts = {
        "Run": run.name,
        "Status": run.status,
        "Folder": run.folder.name if run.folder.name else str(run.folder),
        "Commit": _each(start.get("commit") for start in run.starts),
        "Versions": _each(
            ", ".join(f"{name} {number}" for name, number in start["versions"].items()) for start in run.starts
        ),
        "Started": f"{len(run.starts)} times" if len(run.starts) > 1 else "once" if run.starts else "not recorded",
        "Seed": ", ".join(seeds) or str(settings.get("seed", "unknown")),
        "Model": settings.get("model", {}).get("checkpoint") or "unknown",
        "Data": settings.get("data", {}).get("root") or "unknown",
        "Data sets and the beginning of their SHA-256": ", ".join(sorted(sets)) or "not recorded",
        "Tracked as": run.manifest.tracking_id or "not tracked",
    }
    return tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in facts.items()), class_="facts")


def _each(values: Iterable[object]) -> str:
    """Different values of all starts, in their order."""
    return ", then ".join(dict.fromkeys(str(value) for value in values if value)) or "not recorded"


def _browser(runs: Sequence[RunFiles], found: Sequence[Sequence[Any]], total: int, num_shown: int) -> Html:
    if not total:
        return tag("p", "The run has left no answers that can be read.", class_="missing")
    counts = [
        f"{each.stage}{f' of {run.name}' if len(runs) > 1 else ''}: {len(each.rows):,} of the {each.total:,} groups in "
        "its tables were read."
        for run, stages in zip(runs, found, strict=True)
        for each in stages
        if len(each.rows) < each.total
    ]
    shown = "All" if num_shown == total else f"{num_shown:,} of"
    fewer = "" if num_shown == total else ", evenly chosen"
    return joined(
        [
            tag("p", " ".join([f"{shown} {total:,} groups are here{fewer}.", *counts]), class_="note"),
            tag(
                "div",
                tag("p", "The browser of answers needs its script, which did not run.", class_="note"),
                id="browser",
            ),
            folded("Terms used here", *(tag("p", each) for each in TERMS)),
        ]
    )
