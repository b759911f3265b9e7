"""The pool alone, its outcomes and its callback; tests/unit/rewards/test_pool.py has the rest."""

import os
import signal
import sys
from pathlib import Path

import pytest

from lightning_mmrl.workers.pool import ATTEMPTS, CallResult, DeadlinePool, WorkerError
from lightning_mmrl.workers.serving import OVERTIME, Limits

HERE = Path(__file__).parent
linux = pytest.mark.skipif(sys.platform != "linux", reason="memory is bounded on Linux only")
pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def act():
    """Spawned workers get this path too."""
    sys.path.insert(0, str(HERE))
    import obedient_worker

    yield obedient_worker.act
    sys.path.remove(str(HERE))


@pytest.fixture(scope="module")
def pool(act):
    with DeadlinePool(act, num_workers=2, deadline_s=2.0) as pool:
        yield pool


def test_outcomes_stand_in_the_order_of_the_items(pool):
    outcomes = pool.map([("give", index) for index in range(20)])
    assert [outcome.value[0] for outcome in outcomes] == list(range(20))
    assert {outcome.value[1] for outcome in outcomes} & {os.getpid()} == set()


def test_items_run_in_other_processes_at_the_same_time(pool):
    first, second = pool.map([("give", 1), ("sleep", 0.3)])
    assert first.value[1] != second.value[1]


@pytest.mark.parametrize(
    ("item", "error", "lost"),
    [
        (("divide", 0), "ZeroDivisionError: division by zero", False),
        (("refuse", "a clear sentence"), "a clear sentence", False),  # our own errors speak for themselves
        (("leave", 5), "SystemExit: 5", False),
        (("exit", 5), "worker died with exit code 5", True),
        (("sleep", 60), "deadline of 2.0 s exceeded", True),
    ],
)
def test_a_call_that_fails_says_why_and_costs_itself_alone(pool, item, error, lost):
    bad, good = pool.map([item, ("divide", 2)])
    assert bad == CallResult(error=error, lost=lost)
    assert good == CallResult(value=0.5)


def test_a_result_that_cannot_be_sent_costs_itself_alone(pool):
    bad, good = pool.map([("closure", 1), ("divide", 2)])
    assert bad.value is None
    assert bad.error.startswith("its result cannot be sent back: ")
    assert good == CallResult(value=0.5)


def test_large_results_pass(pool):
    [outcome] = pool.map([("big", 5_000_000)])
    assert outcome.value == bytes(5_000_000)


def test_arrays_come_as_they_are_and_may_be_written_to(pool):
    [large, empty] = pool.map([("array", 3_000_000), ("array", 0)])
    assert large.value[-1] == 2_999_999
    assert (large.value.flags.writeable, len(empty.value)) == (True, 0)


def test_processor_time_is_the_calls_own_doing_and_counts_for_each_call_alone(act):
    with DeadlinePool(act, num_workers=1, deadline_s=50.0, limits=Limits(processor_s=1.0)) as pool:
        outcomes = pool.map_patiently([("sleep", 1.5), ("spin", None), ("divide", 2)])
    assert outcomes[1] == CallResult(error=OVERTIME)
    assert (outcomes[0].error, outcomes[2].value) == (None, 0.5)


def test_each_item_is_reported_once_as_it_ends(act, tmp_path):
    seen = []
    items = [("await", str(tmp_path / "go")), ("divide", 2), ("exit", 1), ("divide", 0)]

    def report(index, outcome):
        seen.append((index, outcome))
        if len(seen) == 3:
            (tmp_path / "go").touch()

    with DeadlinePool(act, num_workers=2, deadline_s=50.0) as pool:
        outcomes = pool.map(items, on_done=report)
    assert sorted(index for index, _ in seen) == [0, 1, 2, 3]
    assert seen[-1][0] == 0  # it waits for the reports of all others
    assert outcomes[0].error is None
    assert all(outcomes[index] is outcome for index, outcome in seen)


def test_items_beyond_the_budget_are_reported_too(pool):
    seen = []
    outcomes = pool.map(
        [("sleep", 60), ("sleep", 60), ("divide", 2)], budget_s=0.2, on_done=lambda index, _: seen.append(index)
    )
    assert [outcome.error for outcome in outcomes] == ["batch budget of 0.2 s exceeded"] * 3
    assert sorted(seen) == [0, 1, 2]
    assert pool.map([("divide", 2)]) == [CallResult(value=0.5)]  # no worker is left busy


def test_a_callback_that_raises_leaves_the_pool_usable(pool):
    def stop(index, outcome):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pool.map([("divide", 2), ("sleep", 60)], on_done=stop)
    assert pool.map([("divide", 4)]) == [CallResult(value=0.25)]


def test_no_items_give_no_outcomes(pool):
    assert pool.map([]) == []


def test_what_cannot_be_sent_to_workers_is_refused():
    with pytest.raises(WorkerError, match="use importable functions and classes"):
        DeadlinePool(lambda item: item, num_workers=1, deadline_s=1.0)


def test_a_closed_pool_says_so(act, pool):
    other = DeadlinePool(act, num_workers=1, deadline_s=1.0)
    assert not other.closed
    other.close()
    other.close()
    assert other.closed
    assert not pool.closed


@pytest.fixture(scope="module")
def hasty(act):
    with DeadlinePool(act, num_workers=2, deadline_s=0.4, deadline_key="a.deadline_s") as pool:
        yield pool


@pytest.mark.parametrize("cause", ["KILL", "TERM", "SEGV", "STOP"])
def test_a_worker_that_something_else_kills_or_stops_does_not_decide_about_its_item(hasty, cause, tmp_path):
    items = [("give", 1), ("strike", (str(tmp_path / "once"), cause, 1)), ("divide", 2)]
    seen = []
    outcomes = hasty.map_patiently(items, on_done=lambda index, outcome: seen.append((index, outcome.error)))
    assert [outcome.error for outcome in outcomes] == [None] * 3
    assert outcomes[1].value == "lived"
    assert sorted(seen) == [(0, None), (1, None), (2, None)]


def test_attempts_are_counted_and_the_last_one_may_take_longer(hasty, tmp_path):
    """An item that sleeps 0.6 s ends in the last attempt alone, whose deadline is 0.8 s."""
    [patient] = hasty.map_patiently([("sleep", 0.6)])
    assert patient.error is None
    counter = tmp_path / "always"
    [dead, hung] = hasty.map_patiently([("strike", (str(counter), "KILL", 99)), ("sleep", 60)])
    assert dead.error == f"worker died with exit code -9, the last of {ATTEMPTS} attempts"
    assert len(counter.read_text()) == ATTEMPTS
    assert hung.error == f"deadline of 0.8 s exceeded (2 x a.deadline_s), the last of {ATTEMPTS} attempts"
    [judged] = hasty.map_patiently([("refuse", "broken")])
    assert judged == CallResult(error="broken")


def test_a_missed_deadline_names_the_setting_that_holds_it(hasty):
    [hung] = hasty.map([("sleep", 60)])
    assert hung.error == "deadline of 0.4 s exceeded (a.deadline_s)"


def test_what_was_lost_is_tried_again_together(hasty, monkeypatch):
    """Many files that hang cost three attempts of all workers, and only the last one each for itself."""
    attempts, whole = [], DeadlinePool.map

    def counting(pool, items, **how):
        attempts.append((len(items), how["deadline_factor"]))
        return whole(pool, items, **how)

    monkeypatch.setattr(DeadlinePool, "map", counting)
    seen = []
    outcomes = hasty.map_patiently(
        [("sleep", 60), ("divide", 2), ("exit", 5), ("divide", 0)], on_done=lambda *each: seen.append(each)
    )
    assert attempts == [(4, 1.0), (2, 1.0), (2, 1.0), (1, 2.0), (1, 2.0)]
    assert sorted(index for index, _ in seen) == [0, 1, 2, 3]
    assert all(outcomes[index] is outcome for index, outcome in seen)
    assert [outcome.lost for outcome in outcomes] == [True, False, True, False]


def test_a_worker_that_is_killed_while_it_starts_or_idles_is_replaced(act):
    with DeadlinePool(act, num_workers=1, deadline_s=20.0) as pool:
        for _ in range(2):
            os.kill(pool.map_patiently([("give", 1)])[0].value[1], signal.SIGKILL)
        assert pool.map_patiently([("divide", 2)]) == [CallResult(value=0.5)]
        pool.map([("exit", 1)])  # the next worker is starting now
        os.kill(pool._workers[0].process.pid, signal.SIGKILL)
        assert pool.map_patiently([("divide", 4)]) == [CallResult(value=0.25)]


def test_a_worker_that_ends_by_itself_before_it_is_ready_is_not_tried_again(act):
    with DeadlinePool(act, num_workers=1, deadline_s=20.0) as pool:
        pool._workers[0].ready = False
        os.kill(pool._workers[0].process.pid, signal.SIGSTOP)
        pool._workers[0].connection.send(("exit", 3))
        os.kill(pool._workers[0].process.pid, signal.SIGCONT)
        with pytest.raises(WorkerError, match="a worker died at its start with exit code 3"):
            pool.map([("divide", 2)])
    assert pool.closed


MIB = 2**20


@pytest.fixture
def bounded(act):
    with DeadlinePool(act, num_workers=1, deadline_s=20.0, limits=Limits(memory_bytes=64 * MIB)) as pool:
        yield pool


@linux
def test_a_worker_that_keeps_more_than_half_of_its_memory_is_replaced_and_no_result_lost(bounded):
    """Large results are no memory that is kept."""
    hoards = bounded.map([("hoard", 12 * MIB)] * 6)
    assert [outcome.error for outcome in hoards] == [None] * 6
    pids = [outcome.value for outcome in hoards]
    assert pids[0] == pids[1] == pids[2]  # 36 MiB
    assert pids[3] == pids[4] == pids[5] != pids[0]
    arrays = bounded.map([("array", 5 * MIB), ("need", 0)] * 3)  # of 40 MiB each
    assert [len(outcome.value) for outcome in arrays[::2]] == [5 * MIB] * 3
    assert len({outcome.value for outcome in arrays[1::2]}) == 1
    assert arrays[1].value not in pids


@linux
def test_what_a_call_may_take_does_not_depend_on_earlier_calls(bounded):
    kept, small = bounded.map([("hoard", 24 * MIB), ("need", 20 * MIB)])
    assert small.value == kept.value
    [large] = bounded.map([("need", 48 * MIB)])  # too much for what the first worker has left
    assert large.error is None
    assert large.value != kept.value
    too_large, after = bounded.map([("need", 80 * MIB), ("need", 0)])
    assert too_large == CallResult(error="memory limit exceeded")
    assert after.error is None
    assert after.value not in (kept.value, large.value)  # one that ran out of memory serves no more


@linux
def test_an_error_counts_only_where_earlier_calls_left_enough_memory(bounded):
    """A shortage may pass for another error: here the call does."""
    first, error, after = bounded.map([("hoard", 4 * MIB), ("disguise", 80 * MIB), ("need", 0)])
    assert error == CallResult(error="ValueError: a frame is damaged")
    assert after.value == first.value  # a file that is damaged costs no new worker
    hoard, large, after = bounded.map([("hoard", 20 * MIB), ("disguise", 48 * MIB), ("need", 0)])
    assert hoard.value == first.value
    assert large.error is None
    assert large.value == after.value != first.value
