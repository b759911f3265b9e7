"""Each judge of answers against verdicts that a reader gave without having seen it.

    python tools/truth/judge_verdicts.py                       the share that is right, of every file in tests/verdicts
    python tools/truth/judge_verdicts.py --judge math --show   and every disagreement of one judge
    python tools/truth/judge_verdicts.py --folder second       the verdicts of another reader, or of your own folder

Verdicts are read from NAME.jsonl in tests/verdicts; the README.md there says who wrote them, by which rules. The odd
lines are for development, the even ones are looked at afterwards: both shares are printed. A solution that the judge
cannot read is a disagreement; an answer on which math-verify runs out of time is not paid. Exits with 1 if a judge is
right in fewer than 99 % of its cases.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_mmrl.errors import MmrlError
from lightning_mmrl.prompts.labels import DFEW7, MAFW11, RAVDESS8
from lightning_mmrl.protocols.plain import RewardFn
from lightning_mmrl.rewards.choice_answer import ChoiceAnswer
from lightning_mmrl.rewards.emotion_set import EmotionSet
from lightning_mmrl.rewards.label_answer import LabelAnswer
from lightning_mmrl.rewards.math_answer import MathAnswer
from lightning_mmrl.types.records import Completion, Sample

VERDICTS = Path(__file__).parents[2] / "tests" / "verdicts"
NAMES = ("choice", "math", "label", "emotion_set")
NEEDED = 0.99
OUT_OF_TIME = "needed more than"
"""Part of math-verify's error where an answer took too long: invalid, and not paid."""
LABELS: Mapping[str, tuple[str, ...]] = {
    "dfew7": DFEW7,
    "mafw11": MAFW11,
    "ravdess8": RAVDESS8,
    "numbers": ("1", "2", "3", "4", "-3"),
    "chinese": ("\u5f00\u5fc3", "\u60b2\u4f24", "\u751f\u6c14", "\u5e73\u9759"),
    "places": ("new york", "san francisco", "rock 'n' roll", "none", "c++"),
}
"""The label sets that the file of labels names."""
JUDGES: Mapping[str, RewardFn] = {"choice": ChoiceAnswer(), "math": MathAnswer(), "emotion_set": EmotionSet()}
SHARES = {"full": (1.0, 1.0), "part": (1e-9, 1.0 - 1e-9), "none": (0.0, 0.0), "notfull": (0.0, 1.0 - 1e-9)}
"""The least and the most that a verdict on a set of emotions leaves to the reward."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One line of a file of verdicts; `labels` names the label set of a label's case."""

    judge: str
    line: int
    solution: str
    answer: str
    verdict: bool | str
    note: str
    labels: str | None

    @property
    def held_out(self) -> bool:
        """True for the lines that are not for development."""
        return self.line % 2 == 0


def read_cases(name: str, folder: Path = VERDICTS) -> list[Case]:
    """All cases of one judge, in the order of the file."""
    lines = (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [_case(name, number, json.loads(line)) for number, line in enumerate(lines, 1)]


def _case(name: str, number: int, row: dict[str, Any]) -> Case:
    texts = {key: row[key] for key in ("solution", "answer", "verdict", "note")}
    return Case(judge=name, line=number, labels=row.get("labels"), **texts)


def reward_of(case: Case) -> float | str:
    """The reward that the judge pays, or why it cannot judge."""
    judge = JUDGES[case.judge] if case.labels is None else LabelAnswer(labels=LABELS[case.labels])
    text = f"<think>Lowered brows.</think><answer>{case.answer}</answer>"
    sample = Sample(id=f"{case.judge}:{case.line}", messages=(), solution=case.solution)
    try:
        value = judge(sample, Completion(text=text, num_tokens=len(text) // 4, truncated=False))
    except MmrlError as error:
        return f"invalid: {error}"
    return 0.0 if value is None else value


def agrees(verdict: bool | str, reward: float | str) -> bool:
    """True if the reward is what the verdict says."""
    if isinstance(reward, str):
        return verdict is False and OUT_OF_TIME in reward
    low, high = SHARES[verdict] if isinstance(verdict, str) else (float(verdict), float(verdict))
    return low <= reward <= high


def disagreements(cases: list[Case]) -> Iterator[tuple[Case, float | str]]:
    """The cases that the judge judges otherwise, with its reward."""
    for case in cases:
        reward = reward_of(case)
        if not agrees(case.verdict, reward):
            yield case, reward


def share(cases: list[Case], wrong: list[Case]) -> str:
    """The share that is right, with its counts."""
    right = len(cases) - len(wrong)
    return f"{right}/{len(cases)} = {100 * right / len(cases):.1f} %"


def report(name: str, show: str | None, folder: Path = VERDICTS) -> bool:
    """Prints the score of one judge; True if it suffices."""
    cases = read_cases(name, folder)
    found = list(disagreements(cases))
    wrong = [case for case, _ in found]
    halves = [
        (
            half,
            share([case for case in cases if case.held_out == held], [case for case in wrong if case.held_out == held]),
        )
        for half, held in (("odd", False), ("even", True))
    ]
    print(f"{name:12} {share(cases, wrong):18}", *(f"{half} lines {part:18}" for half, part in halves))
    for case, reward in found:
        if show == "all" or (show is not None and case.held_out == (show == "even")):
            print(f"  {name}.jsonl:{case.line}: {case.solution!a} {case.answer!a}", end="")
            print(f" wanted {case.verdict}, got {reward} ({case.note})")
    return len(wrong) <= (1 - NEEDED) * len(cases)


def main() -> int:
    """Scores the judges and returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judge", choices=NAMES, action="append", help="one judge; all without it")
    parser.add_argument("--show", nargs="?", const="all", choices=("all", "odd", "even"), help="print disagreements")
    parser.add_argument("--folder", type=Path, default=VERDICTS, help="of the files, below tests/verdicts if relative")
    options = parser.parse_args()
    return 0 if all([report(name, options.show, VERDICTS / options.folder) for name in options.judge or NAMES]) else 1


if __name__ == "__main__":
    sys.exit(main())
