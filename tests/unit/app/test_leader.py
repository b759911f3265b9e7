"""The other ranks do what rank 0 orders, in its order; none is left waiting."""

from pathlib import Path
from queue import Queue

import pytest

from lightning_mmrl.app.leader import Follower, Leader
from lightning_mmrl.protocols.ranks import ALONE
from lightning_mmrl.settings.stage import StageSettings
from lightning_mmrl.training.interruption import Interruption
from lightning_mmrl.types.records import StageSpec

SPEC = StageSpec(name="reason", index=0, settings=StageSettings(kind="rl", start_from="base"), content={}, digest="")


class Group:
    """One rank of a group that talks through a queue."""

    def __init__(self, rank, queue):
        self.rank, self._queue = rank, queue
        self.interruption, self.ranks = Interruption(), ALONE

    def broadcast(self, item):
        if self.rank:
            return self._queue.get(timeout=5)
        self._queue.put(item)
        return item


class Job:
    """A stage that writes down what is done with it."""

    def __init__(self, done, failure=None):
        self.done, self.failure = done, failure

    def run(self):
        if self.failure is not None:
            raise self.failure
        self.done.append("run")
        return {"loss": 1.0}

    def export(self, artifact, directory):
        self.done.append(("export", artifact, directory))
        return {"labels": []}


class Rank:
    """A rank's factory and evaluator."""

    def __init__(self, rank, queue, failure=None):
        self.done, self.group, self.failure = [], Group(rank, queue), failure

    def build(self, spec, inputs, directory, run):
        self.done.append(("build", spec.name, inputs, directory))
        return Job(self.done, self.failure)

    def evaluate(self, checkpoint, directory, stage, run):
        self.done.append(("evaluate", checkpoint, directory, stage))
        return {"test/uar": 0.5}


@pytest.fixture
def ranks():
    queue = Queue()
    return Rank(0, queue), Rank(1, queue)


def lead(rank):
    with Leader(rank.group, rank.build, rank.evaluate) as leader:
        job = leader.build_stage(SPEC, {"weights": Path("base")}, Path("folder"), None)
        assert job.run() == {"loss": 1.0}
        assert job.export("handoff", Path("handoff")) == {"labels": []}
        assert leader.evaluate(Path("handoff"), Path("evaluation"), "reason", None) == {"test/uar": 0.5}


def follow(rank):
    Follower(rank.group, [SPEC], rank.build, rank.evaluate).run()


def test_every_rank_does_the_same_in_the_same_order(ranks):
    first, second = ranks
    lead(first)
    follow(second)
    assert second.done == first.done
    assert [done[0] if isinstance(done, tuple) else done for done in first.done] == [
        "build",
        "run",
        "export",
        "evaluate",
    ]


def test_the_others_are_told_to_end_when_rank_0_fails_between_orders(ranks):
    first, second = ranks
    with pytest.raises(ValueError, match="no handoff"), Leader(first.group, first.build, first.evaluate):
        raise ValueError("no handoff")
    follow(second)
    assert second.done == []


def test_nothing_is_sent_behind_an_order_that_failed(ranks):
    """The others are within it: what they hear next must not be taken for an answer."""
    first, _ = ranks
    first.failure = OSError("no space left")
    with pytest.raises(OSError, match="no space"):
        lead(first)
    sent = [first.group._queue.get_nowait().kind]
    assert sent == ["run"]
    assert first.group._queue.empty()


def test_the_other_ranks_export_every_artifact_from_the_same_inputs(ranks):
    first, second = ranks
    inputs = {"weights": Path("base"), "data.sources.own": Path("own")}
    with Leader(first.group, first.build, first.evaluate) as leader:
        job = leader.build_stage(SPEC, inputs, Path("folder"), None)
        job.run()
        for name in ("rollouts", "own"):
            job.export(name, Path(name))
    follow(second)
    exports = [("export", name, Path(name)) for name in ("rollouts", "own")]
    assert second.done == first.done == [("build", "reason", inputs, Path("folder")), "run", *exports]
