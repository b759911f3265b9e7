"""A stage that samples: whole parts, rows in the order of the data, and noise that depends on seed and prompt alone."""

import threading
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import omni
import pytest
from torch.utils.data import DataLoader

from lightning_mmrl.data.collate import collate_prompts
from lightning_mmrl.data.rollout_table import read_table
from lightning_mmrl.data.sampler import Share
from lightning_mmrl.errors import RewardError, RolloutError, StageError
from lightning_mmrl.protocols.ranks import ALONE
from lightning_mmrl.rewards.compose import WeightedReward
from lightning_mmrl.rewards.pool import InlineRewards
from lightning_mmrl.settings.algorithm import RewardSettings
from lightning_mmrl.settings.data import StageDataSettings
from lightning_mmrl.settings.sample import SampleSettings
from lightning_mmrl.settings.stage import TrainerSettings
from lightning_mmrl.stages.costs import Rates
from lightning_mmrl.stages.sample import PartStore, SampleModule, SamplePlan
from lightning_mmrl.training.trainer import evaluation_trainer

NAMES = [f"p{number}" for number in (3, 1, 4, 15, 9, 2, 6, 5, 35, 8)]
"""In an order that is not that of the names."""
CONTENTS = ("Which emotion? angry, user", "<audio>angry", "Which emotion?")


class Even:
    """Right if the text has an even number of letters; fails on some prompts."""

    def __init__(self, fails=()):
        self.fails = fails

    def __call__(self, sample, completion):
        if sample.id in self.fails:
            raise ValueError("cannot be judged")
        return float(len(completion.text) % 2 == 0)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return omni.load(omni.build(tmp_path_factory.mktemp("omni")), temperature=0.7)


@pytest.fixture(scope="module")
def items(model):
    return [omni.encoded(model[0], name, CONTENTS[index % 3], index % 3) for index, name in enumerate(NAMES)]


@dataclass(frozen=True, kw_only=True)
class How:
    """`num` prompts, `size` at once, `k` answers each; prompts whose scores fail, and the share of them that may."""

    num: int = 10
    size: int = 3
    k: int = 4
    seed: int = 7
    fails: tuple[str, ...] = ()
    rate: float = 0.5
    ranks: Any = ALONE


class Stage:
    """A module with its loader and its parts."""

    def __init__(self, model, items, folder, how):
        encoder, policy = model
        rewards = RewardSettings(weights={"even": 1.0}, pass_component="even", max_invalid_rate=how.rate)
        data = StageDataSettings(batch_size=how.size)
        settings = SampleSettings(kind="sample", num_completions=how.k, data=data, rewards=rewards)
        self.items, self.pad, self.folder = items[: how.num], encoder.pad_token_id, folder
        places = {item.sample.id: place for place, item in enumerate(self.items)}
        self.plan = SamplePlan(settings=settings, seed=how.seed, places=places)
        self.parts, self.ranks = PartStore(directory=folder / "state"), how.ranks
        self.module = SampleModule(
            policy,
            omni.engine(encoder, policy, max_new_tokens=6),
            InlineRewards(WeightedReward(components={"even": Even(how.fails)}, settings=rewards), rewards),
            plan=self.plan,
            parts=self.parts,
            ranks=how.ranks,
        )

    def loader(self, first=0):
        share = Share(rank=self.ranks.rank, world_size=self.ranks.world_size, repeats=True)
        size = self.plan.settings.data.batch_size
        batches = [self.items[start : start + size] for start in range(first * size, len(self.items), size)]
        return DataLoader([collate_prompts(share.of(batch), self.pad) for batch in batches], batch_size=None)

    def run(self):
        """As the job does: goes on after the parts that are there."""
        first = self.module.num_parts = self.parts.num_parts()
        trainer = evaluation_trainer(TrainerSettings(accelerator="cpu"), directory=self.folder, callbacks=[])
        trainer.test(self.module, dataloaders=self.loader(first), verbose=False)
        return self

    def steps(self):
        """As the trainer does, without a trainer, so that several ranks may do so in one process."""
        for number, batch in enumerate(self.loader()):
            self.module.test_step(batch, number)
        self.module.on_test_epoch_end()

    @property
    def files(self):
        return {path.name: path.read_bytes() for path in sorted(self.parts.directory.glob("part-*"))}

    @property
    def rows(self):
        paths = [self.parts.path(number) for number in range(self.plan.num_batches)]
        return [row for path in paths for row in read_table(path)]


@pytest.fixture
def stage(model, items, tmp_path):
    return lambda name="stage", **how: Stage(model, items, tmp_path / name, How(**how))


def test_every_prompt_has_k_scored_answers_in_the_order_of_the_data(stage):
    found = stage().run()
    assert list(found.files) == [f"part-00000{number}.jsonl" for number in range(4)]
    assert [row.sample.id for row in found.rows] == NAMES
    for row in found.rows:
        assert len(row.completions) == len(row.scores) == 4
        assert row.right == tuple(len(each.text) % 2 == 0 for each in row.completions)
        assert row.pass_rate == sum(row.right) / 4
    texts = {each.text for row in found.rows for each in row.completions}
    assert len(texts) > 20


def test_the_table_depends_on_no_batch_size_and_on_the_seed(stage):
    expected = stage().run().rows
    for size in (1, 7, 10, 64):
        assert stage(f"size{size}", size=size).run().rows == expected
    other = stage("seed", seed=8).run().rows
    assert [row.completions for row in other] != [row.completions for row in expected]
    fewer = stage("fewer", k=2, num=5).run().rows
    assert [row.completions for row in fewer] == [row.completions[:2] for row in expected[:5]]


@pytest.mark.parametrize(("num", "k", "size"), [(1, 1, 1), (1, 1, 8), (2, 1, 1), (3, 3, 3)])
def test_few_prompts_and_one_completion(stage, num, k, size):
    found = stage(num=num, k=k, size=size).run()
    assert [(row.sample.id, len(row.completions)) for row in found.rows] == [(name, k) for name in NAMES[:num]]
    assert len(found.files) == found.plan.num_batches == -(-num // size)


@pytest.mark.parametrize("left", [0, 1, 3])
def test_a_stage_goes_on_after_the_parts_that_are_whole(stage, left):
    expected = stage("expected").run().files
    first = stage().run()
    for number in range(left, 4):
        first.parts.path(number).unlink()
    half = first.parts.path(left).with_name(f"{first.parts.path(left).name}.tmp")
    half.write_bytes(expected[first.parts.path(left).name][:-20])
    kept = {name: path.stat().st_mtime_ns for name, path in ((path.name, path) for path in half.parent.glob("*.jsonl"))}
    again = stage().run()
    assert again.files == expected
    assert {name: (half.parent / name).stat().st_mtime_ns for name in kept} == kept
    assert len(kept) == left


def test_prompts_that_were_left_out_have_no_place_in_the_parts(stage):
    """The plan knows of them as the loader finds them, so at the end it asks for as many parts as there are."""
    found, missing, steps = stage(num=10, size=3), [], []
    bad = {NAMES[1], NAMES[9]}

    def batches():
        usable = [item for item in found.items if item.sample.id not in bad]
        for start in range(0, len(usable), 3):
            steps.append(("planned", found.plan.num_batches))
            missing[:] = [(item.sample, "broken") for item in found.items if item.sample.id in bad][: 1 + start // 6]
            yield collate_prompts(usable[start : start + 3], found.pad)

    def before():
        steps.append(("written", found.parts.num_parts()))

    found.plan = found.module._plan = replace(found.plan, left_out=lambda: missing)
    found.parts = found.module._parts = replace(found.parts, before=before)
    for number, batch in enumerate(batches()):
        found.module.test_step(batch, number)
    found.module.on_test_epoch_end()
    assert [num for what, num in steps if what == "planned"] == [4, 3, 3]
    assert [num for what, num in steps if what == "written"] == [0, 1, 2]
    assert found.plan.usable() == [row.sample.id for row in found.rows] == [name for name in NAMES if name not in bad]


def test_parts_count_up_to_the_first_gap(stage):
    found = stage().run()
    found.parts.path(1).unlink()
    assert found.parts.num_parts() == 1
    assert stage().run().files == stage("expected").run().files


def test_a_loop_that_ends_early_is_no_finished_stage(stage):
    found = stage()
    batch = collate_prompts(found.items[:3], found.pad)
    trainer = evaluation_trainer(TrainerSettings(accelerator="cpu"), directory=found.folder, callbacks=[])
    with pytest.raises(StageError, match="state has 1 of 4 parts: its loop ended early"):
        trainer.test(found.module, dataloaders=DataLoader([batch], batch_size=None), verbose=False)


def test_scores_that_fail_are_kept_and_too_many_end_the_stage(stage):
    found = stage(fails=("p1",), rate=0.5).run()
    row = found.rows[1]
    assert [score.valid for score in row.scores] == [False] * 4
    assert row.pass_rate is None
    assert row.scores[0].reason == "even: ValueError: cannot be judged"
    with pytest.raises(RewardError, match=r"4 of 12 scores .* are invalid \(even 4\), more than .* 0.25 allows"):
        stage("strict", fails=("p1",), rate=0.25).run()


class Talk:
    """Lets threads exchange values as ranks do."""

    def __init__(self, world_size):
        self.barrier, self.items = threading.Barrier(world_size, timeout=20), [None] * world_size

    def gather(self, rank, item):
        self.items[rank] = item
        self.barrier.wait()
        found = list(self.items)
        self.barrier.wait()
        return found


class Rank:
    """One of several threads; implements what the stage asks of `Ranks`."""

    def __init__(self, talk, rank, world_size):
        self.rank, self.world_size, self.lockstep, self._talk = rank, world_size, False, talk

    def gather(self, item):
        return self._talk.gather(self.rank, item)


def together(stage, world_size, break_rank=None, **how):
    """Runs a stage on several ranks; returns the stage and what each rank raised."""
    talk, raised = Talk(world_size), [None] * world_size
    # One policy may not be used by two threads at once.
    lock = threading.Lock()
    stages = [stage("ranks", ranks=Rank(talk, rank, world_size), **how) for rank in range(world_size)]

    def generate(original, rank, prompts, **more):
        with lock:
            if rank == break_rank:
                raise RolloutError("no memory is left")
            return original(prompts, **more)

    def run(rank):
        engine = stages[rank].module._engine
        engine.generate = partial(generate, engine.generate, rank)
        try:
            stages[rank].steps()
        except (RolloutError, RewardError) as error:
            raised[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world_size)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(60)
    return stages[0], raised


@pytest.mark.parametrize(("num", "size", "world_size"), [(10, 4, 2), (10, 6, 3), (1, 2, 2), (7, 2, 2)])
def test_several_ranks_make_the_same_table(stage, num, size, world_size):
    """The last batches have fewer prompts than ranks."""
    expected = stage(size=size, num=num).run().files
    found, raised = together(stage, world_size, size=size, num=num)
    assert raised == [None] * world_size
    assert found.files == expected


@pytest.mark.parametrize("broken", [0, 1])
def test_a_rank_that_cannot_sample_ends_all_of_them(stage, broken):
    found, raised = together(stage, 2, break_rank=broken, size=4)
    assert [str(error) for error in raised] == ["no memory is left"] * 2
    assert not found.parts.directory.exists()


def test_too_many_failed_scores_of_one_rank_end_all_of_them(stage):
    found, raised = together(stage, 2, size=4, fails=("p3", "p1"), rate=0.4)
    assert [type(error) for error in raised] == [RewardError] * 2
    assert str(raised[0]) == str(raised[1])
    assert not found.parts.directory.exists()


def test_a_model_without_finite_probabilities_is_refused_by_the_name_of_a_prompt(stage, monkeypatch):
    found = stage()
    generate = found.module._engine.generate

    def broken(prompts, **how):
        rollout = generate(prompts, **how)
        spoiled = rollout.sampler_logprobs.clone()
        spoiled[5, 0] = float("nan")
        return replace(rollout, sampler_logprobs=spoiled)

    monkeypatch.setattr(found.module._engine, "generate", broken)
    with pytest.raises(RolloutError, match="no finite probabilities for sample p1:"):
        found.run()


def watched(found):
    """The stage with its costs reported, as the job has them; the reports are filled while it runs."""
    reports = []
    found.module.num_parts = found.parts.num_parts()
    found.module.watch(Rates(), lambda: 0.0, lambda number, metrics: reports.append((number, metrics)))
    return found, reports


def test_costs_go_on_with_the_parts_and_count_each_batch_once(stage):
    """Two of four parts are left, since the process was killed between the costs of the third part and the part."""
    first, reports = watched(stage())
    first.run()
    assert [number for number, _ in reports] == [1, 2, 3, 4]
    assert sum(metrics["tokens/generated"] for _, metrics in reports) == first.module.costs.total.tokens["generated"]
    state = first.module.costs.state_dict()
    first.parts.write_costs(
        state | {name: {**state[name], "num_steps": n} for name, n in (("total", 3), ("before", 2))}
    )
    for number in (2, 3):
        first.parts.path(number).unlink()
    again, reports = watched(stage())
    again.run()
    assert again.module.costs.total.num_steps == 4
    assert [number for number, _ in reports] == [3, 4]
    for _, metrics in reports:
        assert metrics["tokens/generated"] > 0
        assert metrics["tokens/completion"] == 0
        assert {"time/generate_s", "time/score_s", "time/step_s"} <= metrics.keys()


def test_costs_of_a_stage_whose_parts_are_all_there_are_known(stage):
    first = stage().run()
    again, reports = watched(stage())
    assert again.module.costs.total.num_steps == 4
    lengths = [completion.num_tokens for row in first.rows for completion in row.completions]
    assert again.module.costs.total.tokens["generated"] == sum(lengths)
    assert reports == []


@pytest.mark.parametrize(
    "content", [b'{"total": {"num_st', b"\xff", b"null", b"[1]", b'{"total": {}}', b'{"total": null, "before": 3}'],
    ids=["cut", "bytes", "null", "list", "keys", "values"],
)  # fmt: skip
def test_damaged_costs_stop_no_stage_and_are_said_to_be_lost(stage, content, caplog):
    first, _ = watched(stage())
    first.run()
    for number in (2, 3):
        first.parts.path(number).unlink()
    (first.parts.directory / "costs.json").write_bytes(content)
    again, reports = watched(stage())
    again.run()
    assert again.rows == first.rows
    assert [number for number, _ in reports] == [3, 4]
    assert again.module.costs.total.num_steps == 2
    [said] = [record.message for record in caplog.records if "costs.json" in record.message]
    assert said.endswith("; the costs of the stage lack the batches up to here")
    known, _ = watched(stage())
    assert known.module.costs.total.num_steps == 2
