"""Numbers, dots, relations and bars: balanced plans, answers that an own reader finds, and none without looking."""

from collections import Counter, defaultdict
from dataclasses import replace
from functools import cache

import numpy as np
import picture_readers as readers
import pytest

from lightning_mmrl.data.synthetic.bars import BARS, BARS_TEXT
from lightning_mmrl.data.synthetic.described import DESCRIBED, THOUGHTS
from lightning_mmrl.data.synthetic.numbers import DOTS, NUMBERS, TEXT
from lightning_mmrl.data.synthetic.relations import RELATIONS, RELATIONS_TEXT
from lightning_mmrl.data.synthetic.task import SPLITS, Plan, Problem, Task, belongs
from lightning_mmrl.data.synthetic.tasks import TASKS
from lightning_mmrl.evaluation.tasks.multiple_choice import MultipleChoice
from lightning_mmrl.prompts.labels import LabelMatcher
from lightning_mmrl.prompts.template import media_tags
from lightning_mmrl.rewards.choice_answer import ChoiceAnswer
from lightning_mmrl.types.records import Completion, Message, Sample

CHOICES = (RELATIONS, RELATIONS_TEXT, BARS, BARS_TEXT)
GENERATED = (NUMBERS, DESCRIBED, *CHOICES)
CHANCE = {"side": 0.25, "count": 0.25, "larger": 0.5, "nearer": 0.5, "tallest": 0.25, "value": 0.25}
"""Accuracy of an answer by chance; it is also the best without the picture, as tested below."""

each_task = pytest.mark.parametrize("task", GENERATED, ids=lambda task: task.name)
each_choice = pytest.mark.parametrize("task", CHOICES, ids=lambda task: task.name)


@cache
def posed(name: str, split: str, scale: float = 1.0) -> list[tuple[Plan, Problem]]:
    """The planned samples of a split with their problems."""
    task = TASKS[name]
    return [(plan, task.compose(plan)) for plan in task.plan(split, scale=scale)]


def right_text(task: Task, plan: Plan, problem: Problem) -> str:
    """The text that the question asks for, as the generator has it."""
    return problem.facts["options"]["ABCD".index(plan.label)] if task in CHOICES else plan.label


def read(task: Task, problem: Problem) -> str:
    """The text that the question asks for, from the question and the picture alone."""
    match task.name:
        case "numbers":
            return readers.number_in(problem.question, problem.signal)
        case "described":
            return str(sum(readers.described_dots(problem.question, problem.signal)))
        case "bars" | "bars_text":
            return readers.chart_answer(problem.question, problem.signal)
    return readers.relation_in(problem.question, problem.signal)


def scene_of(problem: Problem) -> str:
    """What identifies a problem, without small changes."""
    facts = problem.facts
    return facts.get("scene") or facts.get("chart") or facts.get("arrangement") or problem.question


@pytest.mark.slow
@each_task
def test_every_answer_can_be_read_back(task):
    pairs = posed(task.name, "test") + posed(task.name, "cold_start", 0.1)
    wrong = [
        (plan.name, problem.question)
        for plan, problem in pairs
        if read(task, problem) != right_text(task, plan, problem)
    ]
    assert wrong == []
    assert {plan.question_type for plan, _ in pairs} == set(task.kinds)
    for plan, problem in pairs:
        if task in (RELATIONS, BARS):
            assert (
                readers.letter_of(read(task, problem), problem.question) == plan.label == (problem.answer or plan.label)
            )
        if task in (RELATIONS_TEXT, BARS_TEXT):
            assert problem.answer == read(task, problem)


@each_task
@pytest.mark.parametrize("split", SPLITS)
def test_labels_are_balanced_in_every_kind_and_in_random_order(task, split):
    plans = task.plan(split)
    for kind, labels in task.kinds.items():
        counts = Counter(plan.label for plan in plans if plan.question_type == kind)
        assert set(counts) == set(labels)
        assert len(set(counts.values())) == 1
    assert len(set(Counter(plan.question_type for plan in plans).values())) == 1
    assert len(plans) >= 360
    first = Counter((plan.question_type, plan.label) for plan in plans[: len(plans) // 2])
    assert len(first) == sum(map(len, task.kinds.values()))
    assert [plan.question_type for plan in plans[:20]] != sorted(plan.question_type for plan in plans[:20])


@each_choice
def test_every_text_is_equally_often_right_for_each_kind_and_letter(task):
    found = defaultdict(Counter)
    for plan, problem in posed(task.name, "test"):
        found[plan.question_type, plan.label][right_text(task, plan, problem)] += 1
    for counts in found.values():
        assert len(set(counts.values())) == 1
        assert len(counts) >= 4


@pytest.mark.parametrize("task", [NUMBERS, DESCRIBED, RELATIONS, BARS], ids=lambda task: task.name)
def test_held_out_problems_are_posed_in_no_other_split(task):
    """A picture without dots is the one exception, since there is only one; so are all descriptions in text."""
    scales = {"cold_start": 0.1, "train": 0.3, "validation": 1.0, "test": 1.0}
    scenes = {
        split: {
            scene_of(problem)
            for plan, problem in posed(task.name, split, scale)
            if task is not DESCRIBED or plan.question_type == DOTS
        }
        for split, scale in scales.items()
    }
    for split in ("validation", "test"):
        others = set().union(*(scenes[other] for other in SPLITS if other != split))
        assert scenes[split] & others - {"---------"} == set()
        assert len(scenes[split]) > (100 if task is DESCRIBED and split == "validation" else 250)
    assert task is BARS or scenes["train"] & scenes["cold_start"], "a set without any common problem proves nothing"


def blind_accuracy(learned: list[tuple[str, str]], asked: list[tuple[str, str]]) -> float:
    """Accuracy of a table from what is seen of a question to its most frequent answer."""
    table = defaultdict(Counter)
    for seen, answer in learned:
        table[seen][answer] += 1
    overall = Counter(answer for _, answer in learned).most_common(1)[0][0]
    return float(
        np.mean([(table[seen].most_common(1)[0][0] if table[seen] else overall) == answer for seen, answer in asked])
    )


VIEWS = {
    "nothing": lambda problem: "",
    "question": lambda problem: problem.question.splitlines()[0].split("? ")[0],
    "options": lambda problem: " ".join(sorted(problem.facts["options"])),
    "order": lambda problem: " ".join(problem.facts["options"]),
    "first option": lambda problem: problem.facts["options"][0],
}


@pytest.mark.parametrize("task", [RELATIONS, BARS], ids=lambda task: task.name)
@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("by_letter", [True, False], ids=["letter", "text"])
def test_a_table_that_never_looks_is_right_by_chance(task, view, by_letter):
    for kind in task.kinds:
        pairs = {
            split: [
                (VIEWS[view](problem), plan.label if by_letter else right_text(task, plan, problem))
                for plan, problem in posed(task.name, split, scale)
                if plan.question_type == kind
            ]
            for split, scale in (("train", 0.3), ("test", 1.0))
        }
        deviation = (CHANCE[kind] * (1 - CHANCE[kind]) / len(pairs["test"])) ** 0.5
        assert blind_accuracy(pairs["train"], pairs["test"]) < CHANCE[kind] + 4 * deviation


def test_a_table_finds_a_leak():
    """The negative control of the test above: options whose first in the alphabet is right."""
    rng = np.random.default_rng(0)
    pairs = []
    for _ in range(400):
        options = sorted("123456"[place] for place in rng.permutation(6)[:4])
        pairs.append((" ".join(options), options[0]))
    assert blind_accuracy(pairs[:300], pairs[300:]) > 0.95


def test_numbers_share_their_answers_and_the_last_step_of_their_thoughts():
    problems = {(plan.question_type, plan.label): problem for plan, problem in posed("numbers", "test")}
    assert {kind: {label for each, label in problems if each == kind} for kind in (TEXT, DOTS)} == {
        TEXT: set("0123456789"),
        DOTS: set("0123456789"),
    }
    for (kind, label), problem in problems.items():
        first, sign, second = problem.thought.split()
        assert int(label) == int(first) + int(second) * {"+": 1, "-": -1}[sign]
        assert (problem.signal is None) == (kind == TEXT)
        assert media_tags(problem.question) == (() if kind == TEXT else ("image",))
        if kind == DOTS:
            assert readers.dots_in(problem.signal) == (int(first), int(second))


def test_descriptions_say_what_pictures_show_and_thoughts_what_descriptions_say():
    styles = Counter()
    for plan, problem in posed("described", "test", 0.5):
        red, blue = readers.described_dots(problem.question, problem.signal)
        assert problem.facts["description"] == f"{red} red and {blue} blue dots."
        assert (problem.signal is None) == (plan.question_type == TEXT)
        if plan.question_type == DOTS:
            assert problem.thought == f"{red} + {blue}"
            continue
        assert problem.question == f"{problem.facts['description']}\n\nHow many dots?"
        styles.update(style for style in THOUGHTS if problem.thought == style.format(sum=f"{red} + {blue}"))
    assert set(styles.values()) == {60}
    assert len(styles) == 3


def test_every_number_of_dots_has_arrangements_in_every_split():
    for plan, problem in (
        pair for split in ("train", "test") for pair in posed("numbers", split, 0.3) if pair[0].question_type == DOTS
    ):
        name = problem.facts["arrangement"]
        assert len(name.replace("-", "")) == int(plan.label)
        assert belongs(name, plan.split) or plan.label == "0"


@each_choice
def test_the_judge_of_the_configuration_reads_letter_and_text(task):
    judge = MultipleChoice(reader=ChoiceAnswer(choices="ABCD"))
    for plan, problem in posed(task.name, "test")[:40]:
        question = Message(role="user", content=problem.question)
        answer = problem.answer or plan.label
        sample = Sample(id="q", messages=(question,), solution=answer, extras=dict(problem.facts))
        assert judge.truth(sample) == plan.label
        texts = [answer, plan.label, *([right_text(task, plan, problem)] if plan.question_type == "side" else [])]
        for text in texts:
            completion = Completion(text=f"<think>so</think><answer>{text}</answer>", num_tokens=9, truncated=False)
            assert judge.judge(sample, completion).scores["accuracy"] == 1.0
        assert LabelMatcher(labels=task.labels).match(answer) == answer


@each_task
def test_a_sample_depends_on_seed_split_and_index_alone(task):
    plan = next(plan for plan in task.plan("train") if plan.question_type != TEXT)
    again = next(each for each in task.plan("train") if each.index == plan.index)
    same = [task.compose(each).signal.tobytes() for each in (plan, again)]
    assert same[0] == same[1]
    for other in (replace(plan, seed=1), replace(plan, split="test"), replace(plan, index=plan.index + 1)):
        assert task.compose(other).signal.tobytes() != same[0]


def test_readers_tell_pictures_apart():
    """The negative control of the readers: an altered picture no longer has its answer."""

    def first(task, kind, text):
        plans = (plan for plan in task.plan("test") if plan.question_type == kind)
        return next(each for plan in plans if right_text(task, plan, each := task.compose(plan)) == text)

    side = first(RELATIONS, "side", "left")
    assert readers.relation_in(side.question, side.signal[:, ::-1]) == "right"
    assert readers.relation_in(side.question, side.signal.transpose(1, 0, 2)) == "above"
    count = first(RELATIONS, "count", "three")
    assert readers.relation_in(count.question, np.full_like(count.signal, 20)) == "zero"
    assert readers.relation_in(count.question, count.signal[::-1]) == "three"
    lost = count.signal.copy()
    lost[readers.masks_of(lost)[count.question.split()[2]]] = 20
    assert readers.relation_in(count.question, lost) == "zero"
    tall = first(BARS, "tallest", "red")
    lowered = tall.signal.copy()
    lowered[:-7] = 20
    assert set(readers.bars_in(lowered).values()) == {0}
    assert readers.bars_in(tall.signal)["red"] == max(readers.bars_in(tall.signal).values())
