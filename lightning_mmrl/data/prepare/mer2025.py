"""Reads MER2025: one of six labels (track 1), or sets of words with descriptions (tracks 2 and 3)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lightning_mmrl.data.formats.csv_clips import text_problem
from lightning_mmrl.data.formats.turns import quoted
from lightning_mmrl.data.prepare.lists import Lists, read_table
from lightning_mmrl.data.prepare.rows import AUDIO_SUFFIXES, VIDEO_SUFFIXES, MediaFiles, Originals, PrepareRequest, Row
from lightning_mmrl.data.schema import Problem
from lightning_mmrl.prompts.template import control_token, media_tags
from lightning_mmrl.prompts.wheel import Wheel
from lightning_mmrl.prompts.word_lists import listed_words

OPEN_QUESTION = "Which emotions?"
SUBTITLES = ("english", "chinese")


def read(request: PrepareRequest) -> Originals:
    """Reads the tables of one subset; the sound is the clip's own or, if it has none, audio/NAME.wav.

    Raises:
        DataError: A table is missing or has other columns, or several subsets are asked for.
    """
    subset, labels = request.subset
    videos = MediaFiles(request.root, request.clips, VIDEO_SUFFIXES, lambda path: path.stem)
    sounds = MediaFiles(request.root, request.clips, AUDIO_SUFFIXES, lambda path: path.stem)
    lists = Lists(request.root)
    problems = [*videos.problems, *sounds.problems]
    subtitles = _column(lists.find("subtitle_chieng.csv"), SUBTITLES, problems)
    open_set = not labels
    reasons: Mapping[str, Mapping[str, str]] = {}
    if open_set:
        table, column = lists.need(f"track2_train_{subset}.csv"), "openset"
        reasons = _column(lists.find(f"track3_train_{subset}.csv"), ("reason",), problems)
    else:
        table, column = lists.need("track1_train_disdim.csv"), "discrete"
    of_user = request.options["wheel"]
    wheel = (Wheel.built_in() if of_user is None else Wheel.read(of_user)) if open_set else None
    rows, unjudged = [], 0
    for line, cells in read_table(table, ("name", column), problems):
        name = cells["name"]
        label = ", ".join(_words(cells[column])) if open_set else labels.get(cells[column].casefold())
        row = Row(
            place=(str(table), line),
            name=name,
            label=label or None,
            clip=videos.paths.get(name),
            sound=sounds.paths.get(name),
            reasoning=reasons.get(name, {}).get("reason") or None,
            preface=_preface(request.options["subtitles"], subtitles.get(name, {})),
            counted_as=(subset, f"{subset} {label}") if labels else (subset,),
            extras=_extras(subtitles.get(name, {}), cells),
        )
        problem = _fault(row, cells[column], labels)
        if problem is not None:
            problems.append(row.problem(*problem))
            continue
        if wheel is not None and not any(map(wheel.groups_of, listed_words(str(row.label), wheel))):
            unjudged += 1
            row = replace(row, label=None)
        rows.append(row)
    notes = [f"clips of which the wheel has no word: {unjudged}; --wheel names a larger one"] if unjudged else []
    notes += [] if subtitles else ["no subtitle_chieng.csv: no line has a subtitle"]
    return Originals(
        parts={"": {"train": rows}},
        problems=problems,
        labels=None if open_set else request.labels,
        counted={"clips in the folder": len(videos.paths)},
        notes=notes,
        **({"question": OPEN_QUESTION} if open_set else {}),
    )


def _fault(row: Row, cell: str, labels: Mapping[str, str]) -> tuple[str, str] | None:
    """The sort of fault of a row, and the reason."""
    if row.label is None:
        wanted = f"one of {', '.join(labels)}" if labels else "a list of words, such as ['happy', 'relieved']"
        return "label", f"the label of {row.name} is {quoted(cell)}; it must be {wanted}"
    if control_token(row.preface) or media_tags(row.preface):
        return "control token", f"the subtitle of {row.name} holds a tag of the model; correct it, or --subtitles none"
    return text_problem(row.source)


def _column(path: Path | None, columns: Sequence[str], problems: list[Problem]) -> dict[str, dict[str, str]]:
    """The cells of some columns of a table by the clip's name; nothing without the table."""
    if path is None:
        return {}
    return {
        cells["name"]: {name: cells[name] for name in columns if cells[name]}
        for _, cells in read_table(path, ("name", *columns), problems)
    }


def _words(text: str) -> list[str]:
    """The words of a cell such as "['happy', 'relieved']" or "[happy, relieved]"."""
    return [word for word in (part.strip(" '\"") for part in text.strip().strip("[]").split(",")) if word]


def _preface(chosen: str | None, subtitles: Mapping[str, str]) -> str:
    text = subtitles.get(chosen or "none")
    return f"The subtitle of this clip is: {text}\n" if text else ""


def _extras(subtitles: Mapping[str, str], cells: Mapping[str, str]) -> dict[str, str]:
    named = {"english": "subtitle", "chinese": "subtitle_chinese"}
    return {
        **{named[name]: text for name, text in subtitles.items()},
        **{k: cells[k] for k in ("valence",) if cells.get(k)},
    }
