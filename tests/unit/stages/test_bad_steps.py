"""Steps that are not finite: decided by all ranks, counted once each, written down, and bounded."""

import json

import pytest
import torch

from lightning_mmrl.errors import StageError
from lightning_mmrl.protocols.ranks import Alone
from lightning_mmrl.settings.stage import StageSettings
from lightning_mmrl.stages.bad_steps import FILE, BadSteps, NotFiniteError
from lightning_mmrl.stages.context import StageContext
from lightning_mmrl.stages.costs import CostMeter
from lightning_mmrl.stages.ending import Ending
from lightning_mmrl.types.costs import RankCosts, StageBudget
from lightning_mmrl.types.records import Sample

NAN, INF = float("nan"), float("inf")
GOOD = {"loss": [1.0], "gradient norm": [torch.tensor(2.0)]}
SAMPLES = [Sample(id="a", messages=()), Sample(id="b", messages=())]


class OfTwo(Alone):
    """The first of two ranks; the other one found what it is told to."""

    def __init__(self, flags, ids=("c",), weights=()):
        self.flags, self.other = flags, [list(ids), list(weights)]

    def any(self, flags):
        return [mine or theirs for mine, theirs in zip(flags, self.flags, strict=True)]

    def gather(self, item):
        return [item, self.other.pop(0)]


def bad_steps(folder, *, weights=None, ranks=None, num_steps=100, max_bad_steps=10, ending=None):
    said = []
    context = StageContext(
        name="reason",
        settings=StageSettings(num_steps=num_steps, max_bad_steps=max_bad_steps),
        seed=0,
        directory=folder,
        say=said.append,
        **({"ranks": ranks} if ranks else {}),
    )
    ending = ending or Ending(context.settings)
    found = BadSteps(context, lambda: weights or {"layer.weight": torch.ones(2)}, ending.expected_steps)
    return found, said


def lines(folder):
    return [json.loads(line) for line in (folder / FILE).read_text().splitlines()]


def test_finite_numbers_are_no_bad_step(tmp_path):
    found, said = bad_steps(tmp_path)
    assert not found.found(1, GOOD | {"advantages": []}, SAMPLES)
    found.require(1, GOOD, SAMPLES)
    assert (said, len(found), found.reported(1), list(tmp_path.iterdir())) == ([], 0, {}, [])


@pytest.mark.parametrize(
    "value", [NAN, INF, -INF, torch.tensor([1.0, NAN]), torch.tensor([[-INF]], dtype=torch.bfloat16)]
)
def test_one_number_that_is_not_finite_is_enough(tmp_path, value):
    found, said = bad_steps(tmp_path)
    assert found.found(7, GOOD | {"loss": [1.0, value]}, SAMPLES)
    assert lines(tmp_path) == [{"step": 7, "not_finite": ["loss"], "samples": ["a", "b"]}]
    assert said == [f"step 7 is skipped: loss is not finite; {tmp_path / FILE} names its samples"]
    assert (found.reported(7), found.reported(8)) == ({"train/skipped_steps": 1.0}, {})


def test_one_of_several_updates_is_said_to_be_one(tmp_path):
    """Another update of the step may have moved the weights."""
    found, said = bad_steps(tmp_path)
    found.found(7, {"critic's gradient norm": [NAN]}, SAMPLES, update=(2, 4))
    assert said == [
        f"update 2 of 4 in step 7 is skipped: critic's gradient norm is not finite; {tmp_path / FILE} names its samples"
    ]
    assert (found.number(7), found.reported(7)) == (1, {"train/skipped_steps": 1.0})


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_float_is_as_finite_as_it_is_whatever_type_is_the_default(tmp_path, dtype):
    """Lightning makes the model's type the default in a training step."""
    found, _ = bad_steps(tmp_path)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        bad = [found.found(1, {"loss": [value]}, SAMPLES) for value in (70_000.0, 1e39, INF)]
    finally:
        torch.set_default_dtype(before)
    assert bad == [False, False, True]


def test_what_only_another_rank_found_counts_and_samples_of_all_are_written(tmp_path):
    found, _ = bad_steps(tmp_path, ranks=OfTwo([False, True]))
    with pytest.raises(NotFiniteError):
        found.require(3, GOOD, SAMPLES)
    assert lines(tmp_path) == [{"step": 3, "not_finite": ["gradient norm"], "samples": ["a", "b", "c"]}]


def test_a_step_counts_once_however_often_it_is_noted(tmp_path):
    """Several minibatches of one iteration; and the same step again after an interruption, which writes no new line."""
    found, _ = bad_steps(tmp_path)
    for loss in (NAN, NAN, INF):
        found.found(5, {"loss": [loss]}, SAMPLES)
    again, _ = bad_steps(tmp_path)
    again.load_state_dict(found.state_dict())
    again.found(5, {"loss": [NAN]}, SAMPLES)
    assert (len(again), again.number(4), again.number(5), len(lines(tmp_path))) == (1, 0, 1, 1)


@pytest.mark.parametrize(
    ("num_steps", "most", "borne", "bound"),
    [
        (100, 10, 10, "stages.reason.max_bad_steps 10 allows"),
        (100, 0, 0, "stages.reason.max_bad_steps 0 allows"),
        (6, 10, 3, "half of its 6 steps"),
        (1, 10, 0, "half of its 1 steps"),
        (100, 60, 50, "half of its 100 steps"),
    ],
)
def test_one_step_too_many_ends_the_stage_in_one_sentence(tmp_path, num_steps, most, borne, bound):
    found, _ = bad_steps(tmp_path, num_steps=num_steps, max_bad_steps=most)
    for step in range(1, borne + 1):
        assert found.found(step, {"loss": [NAN]}, SAMPLES)
    with pytest.raises(StageError) as error:
        found.found(borne + 1, {"loss": [NAN]}, SAMPLES)
    assert f"loss is not finite in step {borne + 1}; that makes {borne + 1} skipped steps" in str(error.value)
    assert f"more than {bound}; {tmp_path / FILE} names their samples" in str(error.value)
    assert ("or raise stages.reason.max_bad_steps" in str(error.value)) == ("allows" in bound)
    assert len(lines(tmp_path)) == borne + 1


class Budgeted:
    """A stage of nominally 100 steps under a budget, of which each step takes 3 operations."""

    def __init__(self, folder, **budget):
        self.costs = CostMeter()
        settings = StageSettings(num_steps=100, max_bad_steps=10)
        self.ending = Ending(settings, StageBudget(stage="reason", **budget), self.costs)
        self.found, _ = bad_steps(folder, ending=self.ending)

    def skips(self, step):
        try:
            return self.found.found(step, {"loss": [NAN]}, SAMPLES)
        finally:
            self.closes()

    def closes(self):
        self.costs.took([RankCosts(operations={"training": 3})])


@pytest.mark.parametrize("budget", [{"measure": "flops", "ends_at": 18}, {"measure": "steps", "ends_at": 6}])
def test_half_of_the_steps_is_half_of_those_that_a_budget_allows(tmp_path, budget):
    """Six steps, and not the hundred of num_steps."""
    stage = Budgeted(tmp_path, **budget)
    assert all(stage.skips(step) for step in (1, 2, 3))
    with pytest.raises(StageError, match=r"that makes 4 skipped steps, more than half of its 6 steps; "):
        stage.skips(4)


def test_a_budget_may_allow_more_steps_than_the_nominal_ones(tmp_path):
    found, _ = bad_steps(tmp_path, num_steps=6)
    with pytest.raises(StageError, match="more than half of its 6 steps"):
        [found.found(step, {"loss": [NAN]}, SAMPLES) for step in (1, 2, 3, 4)]
    costs = CostMeter()
    ending = Ending(StageSettings(num_steps=6), StageBudget(stage="reason", measure="steps", ends_at=100), costs)
    found, _ = bad_steps(tmp_path, num_steps=6, ending=ending)
    assert all(found.found(step, {"loss": [NAN]}, SAMPLES) for step in (1, 2, 3, 4))


def test_a_budget_of_one_step_that_was_skipped_hands_nothing_over(tmp_path):
    """Before the first step, its costs are not known, and so how many steps there are."""
    stage = Budgeted(tmp_path, measure="flops", ends_at=3)
    assert stage.skips(1)
    assert stage.ending.ended(1)
    with pytest.raises(StageError, match="most of its steps were skipped, 1 of 1 in all"):
        stage.found.refuse_end(1)


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        ({"measure": "flops", "ends_at": 18}, [100, 6, 6]),
        ({"measure": "steps", "ends_at": 3.5}, [3, 3, 3]),  # the earlier of two
        ({"measure": "steps", "ends_at": 9, "before": 2}, [7, 7, 7]),
    ],
)
def test_how_many_steps_are_expected(tmp_path, budget, expected):
    stage, found = Budgeted(tmp_path, **budget), []
    for step in range(3):
        found.append(stage.ending.expected_steps(step))
        stage.closes()
    assert found == expected


@pytest.mark.parametrize(("own", "other"), [(NAN, ()), (1.0, ("layer.weight",))])
def test_weights_that_are_not_finite_end_the_stage_at_once(tmp_path, own, other):
    """On any rank: replicas may have parted."""
    weights = {"first": torch.ones(1), "layer.weight": torch.tensor([1.0, own])}
    found, _ = bad_steps(tmp_path, weights=weights, ranks=OfTwo([True], weights=other))
    with pytest.raises(StageError, match=r"at step 2 the weights are not finite \(layer.weight is the first\)"):
        found.found(2, {"loss": [1.0]}, SAMPLES)


@pytest.mark.parametrize(
    ("skipped", "refused"), [([], False), ([20], False), ([18, 20], False), ([19, 20], True), ([1, 2], False)]
)
def test_a_stage_that_ends_in_skipped_steps_hands_nothing_over(tmp_path, skipped, refused):
    found, _ = bad_steps(tmp_path, num_steps=20)
    found.load_state_dict(skipped)
    if not refused:
        found.refuse_end(20)
        return
    with pytest.raises(StageError, match="its last steps were skipped, 2 of 20 in all"):
        found.refuse_end(20)
