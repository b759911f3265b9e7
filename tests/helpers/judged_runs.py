"""Judged answers, and the files of them in a run folder, for tests of campaigns."""

from pathlib import Path

from lightning_mmrl.evaluation.records import Judgement


def judged(sample_id: str, right: bool) -> Judgement:
    """A scored answer to a question of mathematics or multiple choice."""
    return Judgement(
        sample_id=sample_id,
        speaker=None,
        truth="3",
        predicted="3",
        valid_format=True,
        text="3",
        scores={"accuracy": float(right), "unparseable": 0.0, "unjudged": 0.0},
    )


def write_answers(folder: Path, place: str, answers: list[Judgement], name: str = "test") -> None:
    """Writes judged answers of `place`, such as `base` or `stages/02-reason`, where a run keeps them."""
    file = folder / place / "evaluation" / f"{name}.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(each.to_json() + "\n" for each in answers))
