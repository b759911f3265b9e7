"""Each judge of answers against gold/answer pairs in the shapes of published sets, with verdicts of a reader.

    python tools/truth/judge_pairs.py                         the share that is right, of every file with verdicts
    python tools/truth/judge_pairs.py --judge math --show     and every disagreement of one judge

Pairs are read from tests/cases/judges/pairs_NAME.jsonl; the README.md there has the keys and the rules for readers. A
file that waits for a reader is called pairs_NAME.unlabeled.jsonl: it is counted, named and skipped. Pairs whose verdict
is null were left out by the reader. A disagreement on purpose is named with its reason, and counts as any other. Exits
with 1 if a judge is right in fewer than 99 % of its pairs.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from judge_verdicts import NEEDED, OUT_OF_TIME

from lightning_mmrl.errors import MmrlError
from lightning_mmrl.protocols.plain import RewardFn
from lightning_mmrl.rewards.choice_answer import ChoiceAnswer
from lightning_mmrl.rewards.math_answer import MathAnswer
from lightning_mmrl.rewards.mixed_answer import MixedAnswer
from lightning_mmrl.types.records import Completion, Message, Sample

PAIRS = Path(__file__).parents[2] / "tests" / "cases" / "judges"
LABELED, WAITING = "pairs_{}.jsonl", "pairs_{}.unlabeled.jsonl"
JUDGES: Mapping[str, Callable[[Mapping[str, Any]], RewardFn]] = {
    "math": lambda row: MathAnswer(),
    "choice": lambda row: ChoiceAnswer(),
    "mixed": lambda row: MixedAnswer(),
    "reading": lambda row: MixedAnswer(reading=row["reading"]),
    "prose": lambda row: MathAnswer(reading="prose"),
}
"""Maps each file to the judge of one of its rows."""
EXCEPTIONS: Mapping[str, Mapping[str, tuple[int, ...]]] = {
    "reading": {
        "`tag_or_text` is documented to read the text where a model wrote no tag": (15, 157, 224, 250, 275),
        "a box that is never closed is no answer, and the reader left out all others of its kind": (92,),
    },
    "prose": {"`12 dollars.00` is no number; the pair was written so by mistake": (335,)},
}
"""Lines on which a judge disagrees on purpose, by their reasons; they count as disagreements all the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One line of a file of pairs; `verdict` is None if no reader has given one."""

    name: str
    line: int
    row: Mapping[str, Any]

    @property
    def verdict(self) -> bool | None:
        """Whether the answer is right, as the reader says."""
        return self.row.get("verdict")

    @property
    def text(self) -> str:
        """The whole completion, or the answer in the tags of a good format."""
        return self.row.get("completion", f"<think>So it is.</think><answer>{self.row.get('answer')}</answer>")

    @property
    def sample(self) -> Sample:
        """The sample that is answered."""
        extras = {"options": self.row["options"]} if "options" in self.row else {}
        messages = (Message(role="user", content=self.row["question"]),)
        return Sample(id=f"{self.name}:{self.line}", messages=messages, solution=self.row["gold"], extras=extras)

    def reward(self) -> float | str:
        """The reward that the judge pays, or why it cannot judge."""
        judge = JUDGES[self.name](self.row)
        try:
            value = judge(self.sample, Completion(text=self.text, num_tokens=len(self.text), truncated=False))
        except MmrlError as error:
            return f"invalid: {error}"
        return 0.0 if value is None else value

    def agrees(self, reward: float | str) -> bool:
        """True if the reward is what the verdict says; an answer that takes too long is not paid."""
        if isinstance(reward, str):
            return self.verdict is False and OUT_OF_TIME in reward
        return reward == float(bool(self.verdict))


def read_pairs(path: Path, name: str) -> list[Pair]:
    """All pairs of a file, in its order."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [Pair(name=name, line=number, row=json.loads(line)) for number, line in enumerate(lines, 1)]


def disagreements(pairs: list[Pair]) -> list[tuple[Pair, float | str]]:
    """The pairs with a verdict that the judge judges otherwise, with its reward."""
    found = [(pair, pair.reward()) for pair in pairs if pair.verdict is not None]
    return [(pair, reward) for pair, reward in found if not pair.agrees(reward)]


def report(name: str, *, show: bool = False, folder: Path = PAIRS) -> bool:
    """Prints the score of one judge, or that its pairs wait for a reader; False if the score does not suffice."""
    labeled, waiting = folder / LABELED.format(name), folder / WAITING.format(name)
    if waiting.exists():
        print(
            f"{name:8} SKIPPED: {len(read_pairs(waiting, name))} pairs in {waiting.name} wait for a reader's verdicts"
        )
    if not labeled.exists():
        return True
    pairs = read_pairs(labeled, name)
    judged, wrong = [pair for pair in pairs if pair.verdict is not None], disagreements(pairs)
    right = len(judged) - len(wrong)
    print(f"{name:8} {right}/{len(judged)} = {100 * right / max(1, len(judged)):.1f} %", end="")
    print(f" ({len(pairs) - len(judged)} left out by the reader)")
    shapes, faults = Counter(pair.row["shape"] for pair in judged), Counter(pair.row["shape"] for pair, _ in wrong)
    print("  ", ", ".join(f"{shape} {shapes[shape] - faults[shape]}/{shapes[shape]}" for shape in sorted(shapes)))
    faulty = {pair.line for pair, _ in wrong} if folder == PAIRS else set[int]()
    for reason, lines in EXCEPTIONS.get(name, {}).items():
        if found := sorted(faulty.intersection(lines)):
            print(f"   on purpose, lines {', '.join(map(str, found))}: {reason}")
    for pair, reward in wrong if show else ():
        print(f"  {labeled.name}:{pair.line}: {pair.row['gold']!a} {pair.text!a} wanted {pair.verdict}, got {reward}")
    return len(wrong) <= (1 - NEEDED) * len(judged)


def main() -> int:
    """Scores the judges and returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judge", choices=tuple(JUDGES), action="append", help="one judge; all without it")
    parser.add_argument("--show", action="store_true", help="print disagreements")
    parser.add_argument("--folder", type=Path, default=PAIRS, help="of the files, for pairs of your own")
    options = parser.parse_args()
    names = options.judge or JUDGES
    return 0 if all([report(name, show=options.show, folder=options.folder) for name in names]) else 1


if __name__ == "__main__":
    sys.exit(main())
