"""What every task of configs/task holds to; a newcomer's file is tested without writing a test.

One of SOLUTIONS must be a solution that the task can read, and its text a right answer.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
from expanded import expanded
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from lightning_mmrl.config.compose import compose
from lightning_mmrl.config.folders import configs_dir
from lightning_mmrl.errors import DataError
from lightning_mmrl.evaluation.intervals import ClusterBootstrap, resample_weights
from lightning_mmrl.evaluation.records import Judgement
from lightning_mmrl.evaluation.task_metrics import TaskMetrics
from lightning_mmrl.registry.names import REGISTRY
from lightning_mmrl.registry.tasks import built_tasks, task_outlines
from lightning_mmrl.settings.run import EvaluationSettings
from lightning_mmrl.types.records import Completion, Message, Sample

OPTIONS = sorted(path.stem for path in configs_dir().glob("task/*.yaml"))
SOLUTIONS = ("happy", "7", "B", "Up")
OTHERS = {"happy": "sad", "7": "8", "B": "C", "Up": "Down"}
EXTRAS = {
    "level": [".", "$", "@"],
    "answer_type": "integer",
    "key": "2steps_1",
    "source": "Omni3D",
    "label_set": ["happy", "sad"],
    "picture_truth": "happy",
    "sound_truth": "sad",
}
"""Columns that a task may need beside the solution."""
READ_NO_SOLUTION = {"conflicts"}
"""Options whose samples have no right answer; their own tests say which samples they refuse."""
OF_QUESTIONS = {"circular"}
"""Metrics of questions with several samples, which must be judged together; no validation has them."""
NUM_RESAMPLES = 40

each_task = pytest.mark.parametrize("option", OPTIONS)


@pytest.fixture(scope="module")
def tasks():
    """Option to task; each verifier starts once."""
    return {option: built_tasks(compose([f"task={option}"]))["validation"] for option in OPTIONS}


def sample(name, solution, speaker=None):
    question = Message(role="user", content="?")
    return Sample(id=name, messages=(question,), solution=solution, speaker=speaker, extras=EXTRAS)


def answer(text):
    return Completion(text=f"<think>so</think><answer>{text}</answer>", num_tokens=9, truncated=False)


def readable(task):
    """The first solution that the task can read."""
    for solution in SOLUTIONS:
        try:
            task.truth(sample("first", solution))
        except DataError:
            continue
        return solution
    raise AssertionError("no solution of SOLUTIONS; add one that the new task reads")


def judged(task, kinds, speakers=3):
    """Judgements of right (r), wrong (w) and missing (m) answers."""
    solution = readable(task)
    texts = {
        "r": answer(solution),
        "w": answer(OTHERS[solution]),
        "m": Completion(text="", num_tokens=0, truncated=False),
    }
    made = {kind: task.judge(sample("x", solution), completion) for kind, completion in texts.items()}
    return [
        replace(made[kind], sample_id=f"s{place}", speaker=f"p{place % speakers}") for place, kind in enumerate(kinds)
    ]


MIXED, OTHER = "rrrwrmwwrwmmrrwmrwrrrwm", "rwmwrmrwrwmmwrwmrwrwmwm"


def test_every_registered_task_has_an_option_and_every_option_a_registered_task():
    named = {OmegaConf.load(configs_dir() / f"task/{option}.yaml")["_target_"] for option in OPTIONS}
    assert named == set(REGISTRY["task"])


@each_task
def test_its_names_agree_and_need_no_verifier(tasks, option):
    task = tasks[option]
    outline = task_outlines(compose([f"task={option}"]))["validation"]
    assert list(outline.metric_names()) == list(task.metric_names())
    assert set(task.validated_names()) <= set(task.metric_names())
    names = [each.name for each in task.measures]
    assert len(set(names)) == len(names)
    [headline] = [each for each in task.measures if each.name == task.headline]
    assert (headline.interval, headline.validated, headline.in_table, headline.on_card) == (True,) * 4
    assert task.headline_title == headline.title
    assert set(task.metrics(judged(task, MIXED))) <= set(task.metric_names())
    own = getattr(task, "reading", None) or getattr(getattr(task, "reader", None), "reading", None)
    assert own is None or task.answer_reading == own


@each_task
def test_a_right_answer_counts_one_and_a_missing_one_nothing(tasks, option):
    task = tasks[option]
    for kinds, expected in (("r", 1.0), ("w", 0.0), ("m", 0.0), ("rrr", 1.0), ("mmm", 0.0), ("rm", 0.5)):
        assert task.metrics(judged(task, kinds))[task.headline] == expected, kinds
    assert judged(task, "m")[0].predicted is None
    assert task.unanswered(sample("x", readable(task))) == task.judge(
        sample("x", readable(task)), Completion(text="", num_tokens=0, truncated=False)
    )


@each_task
@pytest.mark.parametrize("solution", [None, "", "?"])
def test_a_solution_that_cannot_be_read_is_refused_with_manifest_sample_and_fix(tasks, option, solution):
    if option in READ_NO_SOLUTION:
        pytest.skip(f"{option} reads no solution")
    task, good = tasks[option], sample("good", readable(tasks[option]))
    task.check("test.jsonl", [good])
    with pytest.raises(
        DataError, match=r"^test\.jsonl: sample 'bad' has the solution .*correct the manifest"
    ) as raised:
        task.check("test.jsonl", [good, sample("bad", solution)])
    assert repr(solution) in str(raised.value)


@each_task
def test_an_empty_set_has_no_numbers(tasks, option):
    assert all(math.isnan(value) for value in tasks[option].metrics([]).values())
    with pytest.raises(DataError, match="no predictions"):
        ClusterBootstrap().intervals([], tasks[option])


@each_task
def test_a_single_sample_has_an_interval_without_width(tasks, option):
    task = tasks[option]
    for kind in "rwm":
        for name, interval in ClusterBootstrap().intervals(judged(task, kind), task).items():
            value = task.metrics(judged(task, kind))[name]
            assert (interval.estimate, interval.low, interval.high) == (value, value, value)


@each_task
def test_a_judgement_is_one_line_and_comes_back(tasks, option):
    for each in judged(tasks[option], "rwm"):
        assert len(each.to_json().splitlines()) == 1
        assert Judgement.from_json(each.to_json()) == each


def lists(judgements, seed=0):
    """The lists of judgements that the bootstrap's own weights stand for."""
    speakers = sorted({each.speaker for each in judgements})
    for row in resample_weights(np.random.default_rng(seed), len(speakers), NUM_RESAMPLES):
        times = dict(zip(speakers, row.astype(int), strict=True))
        yield [each for each in judgements for _ in range(times[each.speaker])]


@each_task
def test_intervals_are_the_percentiles_of_the_metrics_of_resampled_lists(tasks, option):
    task, judgements = tasks[option], judged(tasks[option], MIXED, speakers=4)
    sizes = np.unique([each.speaker for each in judgements], return_counts=True)[1].tolist()
    found = ClusterBootstrap(settings=EvaluationSettings(num_resamples=NUM_RESAMPLES)).intervals(judgements, task)
    assert set(found) == {each.name for each in task.measures if each.interval}
    for name, interval in found.items():
        values = [task.metrics(each)[name] for each in lists(judgements)]
        assert len(set(values)) > 3 or (name == "neither" and set(values) == {0.0})  # no answer of MIXED is neither
        assert [interval.low, interval.high] == pytest.approx(expanded(values, sizes), abs=1e-12)
        assert interval.estimate == pytest.approx(task.metrics(judgements)[name], abs=1e-12)


@each_task
def test_a_paired_difference_is_of_the_same_resampled_samples(tasks, option):
    task = tasks[option]
    candidate, baseline = (judged(task, kinds, speakers=4) for kinds in (MIXED, OTHER))
    other = {each.sample_id: each for each in baseline}
    differences = [
        task.metrics(each)[task.headline] - task.metrics([other[one.sample_id] for one in each])[task.headline]
        for each in lists(candidate)
    ]
    found = ClusterBootstrap(settings=EvaluationSettings(num_resamples=NUM_RESAMPLES)).paired_difference(
        candidate, baseline[::-1], task
    )
    assert len(set(differences)) > 5
    sizes = np.unique([each.speaker for each in candidate], return_counts=True)[1].tolist()
    assert [found.low, found.high] == pytest.approx(expanded(differences, sizes), abs=1e-12)


@each_task
@given(kinds=st.text("rwm", min_size=1, max_size=12), cut=st.integers(0, 12), data=st.data())
@settings(max_examples=15, deadline=None)
def test_neither_the_order_of_samples_nor_the_ranks_that_judge_them_matter(tasks, option, kinds, cut, data):
    task = tasks[option]
    judgements = judged(task, kinds)
    expected = task.metrics(judgements)
    assert task.metrics(data.draw(st.permutations(judgements))) == pytest.approx(expected, abs=1e-12)
    shards = [TaskMetrics(task), TaskMetrics(task)]
    for shard, part in zip(shards, (judgements[:cut], judgements[cut:]), strict=True):
        shard.update(part)
    joined = TaskMetrics(task)
    joined.update([])
    joined.sums = shards[0].sums + shards[1].sums
    found = {name: value for name, value in joined.compute().items() if name not in OF_QUESTIONS}
    wanted = {name: value for name, value in expected.items() if name not in OF_QUESTIONS}
    assert found == pytest.approx(wanted, abs=1e-12)


@each_task
def test_a_result_says_its_task_in_plain_values(tasks, option):
    described = tasks[option].described()
    if option == "closed_labels":
        assert described == {}, "files of closed labels stay as they were before there were tasks"
        return
    assert described["task"]["headline"] in described["task"]["scores"]
    text = f"{described} {tasks[option].title} {[each.title for each in tasks[option].measures]}"
    of_emotions = () if option == "mme_emotion" else ("emotion",)
    assert not [word for word in ("UAR", "WAR", *of_emotions) if word in text]
