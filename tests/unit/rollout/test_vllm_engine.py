"""When the canary looks at the weights of a vLLM engine, against a host that only notes what it is asked."""

from types import SimpleNamespace

import pytest

from lightning_mmrl.errors import RolloutError
from lightning_mmrl.rollout.canary import Canary, Comparison
from lightning_mmrl.rollout.vllm.engine import VLLMEngine
from lightning_mmrl.settings.algorithm import SamplingSettings

REQUESTS, COMPLETIONS = ("a request",), ("a completion",)


class Host:
    """Notes pushes and samplings; `restarts` says during which samplings its server loses the weights."""

    def __init__(self, events, restarts=()):
        self.num_restores, self._events, self._restarts = 0, events, set(restarts)
        self._num_samplings = 0

    def push(self, weights, version):
        self._events.append(f"push {version}")

    def sample(self, requests, poll):
        self._num_samplings += 1
        self._events.append("sample")
        self.num_restores += self._num_samplings in self._restarts
        return COMPLETIONS


class Watch:
    """A canary that notes its checks; each samples as the real one does, and those numbered in `doubtful` doubt."""

    def __init__(self, events, every, doubtful):
        canary = Canary(every=every)
        self.due, self.patience, self._events, self._doubtful = canary.due, canary.patience, events, doubtful
        self._num_checks = 0

    def check(self, engine, trainer, policy, prompts):
        self._num_checks += 1
        self._events.append("check")
        engine._proven_samples(prompts, REQUESTS)
        doubt = f"doubt {self._num_checks}" if self._num_checks in self._doubtful else None
        return Comparison(median=0.0, high=0.0, largest=0.0, num_tokens=1, doubt=doubt)


def made(every=1, restarts=(), watched=True, doubtful=()):
    events = []
    encoder = SimpleNamespace(decode=None, eos_token_ids=(), pad_token_id=0, engine_prefix="")
    canary = Watch(events, every, doubtful) if watched else None
    engine = VLLMEngine(SimpleNamespace(), encoder=encoder, sampling=SamplingSettings(max_new_tokens=4), canary=canary)
    vars(engine)["_host"] = Host(events, restarts)
    return engine, events


def cycle(engine, version):
    engine.load_weights(engine.policy, version)
    assert engine._proven_samples("prompts", REQUESTS) is COMPLETIONS


def test_a_push_that_is_due_is_checked_once_before_it_is_sampled_from():
    engine, events = made()
    cycle(engine, 0)
    assert events == ["push 0", "check", "sample", "sample"]
    assert engine._proven_samples("prompts", REQUESTS) is COMPLETIONS
    assert events[4:] == ["sample"]


def test_pushes_between_are_not_checked():
    engine, events = made(every=0)
    for version in range(4):
        cycle(engine, version)
    assert events.count("check") == 2
    assert events[-2:] == ["push 3", "sample"]


def test_weights_that_were_restored_are_checked_before_their_samples_are_returned():
    engine, events = made(every=0, restarts=[6])
    for version in range(3):
        cycle(engine, version)
    assert events.count("check") == 2
    assert engine._proven_samples("prompts", REQUESTS) is COMPLETIONS
    assert events[-3:] == ["sample", "check", "sample"]
    assert engine._proven_samples("prompts", REQUESTS) is COMPLETIONS
    assert events.count("check") == 3


def test_weights_that_were_restored_within_a_check_are_checked_again():
    engine, events = made(restarts=[1])
    cycle(engine, 0)
    assert events == ["push 0", "check", "sample", "check", "sample", "sample"]


def test_an_engine_without_a_canary_checks_nothing():
    engine, events = made(watched=False, restarts=[1])
    cycle(engine, 0)
    assert events == ["push 0", "sample"]


def test_a_doubt_is_warned_of_and_the_next_push_is_checked_as_well(caplog):
    engine, events = made(every=0, doubtful=[2])
    for version in range(6):
        cycle(engine, version)
    # The first two by themselves; the third because of the doubt; it finds none, and there the checks end.
    assert [event for event in events if event != "sample"] == [
        *("push 0", "check", "push 1", "check", "push 2", "check"),
        *("push 3", "push 4", "push 5"),
    ]
    assert caplog.messages == ["doubt 2"]


def test_doubts_that_persist_end_the_run_at_the_third_comparison(caplog):
    engine, _ = made(every=0, doubtful=[2, 3, 4])
    for version in range(3):
        cycle(engine, version)
    with pytest.raises(RolloutError) as ended:
        cycle(engine, 3)
    wanted = "doubt 4; so it was in 3 comparisons in a row (rollout.canary.patience)"
    assert str(ended.value) == wanted
    assert caplog.messages == ["doubt 2", "doubt 3", "doubt 4"]


def test_doubts_with_a_good_comparison_in_between_do_not_add_up():
    engine, events = made(every=1, doubtful=[1, 2, 4, 5, 7, 8])
    for version in range(8):
        cycle(engine, version)
    assert events.count("check") == 8
