import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from lightning_mmrl.errors import ConfigError, RewardError
from lightning_mmrl.rewards.compose import WeightedReward
from lightning_mmrl.rewards.pool import InlineRewards, RewardPool
from lightning_mmrl.rewards.think_answer_format import ThinkAnswerFormat
from lightning_mmrl.settings.algorithm import RewardSettings
from lightning_mmrl.types.records import Completion, Sample

HERE = Path(__file__).parent
pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def hostile():
    """Spawned workers get this path too."""
    sys.path.insert(0, str(HERE))
    import hostile_rewards

    yield hostile_rewards
    sys.path.remove(str(HERE))


@pytest.fixture(scope="module")
def pool(hostile):
    with RewardPool(hostile.Obedient(), RewardSettings(num_workers=2, deadline_s=1.0, batch_budget_s=30.0)) as pool:
        yield pool


def score(rewards, *texts):
    """Scores the texts as one group each of one completion."""
    samples = [Sample(id=str(index), messages=()) for index in range(len(texts))]
    groups = [[Completion(text=text, num_tokens=1, truncated=False)] for text in texts]
    return [group[0] for group in rewards.score(samples, groups)]


def is_running(pid):
    """True for a process that is neither gone nor a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def ends(pid, within_s=5.0):
    until = time.monotonic() + within_s
    while is_running(pid) and time.monotonic() < until:
        time.sleep(0.02)
    return not is_running(pid)


def worker_pids():
    return {child.pid for child in multiprocessing.active_children() if child.name == "mmrl-reward"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("sleep 60", "deadline of 1.0 s exceeded"),
        ("spin", "deadline of 1.0 s exceeded"),
        ("exit 3", "worker died with exit code 3"),
        ("exit 0", "worker died with exit code 0"),
        ("leave 4", "SystemExit: 4"),
        ("suicide", "worker died with exit code -9"),
        ("fail bad luck", "ValueError: bad luck"),
        ("nothing", "returned None, not a Score"),
        ("no_such_verb", "AttributeError"),
    ],
)
def test_a_failing_item_is_invalid_and_harms_no_other(pool, text, reason):
    bad, *good = score(pool, text, "give 1", "give 2", "give 3")
    assert not bad.valid
    assert reason in bad.reason
    assert [each.total for each in good] == [1.0, 2.0, 3.0]
    assert all(each.valid for each in good)


@pytest.fixture(scope="module")
def limited(hostile):
    reward = WeightedReward(
        components={"fine": hostile.fine, "odd": hostile.Misbehaves()},
        settings=RewardSettings(weights={"fine": 1.0, "odd": 1.0}),
    )
    with RewardPool(
        reward, RewardSettings(num_workers=1, deadline_s=3.0, soft_deadline_s=1.0, memory_limit_mb=500)
    ) as pool:
        yield pool


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("sleep", "odd: soft deadline of 1.0 s exceeded"),
        ("spin", "odd: soft deadline of 1.0 s exceeded"),
        ("block", "odd: deadline of 3.0 s exceeded (rewards.deadline_s)"),
        ("swallow", "odd: deadline of 3.0 s exceeded (rewards.deadline_s)"),
        ("nan", "odd: returned nan, not a finite number"),
        ("fail", "odd: ValueError: bad luck"),
        ("exit", "odd: worker died with exit code 3"),
        ("crash", "odd: worker died with exit code -11"),
    ],
)
def test_a_part_that_fails_costs_its_item_alone_and_is_named(limited, text, reason):
    before, bad, after = score(limited, "good", text, "good")
    assert (bad.valid, bad.total, bad.failed, bad.reason) == (False, 0.0, "odd", reason)
    assert [each.total for each in (before, after)] == [1.5, 1.5]


@pytest.mark.parametrize("text", ["gigabytes", "grow"])
def test_memory_costs_its_item_alone(hostile, text):
    """With time to take it: on a busy machine growing takes longer than a second."""
    reward = WeightedReward(components={"odd": hostile.Misbehaves()}, settings=RewardSettings(weights={"odd": 1.0}))
    with RewardPool(
        reward, RewardSettings(num_workers=1, deadline_s=40.0, soft_deadline_s=30.0, memory_limit_mb=500)
    ) as pool:
        before, bad, after = score(pool, "good", text, "good")
    assert (bad.valid, bad.total, bad.failed, bad.reason) == (False, 0.0, "odd", "odd: memory limit exceeded")
    assert before.valid
    assert after.valid


def test_parts_that_exit_cost_no_process(limited):
    """Or each completion would cost two starts of a worker, seconds each."""
    score(limited, "good")
    pid = limited._pool._workers[0].process.pid
    assert {each.reason for each in score(limited, *["leave"] * 20)} == {"odd: SystemExit: 3"}
    assert limited._pool._workers[0].process.pid == pid


def test_a_soft_deadline_costs_no_process_and_a_hard_one_does(limited):
    score(limited, "good")
    [worker] = limited._pool._workers
    pid = worker.process.pid
    score(limited, "sleep", "good")
    assert limited._pool._workers[0].process.pid == pid
    score(limited, "block")
    assert limited._pool._workers[0].process.pid != pid


@pytest.mark.slow
def test_without_a_memory_limit_memory_is_free(hostile):
    """Or the test above would pass on a machine that has no memory."""
    reward = WeightedReward(components={"odd": hostile.Misbehaves()}, settings=RewardSettings(weights={"odd": 1.0}))
    # A busy machine takes its time for 4 GB.
    settings = RewardSettings(num_workers=1, deadline_s=50.0, soft_deadline_s=None, memory_limit_mb=None)
    with RewardPool(reward, settings) as pool:
        assert score(pool, "gigabytes")[0].total == 4e9


def test_an_exception_that_cannot_be_pickled_is_a_reason(pool):
    assert "UnpicklableError" in score(pool, "fail_badly")[0].reason


def test_the_pool_has_full_strength_after_failures(hostile, tmp_path):
    with RewardPool(hostile.Obedient(), RewardSettings(num_workers=2, deadline_s=10.0)) as pool:
        assert not any(each.valid for each in score(pool, "exit 3", "suicide", "exit 3"))
        assert all(
            each.valid for each in score(pool, f"meet {tmp_path}/1 {tmp_path}/2", f"meet {tmp_path}/2 {tmp_path}/1")
        )


def test_a_worker_that_cannot_be_replaced_closes_the_pool(hostile):
    with RewardPool(hostile.Obedient(), RewardSettings(num_workers=1)) as pool:
        start = pool._pool._new_worker
        pool._pool._new_worker = partial(start.func, pickle.dumps(hostile.FailsToLoad()), *start.args[1:])
        with pytest.raises(RewardError, match="no weights"):
            score(pool, "exit 3", "give 1")
        with pytest.raises(RewardError, match="closed"):
            score(pool, "give 1")


def test_scores_keep_the_shape_and_order_of_ragged_groups(pool):
    samples = [Sample(id=name, messages=()) for name in "abc"]
    texts = [["give 0", "sleep 0.2", "give 2"], [], ["give 3"]]
    groups = [[Completion(text=text, num_tokens=1, truncated=False) for text in group] for group in texts]
    totals = [[each.total for each in group] for group in pool.score(samples, groups)]
    assert totals == [[0.0, 1.0, 2.0], [], [3.0]]
    assert pool.score([], []) == []


def test_a_group_must_belong_to_a_sample(pool):
    with pytest.raises(ValueError, match="shorter"):
        pool.score([Sample(id="a", messages=()), Sample(id="b", messages=())], [[]])


def test_an_item_that_cannot_be_sent_is_invalid(pool):
    samples = [Sample(id="a", messages=(), extras={"open": lambda: None}), Sample(id="b", messages=())]
    groups = [[Completion(text="give 1", num_tokens=1, truncated=False)]] * 2
    (unsent,), (sent,) = pool.score(samples, groups)
    assert "cannot be sent" in unsent.reason
    assert sent.valid


def test_a_worker_that_died_while_idle_costs_nothing(pool):
    while not all(worker.ready for worker in pool._pool._workers):
        score(pool, "sleep 0.1", "sleep 0.1")
    for worker in pool._pool._workers:
        assert worker.ready
        os.kill(worker.process.pid, signal.SIGKILL)
        assert worker.connection.poll(5)  # end of file: its last thread is gone
    assert [each.total for each in score(pool, "give 1", "give 2", "give 3")] == [1.0, 2.0, 3.0]


def test_a_worker_that_something_else_kills_costs_no_score(hostile):
    with RewardPool(hostile.Obedient(), RewardSettings(num_workers=1, deadline_s=20.0)) as pool:
        [worker] = pool._pool._workers
        killer = threading.Timer(0.3, os.kill, (worker.process.pid, signal.SIGKILL))
        killer.start()
        scores = score(pool, "sleep 1", "give 2")
        killer.join()
        assert pool._pool._workers[0] is not worker
    assert [each.valid for each in scores] == [True, True]


def test_an_item_runs_in_a_main_thread(pool):
    assert score(pool, "thread_name")[0].valid


def test_what_a_verifier_started_dies_with_its_worker(pool, tmp_path):
    assert not score(pool, f"spawn {tmp_path / 'pid'}")[0].valid
    assert ends(int((tmp_path / "pid").read_text()))


def test_results_do_not_depend_on_the_number_of_workers(hostile, pool):
    texts = [f"give {index}" for index in range(20)] + ["fail x", "exit 3", "nothing"] + ["give 7"] * 5
    with RewardPool(hostile.Obedient(), RewardSettings(num_workers=1, deadline_s=5.0)) as single:
        assert score(single, *texts) == score(pool, *texts)


def test_the_batch_budget_bounds_a_call(hostile):
    with RewardPool(hostile.Obedient(), RewardSettings(num_workers=1, deadline_s=30.0, batch_budget_s=0.6)) as pool:
        start = time.monotonic()
        scores = score(pool, "give 1", "sleep 60", "give 2")
        assert time.monotonic() - start < 10
        assert scores[0].valid
        assert [each.reason for each in scores[1:]] == ["batch budget of 0.6 s exceeded"] * 2
        pool._batch_budget_s = 20.0
        assert score(pool, "give 5")[0].total == 5.0  # no result of the call before


def test_close_leaves_no_process_and_ends_scoring(hostile):
    before = worker_pids()
    pool = RewardPool(hostile.Obedient(), RewardSettings(num_workers=2, deadline_s=0.3))
    score(pool, "spin", "spin")
    ours = worker_pids() - before
    assert len(ours) == 2
    pool.close()
    pool.close()
    assert not any(is_running(pid) for pid in ours)
    with pytest.raises(RewardError, match="closed"):
        score(pool, "give 1")


def test_a_killed_run_takes_its_busy_workers_along(tmp_path):
    script = tmp_path / "run.py"
    script.write_text(
        textwrap.dedent(f"""
        import sys, threading
        sys.path[:0] = [{str(HERE)!r}]
        from hostile_rewards import Obedient
        from lightning_mmrl.rewards.pool import RewardPool
        from lightning_mmrl.settings.algorithm import RewardSettings
        from lightning_mmrl.types.records import Completion, Sample
        if __name__ == "__main__":
            pool = RewardPool(Obedient(), RewardSettings(num_workers=1, deadline_s=60.0))
            print(pool._pool._workers[0].process.pid, flush=True)
            pool.score([Sample(id="a", messages=())], [[Completion(text="spin", num_tokens=1, truncated=False)]])
        """)
    )
    root = str(HERE.parents[2])
    run = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": root}
    )
    with run:
        worker = int(run.stdout.readline())
        time.sleep(0.3)
        assert is_running(worker)
        run.kill()
        run.wait()
        assert ends(worker)


def test_a_reward_that_cannot_be_pickled_is_refused():
    with pytest.raises(ConfigError, match="importable"):
        RewardPool(
            WeightedReward(
                components={"a": lambda sample, completion: 1.0}, settings=RewardSettings(weights={"a": 1.0})
            ),
            RewardSettings(num_workers=2),
        )


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("FailsToLoad", "FileNotFoundError: no weights"),
        ("LeavesOnLoad", "SystemExit: 0"),
        ("DiesOnLoad", "exit code 7"),
    ],
)
def test_a_reward_that_cannot_be_loaded_is_an_error_at_once(hostile, name, sentence):
    before = worker_pids()
    with pytest.raises(RewardError, match=sentence):
        RewardPool(getattr(hostile, name)(), RewardSettings(num_workers=2))
    assert worker_pids() <= before


@pytest.mark.parametrize("knob", ["num_workers", "deadline_s", "soft_deadline_s", "batch_budget_s", "memory_limit_mb"])
def test_numbers_out_of_range_are_refused(hostile, knob):
    with pytest.raises(ConfigError, match=rf"rewards\.{knob} is 0"):
        RewardPool(hostile.Obedient(), RewardSettings(**{knob: 0}))


def test_inline_rewards_score_like_the_pool(hostile, pool):
    texts = ["give 1", "fail bad luck", "nothing", "fail_badly", "give 2"]
    with InlineRewards(hostile.Obedient()) as rewards:
        inline = score(rewards, *texts)
    pooled = score(pool, *texts)
    assert [(each.total, each.valid) for each in inline] == [(each.total, each.valid) for each in pooled]
    assert [each.reason for each in inline[:3]] == [each.reason for each in pooled[:3]]


def test_the_shipped_rewards_run_in_workers():
    reward = WeightedReward(
        components={"format": ThinkAnswerFormat()}, settings=RewardSettings(weights={"format": 0.5})
    )
    with RewardPool(reward, RewardSettings(num_workers=1)) as pool:
        good, bad = score(pool, "<think>a</think><answer>b</answer>", "b")
    assert (good.total, bad.total) == (0.5, 0.0)
    assert good.valid
    assert bad.valid
