"""A stage that samples ahead is a function of its configuration: equal to an oracle, and exact when it is continued."""

import os
import signal
from dataclasses import replace
from functools import cache, partial

import omni
import pytest
import torch
from exact_cases import STEPS, Stage, assert_equal, kill_in, logged, plain
from queued import InlineQueue, Stale, in_process_of_its_own

from lightning_mmrl.algorithms.corrections.importance import ImportanceCorrection
from lightning_mmrl.errors import RolloutError, StageError
from lightning_mmrl.settings.run import StateSettings
from lightning_mmrl.settings.stage import TrainerSettings
from lightning_mmrl.stages.ahead import RolloutsAhead, _Prompts
from lightning_mmrl.training.interruption import Interrupted, Interruption
from lightning_mmrl.types.batches import Rollout, TimedRollout
from lightning_mmrl.types.records import Completion

pytestmark = pytest.mark.slow

CORRECTED = {"correction": ImportanceCorrection(), "every": STEPS + 1}
COMPARED = {**CORRECTED, "reward": plain}
"""With a reward that draws no number: the checks of shapes in tests draw from the same generator, more of them here."""

PRECISIONS = {
    "32-true": {},
    "bf16-mixed": {
        "dtype": torch.bfloat16,
        "trainer": TrainerSettings(accelerator="cpu", precision="bf16-mixed"),
    },
}


def without_staleness(values):
    return {key: value for key, value in values.items() if "staleness" not in str(key)}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return omni.build(tmp_path_factory.mktemp("model") / "omni")


@pytest.fixture(scope="module")
def undisturbed(checkpoint, tmp_path_factory):
    """By its lag, a stage that samples ahead in this process, without an interruption and without a state."""

    @cache
    def run(lag):
        folder = tmp_path_factory.mktemp(f"lag{lag}")
        stage = Stage("grpo", checkpoint, folder, Interruption(), lag=lag, queue=InlineQueue, **CORRECTED)
        return stage.outcome(), logged(folder)

    return run


@pytest.fixture(scope="module")
def oracle(checkpoint, tmp_path_factory):
    """By its lag, a stage that keeps the weights of each version and samples in turn, by the path without a lag."""

    @cache
    def run(lag, precision="32-true"):
        folder = tmp_path_factory.mktemp(f"oracle{lag}")
        options = {**COMPARED, **PRECISIONS[precision]}
        stage = Stage("grpo", checkpoint, folder, Interruption(), wrapped=partial(Stale, lag=lag), **options)
        return stage.outcome(), logged(folder)

    return run


@pytest.mark.parametrize(("lag", "precision"), [(1, "32-true"), (2, "32-true"), (1, "bf16-mixed")])
def test_a_process_of_its_own_samples_what_the_oracle_samples(checkpoint, oracle, tmp_path, lag, precision):
    """Bit for bit: metrics of all steps, and weights; groups, lengths and temperature change on the way."""
    options = {**COMPARED, **PRECISIONS[precision]}
    stage = Stage("grpo", checkpoint, tmp_path, Interruption(), lag=lag, queue=in_process_of_its_own, **options)
    try:
        metrics, weights = stage.outcome()
    finally:
        stage.engine.close()
    expected, points = oracle(lag, precision)
    assert_equal((without_staleness(metrics), weights), expected)
    found = logged(tmp_path)
    assert {key: found[key] for key in points} == points
    staleness = [found[step, "stage/rollout/staleness"] for step in range(1, STEPS + 1)]
    assert staleness == [min(step - 1, lag) for step in range(1, STEPS + 1)]
    assert stage.queue.num_sampled == STEPS  # none after the last iteration


def test_a_router_sends_prompts_by_rollouts_of_earlier_weights(checkpoint, tmp_path):
    """Bit for bit as the oracle; the control: of other weights other prompts are solved."""
    ahead = Stage("routed", checkpoint, tmp_path / "ahead", Interruption(), lag=1, queue=InlineQueue, **COMPARED)
    expected = {}
    for lag in (0, 1):
        wrapped = partial(Stale, lag=lag)
        stage = Stage("routed", checkpoint, tmp_path / f"{lag}", Interruption(), wrapped=wrapped, **COMPARED)
        expected[lag] = stage.outcome()
    metrics, weights = ahead.outcome()
    found = without_staleness(metrics), weights
    assert_equal(found, expected[1])
    with pytest.raises(AssertionError):
        assert_equal(found, expected[0])


def test_another_version_of_the_weights_is_another_stage(oracle):
    """The negative control."""
    for other in (0, 2):
        with pytest.raises(AssertionError):
            assert_equal(oracle(1)[0], oracle(other)[0])


PLACES = [
    ("submit", 1, 4),
    ("submit", 2, 5),
    pytest.param("rollout", 1, 4, marks=pytest.mark.main_path),
    ("rollout", 2, 2),
    ("reward", 1, 3),
    ("reward", 2, 4),
    ("scoring", 2, 15),
    ("push", 1, 5),
    ("report", 2, 4),
    ("validation", 1, 2),
]


@pytest.mark.parametrize(("place", "lag", "at"), PLACES)
def test_an_interrupted_stage_goes_on_exactly(checkpoint, undisturbed, tmp_path, place, lag, at):
    """Rollouts that were sampled ahead come from the state: none of them is sampled again."""
    expected, points = undisturbed(lag)
    with Interruption() as interruption:
        first = Stage("grpo", checkpoint, tmp_path, interruption, lag=lag, queue=InlineQueue, **CORRECTED)
        kill_in(first, place, at)
        with pytest.raises(Interrupted, match="SIGTERM"):
            first.job.run()
    with Interruption() as interruption:
        second = Stage("grpo", checkpoint, tmp_path, interruption, lag=lag, queue=InlineQueue, **CORRECTED)
        outcome = second.outcome()
    assert second.said[0].startswith("continuing after step")
    done = int(second.said[0].rsplit(" ", 1)[1])
    assert second.queue.num_sampled == max(0, STEPS - done - lag)
    assert_equal(outcome, expected)
    assert logged(tmp_path) == points


@pytest.mark.parametrize("lag", [1, 2])
@pytest.mark.parametrize("step", [1, 2, 5, 6])
def test_every_state_leads_to_the_same_end(checkpoint, undisturbed, tmp_path, lag, step):
    options = {**CORRECTED, "every": 1, "lag": lag, "queue": InlineQueue}
    first = Stage("grpo", checkpoint, tmp_path, Interruption(), **options)
    first.store._settings = StateSettings(keep=STEPS)
    first.job.run()
    for place in (tmp_path / "state").glob("step-*"):
        if int(place.name.removeprefix("step-")) > step:
            for path in place.rglob("*"):
                path.unlink()
    second = Stage("grpo", checkpoint, tmp_path, Interruption(), **options)
    outcome = second.outcome()
    assert second.said[0] == f"continuing after step {step}"
    assert second.queue.num_sampled == max(0, STEPS - step - lag)
    assert_equal(outcome, undisturbed(lag)[0])


def test_rollouts_in_the_state_are_needed(checkpoint, tmp_path):
    """The negative control, and the words for a state of a stage without a lag."""
    with Interruption() as interruption:
        first = Stage("grpo", checkpoint, tmp_path, interruption, lag=1, queue=InlineQueue, **CORRECTED)
        kill_in(first, "reward", 4)
        with pytest.raises(Interrupted):
            first.job.run()
    second = Stage("grpo", checkpoint, tmp_path, Interruption(), lag=1, queue=InlineQueue, **CORRECTED)
    load = second.module.load_stage_state
    second.module.load_stage_state = lambda state: load({**state, "ahead": [{}]})
    with pytest.raises(RolloutError, match=r"iteration 4 are of the weights after 3 iterations.* those after 2"):
        second.outcome()
    third = Stage("grpo", checkpoint, tmp_path, Interruption(), lag=1, queue=InlineQueue, **CORRECTED)
    other = third.module.load_stage_state
    third.module.load_stage_state = lambda state: other({**state, "ahead": None})
    with pytest.raises(StageError, match=r"has no rollouts sampled ahead, and rollout.lag is 1; train the stage anew"):
        third.job.run()


def test_a_killed_process_ends_the_run_in_one_sentence(checkpoint, tmp_path):
    stage = Stage("grpo", checkpoint, tmp_path, Interruption(), lag=1, queue=in_process_of_its_own, **CORRECTED)
    submit = stage.queue.submit

    def and_kill(order):
        ticket = submit(order)
        if ticket == 4:
            os.kill(stage.queue._child._process.pid, signal.SIGKILL)
        return ticket

    stage.queue.submit = and_kill
    with pytest.raises(RolloutError, match=r"engine process.*\(rollout.lag\), was ended by SIGKILL; the same command"):
        stage.job.run()
    stage.engine.close()
    assert stage.queue._child._process.exitcode is not None


def test_no_state_is_saved_without_the_rollouts_that_it_needs(checkpoint, tmp_path):
    class Lost(InlineQueue):
        def wait(self, ticket, poll=lambda: None):
            if ticket > 2:
                raise RolloutError("the engine is gone")
            return super().wait(ticket)

    stage = Stage("grpo", checkpoint, tmp_path, Interruption(), lag=1, queue=Lost, **CORRECTED)
    with pytest.raises(RolloutError, match="the engine is gone"):
        stage.job.run()
    assert "the state after step 2 could not be saved (the engine is gone); there is none yet" in stage.said
    assert stage.store.newest_step() is None


def test_rollouts_of_a_state_are_shared_by_another_number_of_ranks():
    """Two ranks of two prompts each, and one of four: rows without serials stay in the order of the prompts."""

    class Rank:
        def __init__(self, rank, world_size):
            self.rank, self.world_size = rank, world_size

    whole = rollout_of([3, 1, 2, 2, 4, 1, 1, 1])
    alone = RolloutsAhead(InlineQueue.__new__(InlineQueue), 1, list)
    alone._restored = {5: TimedRollout(rollout=whole, seconds=2.0)}
    alone._prompts = {5: _Prompts((), ("a", "b", "c", "d"))}
    alone._version = 4
    states = []
    for rank in range(2):
        half = RolloutsAhead(InlineQueue.__new__(InlineQueue), 1, list)
        half.load_state_dict([alone.state_dict()], Rank(rank, 2))
        half._version = 4
        states.append(half.state_dict())
    assert [state["5"]["completion_ids"].shape for state in states] == [(4, 3), (4, 4)]
    back = RolloutsAhead(InlineQueue.__new__(InlineQueue), 1, list)
    back.load_state_dict(states, Rank(0, 1))
    assert [state["5"]["ids"] for state in states] == [["a", "b"], ["c", "d"]]
    found = back._restored[5].rollout
    for name in ("completion_ids", "completion_mask", "sampler_logprobs", "policy_version"):
        assert torch.equal(getattr(found, name), getattr(whole, name)), name
    assert found.completions == whole.completions


def rollout_of(lengths):
    """Completions of so many tokens, two for each prompt, of the weights after three iterations."""
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    ids = (torch.arange(len(lengths))[:, None] * 10 + torch.arange(max(lengths))) * mask
    return Rollout(
        completion_ids=ids,
        completion_mask=mask,
        sampler_logprobs=-ids.float() / 7,
        completions=tuple(Completion(text=str(size), num_tokens=size, truncated=size > 3) for size in lengths),
        group_size=2,
        policy_version=torch.full((len(lengths),), 3),
    )


@pytest.mark.parametrize("other", [0, 2])
def test_completions_of_other_weights_are_refused(checkpoint, tmp_path, other):
    """Older ones than the lag allows, and newer ones, which the policy has had as well."""

    class Other(InlineQueue):
        def wait(self, ticket, poll=lambda: None):
            found = super().wait(ticket)
            if ticket == 3:
                versions = found.rollout.policy_version.clone()
                versions[-1] = other
                found = replace(found, rollout=replace(found.rollout, policy_version=versions))
            return found

    stage = Stage("grpo", checkpoint, tmp_path, Interruption(), lag=1, queue=Other, **CORRECTED)
    problem = (
        rf"iteration 3 are of the weights after {other} iterations; with rollout.lag 1 these must be those after 1"
    )
    with pytest.raises(RolloutError, match=problem):
        stage.job.run()
