"""The judged answers of evaluations: read once for all sections, and as groups of the browser."""

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_mmrl.errors import DataError
from lightning_mmrl.evaluation.records import Judgement
from lightning_mmrl.report.markup import rounded, visible
from lightning_mmrl.report.rollouts import MOST_READ, cut, spread
from lightning_mmrl.report.run_files import Evaluated, RunFiles

MOST_ANSWER_BYTES = 64 * 2**20
"""Size of a file of predictions; a larger one is not read."""


def read_answers(each: Evaluated, run: RunFiles) -> Sequence[Judgement] | None:
    """The judged answers of a stage to a set; None, with a note in `run.missing`, if they cannot be read."""
    path = each.folder / f"{each.name}.jsonl"
    if path not in run.answers:
        run.answers[path] = _read(each, run.missing)
    return run.answers[path]


def _read(each: Evaluated, missing: list[str]) -> Sequence[Judgement] | None:
    path = each.folder / f"{each.name}.jsonl"
    try:
        if path.stat().st_size > MOST_ANSWER_BYTES:
            missing.append(f"{path} is too large for this page ({path.stat().st_size:,} bytes).")
            return None
        with path.open(encoding="utf-8") as lines:
            found = [_checked(Judgement.from_json(line)) for line in lines if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        missing.append(f"{path} cannot be read ({type(error).__name__}).")
        return None
    except DataError as error:
        missing.append(f"{path}: {error}.")
        return None
    if len(found) < each.num_samples:
        missing.append(f"{path} has {len(found):,} of {each.num_samples:,} answers.")
    return found


def _checked(one: Judgement) -> Judgement:
    texts = (one.sample_id, one.truth, one.text, *(each for each in (one.speaker, one.predicted) if each is not None))
    if not all(isinstance(each, str) for each in texts) or not isinstance(one.scores, Mapping):
        raise DataError(f"a prediction has values of other types (sample {one.sample_id!r}); evaluate again")
    return one


def right(one: Judgement, headline: str) -> bool:
    """Whether an answer is right: its score by the headline metric is 1, or without such a score it is the truth."""
    return one.scores[headline] >= 1 if headline in one.scores else one.predicted == one.truth


def evaluated_groups(run: RunFiles) -> list[dict[str, Any]]:
    """One group for each sample of each set of a run: the answers of all stages, in their order."""
    groups: dict[tuple[str, str], dict[str, Any]] = {}
    for each in run.evaluated:
        answers = read_answers(each, run) or ()
        for place in spread(len(answers), MOST_READ):
            one = answers[place]
            group = groups.setdefault((each.name, one.sample_id), _group(run.number, each.name, one))
            group["responses"].append(_response(each, one))
    for group in groups.values():
        group["rate"] = sum(each["right"] for each in group["responses"]) / len(group["responses"])
    return list(groups.values())


def _group(number: int, name: str, one: Judgement) -> dict[str, Any]:
    return {
        "run": number,
        "kind": "evaluated",
        "stage": None,
        "table": name,
        "id": visible(one.sample_id),
        "label": cut(one.truth),
        "turns": [],
        "media": [],
        "mean": None,
        "responses": [],
    }


def _response(each: Evaluated, one: Judgement) -> dict[str, Any]:
    return {
        "stage": each.stage,
        "text": cut(one.text),
        "right": right(one, each.headline),
        "predicted": None if one.predicted is None else cut(one.predicted),
        "components": {visible(name): rounded(value) for name, value in one.scores.items()},
    }
