"""Costs of a stage: phases that add up, waiting by rank and phase, tokens counted by hand, totals across a resume."""

import random
from contextlib import nullcontext
from dataclasses import replace

import omni
import pytest
import torch
from torch.utils.data import DataLoader

from lightning_mmrl.algorithms.advantages.group_normalized import GroupNormalized
from lightning_mmrl.algorithms.losses.aggregation import TokenMean
from lightning_mmrl.algorithms.losses.ppo_clip import PPOClip
from lightning_mmrl.algorithms.schedules import WarmupConstant
from lightning_mmrl.data.collate import EncodedSample, collate_targets
from lightning_mmrl.protocols.ranks import ALONE
from lightning_mmrl.rewards.compose import WeightedReward
from lightning_mmrl.rewards.pool import InlineRewards
from lightning_mmrl.settings.algorithm import AlgorithmSettings, RewardSettings, UpdateSettings
from lightning_mmrl.settings.sft import SftSettings
from lightning_mmrl.settings.stage import StageSettings, TrainerSettings
from lightning_mmrl.stages.algorithm import Algorithm
from lightning_mmrl.stages.context import OptimizerSettings, StageContext
from lightning_mmrl.stages.costs import CostMeter, HostTimer, Rates, TimedRanks, step_metrics, timed
from lightning_mmrl.stages.grpo import GRPOModule
from lightning_mmrl.stages.sft import SFTModule
from lightning_mmrl.training.trainer import training_trainer
from lightning_mmrl.types.costs import OTHER, SCORE, UPDATE, WAIT, RankCosts, StageCosts

CPU = torch.device("cpu")


class Clock:
    """A clock that a test moves; with `tick`, every look at it takes so many seconds."""

    def __init__(self, tick=0.0):
        self.time, self.tick = 100.0, tick

    def __call__(self):
        self.time += self.tick
        return self.time

    def sleep(self, seconds):
        self.time += seconds


class Two:
    """Rank 0 of two: the other rank has the costs of `other`."""

    rank, world_size, lockstep = 0, 2, False

    def __init__(self, clock=None, other=None, slow=0.0):
        self.clock, self.other, self.slow = clock, other, slow

    def wait(self):
        if self.clock is not None:
            self.clock.sleep(self.slow)

    def gather(self, item):
        self.wait()
        return [item, self.other or item]

    def sum(self, values):
        self.wait()
        return values

    def max(self, value):
        self.wait()
        return value

    def any(self, flags):
        self.wait()
        return list(flags)

    def sum_gradients(self, parameters):
        self.wait()


def started(clock, ranks=ALONE, **rates):
    meter = CostMeter(Rates(**rates), HostTimer(now=clock))
    meter.start(CPU, ranks)
    return meter


def test_a_phase_within_another_is_not_part_of_it():
    clock = Clock()
    meter = started(clock)
    clock.sleep(1)
    with meter.phase("generate"):
        clock.sleep(10)
        with meter.phase("encode"):
            clock.sleep(100)
        clock.sleep(1000)
    with meter.phase("generate"):
        clock.sleep(10_000)
    metrics = meter.close()
    assert metrics["time/generate_s"] == 11_010
    assert metrics["time/encode_s"] == 100
    assert metrics["time/other_s"] == 1
    assert metrics["time/step_s"] == 11_111


@pytest.mark.parametrize("seed", range(20))
def test_the_phases_of_a_step_add_up_to_the_time_between_two_closes(seed):
    clock, numbers = Clock(), random.Random(seed)
    meter, begin = started(clock), 100.0

    def nested(depth):
        for _ in range(numbers.randrange(4)):
            clock.sleep(numbers.random())
            with meter.phase(numbers.choice(["data", "generate", "optimize", WAIT])):
                clock.sleep(numbers.random())
                if depth:
                    nested(depth - 1)
            clock.sleep(numbers.random())

    for _ in range(3):
        nested(3)
        meter.moved("data", numbers.random())
        metrics = meter.close()
        phases = [seconds for key, seconds in metrics.items() if key.endswith("_s") and key != "time/step_s"]
        assert min(phases) >= 0
        # Sums of a few hundred doubles of about 1: an error of 1e-13 each at most.
        assert sum(phases) == pytest.approx(clock.time - begin, abs=1e-9)
        assert metrics["time/step_s"] == pytest.approx(clock.time - begin, abs=1e-9)
        begin = clock.time


def test_a_phase_goes_on_after_a_step_is_closed_within_it():
    clock = Clock()
    meter = started(clock)
    meter.begin("optimize")
    clock.sleep(3)
    assert meter.close()["time/optimize_s"] == 3
    clock.sleep(2)
    meter.end()
    clock.sleep(1)
    assert meter.close() == {"time/optimize_s": 2, "time/other_s": 1, "time/step_s": 3} | dict.fromkeys(
        ("tokens/prompt", "tokens/completion", "tokens/generated"), 0
    )


@pytest.mark.parametrize(("waited", "data"), [(2.0, 2.0), (9.0, 5.0)])
def test_the_wait_for_a_batch_is_taken_from_the_time_in_no_phase(waited, data):
    clock = Clock()
    meter = started(clock)
    clock.sleep(5)
    with meter.phase("optimize"):
        clock.sleep(7)
    meter.moved("data", waited)
    metrics = meter.close()
    assert (metrics["time/data_s"], metrics["time/other_s"]) == (data, 5 - data)
    assert (metrics["time/optimize_s"], metrics["time/step_s"]) == (7, 12)


@pytest.mark.parametrize(
    "exchange",
    [
        lambda ranks: ranks.sum(torch.zeros(())),
        lambda ranks: ranks.max(1),
        lambda ranks: ranks.any([True]),
        lambda ranks: ranks.gather("item"),
        lambda ranks: ranks.sum_gradients([]),
    ],
)
def test_every_exchange_counts_as_waiting_in_the_phase_around_it(exchange):
    clock = Clock()
    ranks = Two(clock, other=RankCosts(seconds={"optimize": 8.0}), slow=4.0)
    meter = started(clock, ranks)
    with meter.phase("optimize"):
        clock.sleep(4)
        exchange(timed(ranks, meter))
    metrics = meter.close()
    assert metrics["time/wait_share/rank_0"] == 0.5
    assert metrics["time/wait_share/rank_1"] == 0
    assert (metrics["time/optimize_s"], metrics["time/wait_s"]) == (6, 2)  # means over the ranks
    assert meter.step.ranks[0].waits == {"optimize": 4}


def test_work_of_one_rank_ends_with_the_wait_for_all_others():
    clock = Clock()
    meter = started(clock, Two(clock))

    class Meets:
        def __enter__(self):
            clock.sleep(1)

        def __exit__(self, *error):
            clock.sleep(5)

    with meter.phase("generate"), meter.meeting(Meets()):
        clock.sleep(2)
    metrics = meter.close()
    assert (metrics["time/generate_s"], metrics["time/wait_s"]) == (3, 5)
    alone = started(clock)
    with alone.phase("generate"), alone.meeting(Meets()):
        clock.sleep(2)
    assert alone.close()["time/generate_s"] == 8
    with pytest.raises(KeyError, match="lost"), meter.phase("score"), meter.meeting(nullcontext()):
        raise KeyError("lost")
    assert meter._phases == []


def test_a_single_process_exchanges_nothing():
    assert timed(ALONE, CostMeter()) is ALONE
    assert isinstance(timed(Two(), CostMeter()), TimedRanks)


def test_mfu_is_operations_over_what_the_devices_could_do():
    rates = {"operations": lambda counts: {"sampling": 30, "training": 60}, "peak": 10.0}
    ranks = (
        RankCosts(seconds={"generate": 6.0, "optimize": 4.0}, operations={"sampling": 30, "training": 60}),
        RankCosts(seconds={"generate": 2.0, "optimize": 4.0, WAIT: 4.0}, operations={"sampling": 10, "training": 20}),
    )
    step = StageCosts(num_steps=1, ranks=ranks, peak=10.0)
    assert step.mfu() == 120 / (10 * 2 * 10)
    metrics = step_metrics(step)
    assert metrics["time/mfu"] == 0.6
    assert metrics["time/mfu_sampling"] == 40 / (10 * 2 * 4)
    assert metrics["time/mfu_training"] == 80 / (10 * 2 * 4)
    elsewhere = step_metrics(replace(step, samples_here=False))
    assert elsewhere["time/mfu"] == 80 / (10 * 2 * 10)
    assert "time/mfu_sampling" not in elsewhere
    for unknown in (replace(step, peak=None), replace(step, ranks=(RankCosts(seconds={"data": 1.0}),))):
        assert not [key for key in step_metrics(unknown) if "mfu" in key]
    clock = Clock()
    meter = started(clock, **rates)
    clock.sleep(18)
    assert meter.close()["time/mfu"] == 0.5


def counted(meter, prompts, completions):
    meter.counting(UPDATE)(prompts, completions, 1)
    meter.counting(SCORE)(prompts, completions, 1)
    return meter.close()


def test_tokens_are_those_of_all_passes_and_a_prompt_counts_once_for_its_completions():
    meter = CostMeter()
    assert counted(meter, [10, 3], [[4, 4], [1, 0]]) == {
        "time/step_s": 0,
        "tokens/prompt": 26,
        "tokens/completion": 18,
        "tokens/generated": 0,
    }
    assert meter.step.ranks[0].num_microbatches == 1
    assert meter.step.ranks[0].logical == 22


@pytest.mark.parametrize(("state_after", "resumed_after", "known"), [(3, 3, 3), (3, 2, 2), (3, 5, 3), (3, 1, 0)])
def test_totals_go_on_where_the_state_was_and_count_no_step_twice(state_after, resumed_after, known):
    clock = Clock()
    meter = started(clock)
    for _ in range(state_after):
        clock.sleep(10)
        counted(meter, [5], [[2]])
    clock.sleep(1000)  # the process is killed in this step
    later = CostMeter(timer=HostTimer(now=clock))
    later.load_state_dict(torch.load(saved(meter.state_dict()), weights_only=True))
    clock.sleep(500)  # a new process starts
    later.start(CPU, ALONE, resumed_after)
    for _ in range(2):
        clock.sleep(10)
        counted(later, [5], [[2]])
    clock.sleep(3)
    later.finish()
    assert later.total.num_steps == known + 2
    assert later.total.total_s == 10 * (known + 2) + 3
    assert later.total.tokens == {"prompt": 10 * (known + 2), "completion": 4 * (known + 2), "generated": 0}


@pytest.mark.parametrize("closed", [8, 9])
def test_no_step_counts_twice_after_steps_without_costs(closed):
    """The first 5 steps left a state without costs; the next process was killed when its last state was of step 8."""
    clock = Clock()
    meter = CostMeter(timer=HostTimer(now=clock))
    meter.start(CPU, ALONE, 5)
    for _ in range(closed - 5):
        clock.sleep(10)
        counted(meter, [5], [[2]])
    later = CostMeter(timer=HostTimer(now=clock))
    later.load_state_dict(torch.load(saved(meter.state_dict()), weights_only=True))
    later.start(CPU, ALONE, 8)
    assert (later.total.num_steps, later.total.total_s) == (3, 30)
    counted(later, [5], [[2]])
    last = CostMeter()
    last.load_state_dict(later.state_dict())
    last.start(CPU, ALONE, 8)
    assert last.total.num_steps == 3


def saved(state):
    import io

    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return buffer


def test_a_stage_that_goes_on_with_other_ranks_keeps_what_all_had():
    one = StageCosts(num_steps=2, ranks=(RankCosts(seconds={OTHER: 4.0}),), peak=1.0)
    two = StageCosts(num_steps=1, ranks=(RankCosts(seconds={OTHER: 1.0}), RankCosts(seconds={OTHER: 2.0})), peak=3.0)
    both = one + two
    assert (both.num_steps, both.peak) == (3, 3.0)
    assert [rank.total_s for rank in both.ranks] == [5, 2]


class Watched:
    """A stage in a real trainer, whose clock takes a second at each look, and its reports by step."""

    def __init__(self, make, batches, folder, clip=None):
        self.clock, self.reports = Clock(tick=1.0), []
        self.meter = CostMeter(timer=HostTimer(now=self.clock))
        self.module = make(self.meter)
        self.module._report = lambda values, step: self.reports.append((step, values))
        trainer = training_trainer(
            TrainerSettings(accelerator="cpu"), directory=folder, logger=[], callbacks=[], validate_every=None,
            gradient_clip_val=clip,
        )  # fmt: skip
        start = self.meter.start

        def noted(*args):
            start(*args)
            self.begin = self.clock.time

        self.meter.start = noted
        trainer.fit(self.module, DataLoader(batches, batch_size=None))

    def check(self):
        """All phases of all steps, and the time after the last step, are all the time that passed."""
        steps = [values["time/step_s"] for _, values in self.reports]
        phases = [{k: v for k, v in values.items() if k.startswith("time/")} for _, values in self.reports]
        for each, step in zip(phases, steps, strict=True):
            assert sum(each.values()) - step == step
        assert self.meter.total.total_s == self.clock.time - self.begin
        assert 0 <= self.meter.total.total_s - sum(steps) < steps[-1]
        return phases


@pytest.fixture
def model(tmp_path):
    return omni.load(omni.build(tmp_path / "omni"), dtype=torch.float32)


def context(folder, meter, settings):
    return StageContext(name="stage", settings=settings, seed=0, directory=folder, costs=meter, waited_s=lambda: 0.5)


OPTIMIZER = OptimizerSettings(factory=torch.optim.SGD, schedule=WarmupConstant())


def test_the_steps_of_sft_add_up_and_their_tokens_are_counted_without_padding(model, tmp_path):
    encoder, policy = model
    items = [omni.encoded(encoder, f"p{index}", omni.CONTENTS[index], index) for index in range(3)]
    targets = [
        EncodedSample(
            sample=item.sample, prompt=item.prompt, target_ids=tuple(encoder.encode_target("angry " * (2 * index + 1)))
        )
        for index, item in enumerate(items)
    ]
    batch = collate_targets(targets, pad_token_id=encoder.pad_token_id)
    settings = SftSettings(num_steps=2, tokens_per_microbatch=1)

    def make(meter):
        return SFTModule(policy, optimizer=OPTIMIZER, context=context(tmp_path, meter, settings))

    found = Watched(make, [batch, batch], tmp_path, clip=1.0)
    phases = found.check()
    assert [step for step, _ in found.reports] == [1, 2]
    assert set(phases[1]) == {"time/data_s", "time/optimize_s", "time/other_s", "time/step_s"}
    assert phases[1]["time/data_s"] == 0.5
    assert {"train/loss", "train/learning_rate"} <= found.reports[0][1].keys()
    prompts, answers = sum(len(item.prompt["input_ids"]) for item in items), sum(len(t.target_ids) for t in targets)
    assert found.meter.total.tokens == {"prompt": 2 * prompts, "completion": 2 * answers, "generated": 0}
    own = found.meter.total.ranks[0]
    assert (own.num_microbatches, own.positions, own.logical) == (6, own.logical, 2 * (prompts + answers))


def test_an_iteration_adds_up_and_counts_what_it_sampled_and_scored(model, tmp_path):
    encoder, policy = model
    policy.sharing_refusal = "each completion has a copy of its prompt in this test"

    def angry(sample, completion):
        return float(sum(completion.text.encode()) % 7)

    rewards = InlineRewards(
        WeightedReward(components={"label": angry}, settings=RewardSettings(weights={"label": 1.0}))
    )
    algorithm = Algorithm(
        advantage=GroupNormalized(), loss=PPOClip(), aggregation=TokenMean(),
        settings=AlgorithmSettings(group_size=3, update=UpdateSettings(num_epochs=2)),
    )  # fmt: skip
    engine = omni.engine(encoder, policy, max_new_tokens=5)
    prompts, lengths = omni.prompts(encoder), []
    generate = engine.generate

    def noted(*args, **more):
        rollout = generate(*args, **more)
        lengths.extend(completion.num_tokens for completion in rollout.completions)
        return rollout

    engine.generate = noted

    def make(meter):
        return GRPOModule(
            policy, engine, rewards, optimizer=OPTIMIZER, algorithm=algorithm,
            context=context(tmp_path, meter, StageSettings(num_steps=2)),
        )  # fmt: skip

    found = Watched(make, [prompts, prompts], tmp_path)
    phases = found.check()
    timed_phases = ("data", "encode", "generate", "optimize", "other", "push", "score", "step")
    assert set(phases[1]) == {f"time/{name}_s" for name in timed_phases}
    width, tokens = int(prompts.prompt_mask.sum()), found.meter.total.tokens
    assert tokens["generated"] == sum(lengths)
    # Two epochs and the pass that fixes the old log-probabilities, of all groups: all of them have a signal.
    assert found.reports[0][1]["rollout/groups_with_signal"] == 1
    assert tokens == {"prompt": 2 * (1 + 3) * width, "completion": 3 * sum(lengths), "generated": sum(lengths)}
    own = found.meter.total.ranks[0]
    assert own.logical == 2 * 2 * width + 2 * sum(lengths)
    assert own.positions >= 2 * 2 * 3 * width + 2 * sum(lengths)
