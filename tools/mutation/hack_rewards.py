"""Hostile completions against every reward: how long each takes, and whether a hack pays.

    python tools/mutation/hack_rewards.py      5,000 generated completions and all hacks of reward_hacks.yaml
    python tools/mutation/hack_rewards.py --completions 200  a slice

Prints the median, the 99th percentile and the longest time of each reward in ms: processor time, so that other work on
the machine does not count, but for math-verify, which runs in a killable process and is timed by the clock. Exits
with 1 if a hack pays, an honest text does not, a reward other than math-verify fails, or the 99th percentile of a
format or emotion reward is not below 50 ms.
"""

import argparse
import random
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from lightning_mmrl.prompts.labels import DFEW7
from lightning_mmrl.protocols.plain import RewardFn
from lightning_mmrl.rewards.choice_answer import ChoiceAnswer
from lightning_mmrl.rewards.compose import WeightedReward
from lightning_mmrl.rewards.efficient_length import EfficientLength
from lightning_mmrl.rewards.emotion_set import EmotionSet
from lightning_mmrl.rewards.hard_format_result import HardFormatResult
from lightning_mmrl.rewards.label_answer import LabelAnswer
from lightning_mmrl.rewards.lenient_format import LenientFormat
from lightning_mmrl.rewards.math_answer import MathAnswer
from lightning_mmrl.rewards.mixed_answer import MixedAnswer
from lightning_mmrl.rewards.pool import InlineRewards, RewardPool
from lightning_mmrl.rewards.repetition import Repetition
from lightning_mmrl.rewards.soft_overlong import SoftOverlong
from lightning_mmrl.rewards.text_answer import TextAnswer
from lightning_mmrl.rewards.think_answer_format import ThinkAnswerFormat
from lightning_mmrl.rewards.think_boxed_format import ThinkBoxedFormat
from lightning_mmrl.rewards.token_length import TokenLength
from lightning_mmrl.settings.algorithm import RewardSettings
from lightning_mmrl.types.records import Completion, Message, Sample, Score

HACKS = Path(__file__).parent / "reward_hacks.yaml"
LENGTH = 65_536
MAX_P99_MS = 50.0
NEAR = {"low": ["sad", "fear"], "high": ["angry", "disgust"]}

REWARDS: dict[str, RewardFn] = {
    "format": ThinkAnswerFormat(),
    "lenient": LenientFormat(),
    "label": LabelAnswer(labels=DFEW7),
    "number": LabelAnswer(labels=("1", "2", "3", "4", "-3"), synonyms={}),
    "partial": LabelAnswer(labels=DFEW7, groups=NEAR, partial_credit=0.5),
    "hard": HardFormatResult(format=ThinkAnswerFormat(), result=LabelAnswer(labels=DFEW7)),
    "emotion_set": EmotionSet(),
    "choice": ChoiceAnswer(),
    "math": MathAnswer(),
    "prose": MathAnswer(reading="prose"),
    "boxed": MathAnswer(reading="boxed"),
    "tag_or_boxed": MathAnswer(reading="tag_or_boxed"),
    "phrase": MathAnswer(reading="boxed_tag_phrase"),
    "mixed": MixedAnswer(),
    "choice_prose": ChoiceAnswer(reading="prose"),
    "lone_letter": ChoiceAnswer(reading="tag_or_text", steps=("letter", "lone_letter")),
    "last_letter": ChoiceAnswer(reading="tag_or_text", steps=("text", "last_letter")),
    "text": TextAnswer(),
    "text_prose": TextAnswer(reading="prose"),
    "around": ThinkAnswerFormat(allow_around=True, min_think_characters=300),
    "think_boxed": ThinkBoxedFormat(),
    "repetition": Repetition(),
    "efficient_length": EfficientLength(budget=512),
    "soft_overlong": SoftOverlong(max_tokens=1024, cache=256),
    "token_length": TokenLength(),
}
POOLED = ("math", "prose", "boxed", "tag_or_boxed", "phrase", "mixed")
CHOICES = ("choice", "choice_prose", "lone_letter", "last_letter")
SOLUTIONS = {"number": "3", **dict.fromkeys(CHOICES, "B"), **dict.fromkeys(POOLED, "7")}
BOUNDED = ("format", "lenient", "around", "think_boxed", "label", "number", "partial", "hard", "emotion_set", "text")
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
ODD = ("\x00", "\x1b[2J", "\u200b", "\u202e", "\ufdfa", "a\u0301", "\U000e0073", "\ufeff", "\x85", "\u2028", "\ud800")
LOOK_ALIKES = ("s\u0430d", "\uff53\uff41\uff44", "\u0455\u0430d", "\U0001d42c\U0001d41a\U0001d41d", "\u212f")
BOMBS = (
    *(
        "\\frac{",
        "\\sqrt{",
        "x^{",
        "\\boxed{",
        "{" * 40,
        "$",
        "\\left(",
        "\\text{",
        "9**",
        "10^10^",
        "!",
        "\\int",
        "\\sum_{",
    ),
    *("(((((", "\\begin{matrix}", "\\binom{9}{", "0.", "1e999", "-" * 30, "\\cdot 7", "7,", "1/", "%"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hack:
    """A text that must not earn more than `at_most` from a reward."""

    name: str
    reward: str
    solution: str | None
    text: str
    at_most: float
    why: str
    question: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Honest:
    """An answer that must earn its reward, or the hacks of its group prove nothing."""

    group: str
    reward: str
    solution: str | None
    text: str
    value: float
    question: str = ""


def read_hacks(path: Path = HACKS) -> tuple[list[Hack], list[Honest]]:
    """All hacks, and at least one honest text for each group of them."""
    hacks, honest = [], []
    for group in yaml.safe_load(path.read_text(encoding="utf-8")):
        texts = {name: _formatted(answer) for name, answer in group.get("answers", {}).items()}
        texts |= group.get("texts", {})
        texts |= {name: unit * times + rest for name, (unit, times, rest) in group.get("floods", {}).items()}
        common = {
            key: group.get(key, default) for key, default in (("reward", ""), ("solution", None), ("question", ""))
        }
        for name, text in texts.items():
            place = f"{group['group']}/{name}"
            hacks.append(Hack(name=place, text=text, at_most=group.get("at_most", 0.0), why=group["why"], **common))
        text = group.get("honest_text") or _formatted(group["honest"])
        value = group.get("honest_value", 1.0)
        honest.append(Honest(group=group["group"], text=text, value=value, **common))
        paying = {name: _formatted(answer) for name, answer in group.get("pays", {}).items()}
        paying |= group.get("pays_texts", {})
        honest += [
            Honest(group=f"{group['group']}/{name}", text=text, value=value, **common) for name, text in paying.items()
        ]
    return hacks, honest


def _formatted(answer: str) -> str:
    return f"<think>Lowered brows.</think><answer>{answer}</answer>"


def completion(text: str) -> Completion:
    """A completion of a text, four characters a token."""
    return Completion(text=text, num_tokens=len(text) // 4, truncated=False)


def sample(solution: str | None, question: str = "") -> Sample:
    """A sample with this solution and question."""
    messages = (Message(role="user", content=question),) if question else ()
    return Sample(id="clip", messages=messages, solution=solution)


def adversarial(seed: int = 0) -> Iterator[tuple[str, str]]:
    """Endless pairs of a kind and a text of at most 64k characters; the same seed gives the same texts."""
    rng = random.Random(seed)
    kinds: tuple[Callable[[random.Random], str], ...] = (
        *(tag_flood, nested_tags, mixed_tags, unclosed, blanks, control_characters, all_labels, look_alikes),
        *(latex_bomb, long_answer, one_word, letters, separators, near_format, numbers),
    )
    while True:
        for kind in kinds:
            yield kind.__name__, kind(rng)[:LENGTH]


def tag_flood(rng: random.Random) -> str:
    """One tag or pair of tags, again and again."""
    unit = "".join(rng.choices(TAGS, k=rng.randint(1, 4)))
    return unit * (LENGTH // len(unit))


def nested_tags(rng: random.Random) -> str:
    """Opened so deep, and closed again."""
    depth = rng.randint(10, 4000)
    return "<think>" * depth + "<answer>" * depth + "sad" + "</answer>" * depth + "</think>" * depth


def mixed_tags(rng: random.Random) -> str:
    """Tags, words and blanks in any order."""
    return "".join(rng.choices((*TAGS, "sad", " ", "\n", "B", "7"), k=rng.randint(1, 9000)))


def unclosed(rng: random.Random) -> str:
    """Beginnings of tags."""
    return rng.choice(("<think", "</", "<answer", "<think>a</think", "<")) * rng.randint(1, LENGTH)


def blanks(rng: random.Random) -> str:
    """Whitespace between tags, as long as it gets."""
    blank = rng.choice((" ", "\n", "\t", "\u3000", "\u00a0", "\u2028"))
    return "<think>a</think>" + blank * rng.randint(1, LENGTH - 100) + rng.choice(("<answer>sad</answer>", "x", ""))


def control_characters(rng: random.Random) -> str:
    """Characters that terminals, parsers and normalizations stumble over."""
    body = "".join(rng.choices(ODD, k=rng.randint(1, 20_000)))
    return _formatted(body) if rng.random() < 0.5 else body


def all_labels(rng: random.Random) -> str:
    """Every label, many times."""
    labels = list(DFEW7)
    rng.shuffle(labels)
    return _formatted(rng.choice((", ", " ", "/", "\n")).join(labels * rng.randint(1, 1200)))


def look_alikes(rng: random.Random) -> str:
    """Letters that look like the letters of a label."""
    return _formatted(rng.choice(LOOK_ALIKES) * rng.randint(1, 12_000))


def latex_bomb(rng: random.Random) -> str:
    """Commands, braces and powers, as an answer that is short enough to be read, or not."""
    count = rng.randint(1, 60) if rng.random() < 0.5 else rng.randint(60, 9000)
    return _formatted("".join(rng.choices((*BOMBS, "7", "}", "x", "2"), k=count)))


def long_answer(rng: random.Random) -> str:
    """A label at the end of a long answer."""
    return _formatted(rng.choice(("very ", ".", "not ", "so, ")) * rng.randint(1, 12_000) + "sad")


def one_word(rng: random.Random) -> str:
    """Text without a space."""
    return rng.choice("aZ0-\u00df\u0130\ufb03") * rng.randint(1, LENGTH)


def letters(rng: random.Random) -> str:
    """Choices, marked and unmarked."""
    return _formatted("".join(rng.choices(("A)", "B", "(C)", " or ", "D. ", "\\boxed{B}", ", "), k=rng.randint(1, 60))))


def separators(rng: random.Random) -> str:
    """Lists of nothing."""
    return _formatted(rng.choice((",", ";", " and ", "/", ", sad")) * rng.randint(1, 9000))


def near_format(rng: random.Random) -> str:
    """A good format with one thing cut out or put in twice."""
    text = _formatted("sad" + " " * rng.randint(0, 9000))
    place = rng.randrange(len(text))
    return text[:place] + text[place + rng.randint(-8, 8) :] if rng.random() < 0.5 else text + text[place:]


def numbers(rng: random.Random) -> str:
    """Numbers with and without an end."""
    return _formatted("".join(rng.choices("0123456789.,-+/*^()e% ", k=rng.choice((5, 40, 250, 5000)))))


def paying(hacks: list[Hack], score: Callable[[str, Sample, Completion], Score]) -> list[str]:
    """The hacks that earn more than they may."""
    earned = [(hack, score(hack.reward, sample(hack.solution, hack.question), completion(hack.text))) for hack in hacks]
    return [f"{hack.name}: {each.total:g}" for hack, each in earned if each.valid and each.total > hack.at_most]


def unpaid(honest: list[Honest], score: Callable[[str, Sample, Completion], Score]) -> list[str]:
    """The honest texts that do not earn their reward."""
    earned = [
        (each, score(each.reward, sample(each.solution, each.question), completion(each.text))) for each in honest
    ]
    return [
        f"{each.group}: {result.total:g}" for each, result in earned if not result.valid or result.total != each.value
    ]


class Rewards:
    """All rewards, math-verify in a killable process."""

    def __init__(self) -> None:
        self._sources: dict[str, InlineRewards | RewardPool] = {}
        for name, reward in REWARDS.items():
            weighted = WeightedReward(components={name: reward}, settings=RewardSettings(weights={name: 1.0}))
            pooled = name in POOLED
            self._sources[name] = (
                RewardPool(weighted, RewardSettings(num_workers=1)) if pooled else InlineRewards(weighted)
            )

    def score(self, name: str, one: Sample, text: Completion) -> Score:
        """The score that a reward gives one completion."""
        return self._sources[name].score([one], [[text]])[0][0]

    def close(self) -> None:
        """Ends the process."""
        for source in self._sources.values():
            source.close()


def time_rewards(rewards: Rewards, num_completions: int, seed: int) -> dict[str, tuple[list[float], int]]:
    """Milliseconds of each reward for each completion, and how many it could not judge."""
    found: dict[str, tuple[list[float], int]] = {name: ([], 0) for name in REWARDS}
    texts = adversarial(seed)
    for _ in range(num_completions):
        text = completion(next(texts)[1])
        for name in REWARDS:
            one = sample(SOLUTIONS.get(name, "sad"))
            clock = time.perf_counter if name in POOLED else time.thread_time
            start = clock()
            result = rewards.score(name, one, text)
            times, invalid = found[name]
            times.append(1000 * (clock() - start))
            found[name] = (times, invalid + (not result.valid))
    return found


def percentile(values: list[float], percent: float) -> float:
    """The smallest value that so many percent are not above."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(len(ranked) * percent / 100))]


def main() -> int:
    """Runs the campaign and returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--completions", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rewards = Rewards()
    try:
        hacks, honest = read_hacks()
        faults = [f"a hack pays: {each}" for each in paying(hacks, rewards.score)]
        faults += [f"an honest text does not pay: {each}" for each in unpaid(honest, rewards.score)]
        print(f"{len(hacks)} hacks, {len(faults)} faults")
        timings = time_rewards(rewards, options.completions, options.seed)
    finally:
        rewards.close()
    print(f"{options.completions} hostile completions; ms: median, 99th percentile, longest; invalid")
    for name, (times, invalid) in timings.items():
        p99 = percentile(times, 99)
        print(f"{name:17} {percentile(times, 50):9.3f} {p99:9.3f} {max(times):9.3f} {invalid:6}")
        if name in BOUNDED and p99 >= MAX_P99_MS:
            faults.append(f"{name}: the 99th percentile is {p99:.1f} ms")
        if invalid and name not in POOLED:
            faults.append(f"{name}: {invalid} completions are invalid")
    print(*faults, sep="\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
