"""Generated tasks: balanced plans, and answers that an independent decoder reads back from every signal."""

import inspect
from collections import Counter

import numpy as np
import pytest
import task_decoders as decoders

from lightning_mmrl.data.synthetic.arithmetic import ARITHMETIC
from lightning_mmrl.data.synthetic.arithmetic import compose as pose
from lightning_mmrl.data.synthetic.counting import COUNTING
from lightning_mmrl.data.synthetic.geometry import GEOMETRY
from lightning_mmrl.data.synthetic.motion import MOTION
from lightning_mmrl.data.synthetic.task import SPLITS, Problem, Task
from lightning_mmrl.data.synthetic.tasks import TASKS
from lightning_mmrl.data.synthetic.tones import SAMPLE_RATE_HZ, TONES
from lightning_mmrl.prompts.labels import LabelMatcher
from lightning_mmrl.prompts.template import media_tags

GENERATED = (GEOMETRY, COUNTING, TONES, MOTION, ARITHMETIC)

each_task = pytest.mark.parametrize("task", GENERATED, ids=lambda task: task.name)


def decode(task: Task, problem: Problem) -> str:
    """The answer, from the signal alone."""
    match task.name:
        case "geometry":
            return decoders.shape_in(problem.signal)
        case "counting":
            return str(sum(decoders.dots_in(problem.signal)))
        case "tones":
            return decoders.key_in(problem.signal, SAMPLE_RATE_HZ)
        case "motion":
            return decoders.direction_in(problem.signal)
    return decoders.result_of(problem.question)


@pytest.mark.slow
@each_task
def test_every_answer_can_be_read_back_from_the_signal(task: Task) -> None:
    plans = [plan for split in SPLITS for plan in task.plan(split, scale=0.3)]
    wrong = [plan for plan in plans if decode(task, task.compose(plan)) != plan.label]
    assert {plan.label for plan in plans} == set(task.labels)
    assert wrong == []


def test_the_thoughts_name_what_is_there() -> None:
    for plan in COUNTING.plan("test", scale=0.3):
        problem = COUNTING.compose(plan)
        red, blue = decoders.dots_in(problem.signal)
        assert problem.thought == f"{red} red and {blue} blue"
        assert problem.facts == {"red": red, "blue": blue}
    for plan in TONES.plan("test", scale=0.1):
        row, column = divmod(int(decoders.key_in(TONES.compose(plan).signal, SAMPLE_RATE_HZ)) - 1, 3)
        assert TONES.compose(plan).thought == f"row {row + 1} and column {column + 1}"
    for plan in MOTION.plan("test", scale=0.2):
        problem = MOTION.compose(plan)
        assert problem.thought == " to ".join(decoders.side_in(problem.signal[k]) for k in (0, -1))
    for plan in ARITHMETIC.plan("test"):
        problem = ARITHMETIC.compose(plan)
        a, first, b, second, c = problem.question.removeprefix("What is ").removesuffix("?").split()
        between = int(a) + int(b) * (1 if first == "+" else -1)
        assert problem.thought == f"{between} {second} {c}"


@each_task
@pytest.mark.parametrize("split", SPLITS)
def test_labels_are_balanced_in_random_order(task: Task, split: str) -> None:
    plans = task.plan(split)
    assert len(set(Counter(plan.label for plan in plans).values())) == 1
    assert len(plans) >= 360
    first = Counter(plan.label for plan in plans[: len(plans) // 2])
    assert set(first) == set(task.labels)
    assert [plan.label for plan in plans[: len(task.labels)]] != list(task.labels)


@each_task
def test_a_sample_depends_on_seed_split_and_index_alone(task: Task) -> None:
    def signature(problem: Problem) -> object:
        return problem.question if problem.signal is None else problem.signal.tobytes()

    plan = task.plan("train")[5]
    again = task.plan("train")[5]
    other_seed = next(each for each in task.plan("train", seed=1) if each.label == plan.label)
    other_split = next(each for each in task.plan("test") if each.label == plan.label)
    assert signature(task.compose(plan)) == signature(task.compose(again))
    assert signature(task.compose(plan)) != signature(task.compose(other_seed))
    assert signature(task.compose(plan)) != signature(task.compose(other_split))


@each_task
def test_questions_hold_the_tag_of_their_medium_and_labels_can_be_matched(task: Task) -> None:
    plan = task.plan("test")[0]
    column = {"images": "image", "audios": "audio", "videos": "video"}
    expected = (column[task.medium.column],) if task.medium else ()
    assert media_tags(task.compose(plan).question) == expected
    assert [LabelMatcher(labels=task.labels).match(label) for label in task.labels] == list(task.labels)


def test_held_out_problems_are_posed_once_and_nowhere_else() -> None:
    posed = {split: [pose(plan).question for plan in ARITHMETIC.plan(split)] for split in SPLITS}
    for split in ("validation", "test"):
        others = {question for other in SPLITS if other != split for question in posed[other]}
        assert len(set(posed[split])) == len(posed[split]) == 360
        assert not others & set(posed[split])


def test_decoders_tell_signals_apart() -> None:
    """The negative control of the test above: an altered signal is no longer read as its label."""
    frames = MOTION.compose(next(plan for plan in MOTION.plan("test") if plan.label == "left")).signal
    assert decoders.direction_in(frames[::-1]) == "right"
    assert decoders.direction_in(frames.transpose(0, 2, 1, 3)) == "up"
    waveform = TONES.compose(next(plan for plan in TONES.plan("test") if plan.label == "1")).signal
    assert decoders.key_in(waveform, round(SAMPLE_RATE_HZ * 770 / 697)) != "1"
    dots = COUNTING.compose(next(plan for plan in COUNTING.plan("test") if plan.label == "4")).signal.copy()
    dots[:, : dots.shape[1] // 2] = np.median(dots, axis=(0, 1))
    assert sum(decoders.dots_in(dots)) < 4


def test_every_generator_is_called_alike() -> None:
    first = ["emotions", "emotion_trees", "geometry", "counting", "tones", "motion", "arithmetic", "extremes"]
    assert list(TASKS) == [
        *first,
        "numbers",
        "described",
        "relations",
        "relations_text",
        "bars",
        "bars_text",
        "sokoban",
        "sokoban_large",
    ]
    wanted = {"directory", "seed", "scale", "workers", "overwrite", "on_progress"}
    for generate in TASKS.values():
        parameters = inspect.signature(generate).parameters
        assert set(parameters) - {"wrong_golds"} == wanted  # a share of wrong solutions, where the generator has one
        assert parameters["seed"].default == 0
