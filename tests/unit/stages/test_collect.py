"""The batch of an iteration: which groups it has, and that joining and choosing them changes nothing about them."""

from dataclasses import replace
from functools import partial

import omni
import pytest
import torch
from algorithms import algorithm_of
from torch.utils.data import DataLoader

from lightning_mmrl.algorithms.advantages.group_normalized import GroupNormalized
from lightning_mmrl.algorithms.losses.aggregation import ConstantLength, SequenceMean, TokenMean
from lightning_mmrl.algorithms.losses.ppo_clip import PPOClip
from lightning_mmrl.algorithms.schedules import WarmupConstant
from lightning_mmrl.algorithms.selection.accuracy_band import AccuracyBand
from lightning_mmrl.algorithms.selection.has_signal import HasSignal
from lightning_mmrl.data.collate import collate_prompts
from lightning_mmrl.data.rollout_table import read_table
from lightning_mmrl.rewards.compose import WeightedReward
from lightning_mmrl.rewards.pool import InlineRewards
from lightning_mmrl.rollout.scripted import ScriptedEngine
from lightning_mmrl.settings.algorithm import AlgorithmSettings, RewardSettings, UpdateSettings
from lightning_mmrl.settings.stage import StageSettings, TrainerSettings
from lightning_mmrl.stages.collect import Collector
from lightning_mmrl.stages.context import OptimizerSettings, StageContext
from lightning_mmrl.stages.experience import Experience
from lightning_mmrl.stages.grpo import GRPOModule
from lightning_mmrl.stages.join import join_prompts, join_rollouts, select_rollout
from lightning_mmrl.stages.rollout_table import RolloutTable
from lightning_mmrl.tracking.lightning_logger import RunLogger
from lightning_mmrl.tracking.null import NullRun
from lightning_mmrl.training.trainer import training_trainer
from lightning_mmrl.types.batches import Scores, ScoringBatch

GOOD, BAD = "<answer>angry</answer>", "<answer>user</answer>"
CONTENTS = ("<video><audio>Which emotion?", "<video>Which emotion?", "<audio>angry", "angry", "<audio>Which emotion?")
SOMETIMES, ALWAYS, NEVER = (GOOD, BAD), (GOOD, GOOD), (BAD, BAD)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return omni.build(tmp_path_factory.mktemp("model") / "omni")


@pytest.fixture
def model(checkpoint):
    return omni.load(checkpoint)


def batch(encoder, *places):
    """Prompts p0, p1 and so on, each with media of its own."""
    items = [omni.encoded(encoder, f"p{place}", CONTENTS[place % len(CONTENTS)], place) for place in places]
    return collate_prompts(items, encoder.pad_token_id)


class Right:
    """1 for the right answer."""

    def __call__(self, sample, completion):
        return float("angry" in completion.text)


def algorithm(**changes):
    common = {"advantage": GroupNormalized(), "loss": PPOClip(), "aggregation": TokenMean(), "group_size": 2}
    return algorithm_of(**{**common, **changes})


class Run:
    """A stage of one iteration or more over given batches, and what it made of them."""

    def __init__(self, model, folder, script, batches, refills=(), **changes):
        encoder, policy = model
        self.engine = ScriptedEngine(script, encode=encoder.encode_target, pad_token_id=encoder.pad_token_id)
        self.seeds, generate = [], self.engine.generate

        def remember(prompts, **arguments):
            names = [sample.id for sample in prompts.samples]
            self.seeds.append(dict(zip(names, arguments["seeds"], strict=True)))
            return generate(prompts, **arguments)

        self.engine.generate = remember
        further = iter(refills)
        self.updates, self.steps = [], []
        module = GRPOModule(
            policy,
            self.engine,
            InlineRewards(
                WeightedReward(components={"label": Right()}, settings=RewardSettings(weights={"label": 1.0}))
            ),
            optimizer=OptimizerSettings(factory=partial(torch.optim.SGD, lr=1e-2), schedule=WarmupConstant()),
            context=StageContext(
                name="stage",
                settings=StageSettings(num_steps=len(batches)),
                seed=0,
                directory=folder,
                refill=lambda: next(further),
            ),
            algorithm=algorithm(**changes),
            table=RolloutTable(folder / "rollouts", StageSettings(rollout_table_every=1)),
        )
        optimize, report = module.optimize, module._report

        def watched(experience, iteration):
            self.updates.append(experience)
            return optimize(experience, iteration)

        def noted(values, step):
            self.steps.append(values)
            report(values, step)

        module.optimize, module._report = watched, noted
        self.before = {name: parameter.detach().clone() for name, parameter in policy.named_parameters()}
        trainer = training_trainer(
            TrainerSettings(accelerator="cpu", precision="32-true"),
            directory=folder,
            logger=RunLogger(NullRun("run"), folder),
            callbacks=[],
            validate_every=None,
            gradient_clip_val=None,
        )
        trainer.fit(module, DataLoader(batches, batch_size=None))
        self.weights = {name: parameter.detach().clone() for name, parameter in policy.named_parameters()}

    def counted(self, number=-1):
        """Prompts of an update whose completions count."""
        update = self.updates[number]
        found = zip(update.prompts.samples, update.trainable.any(-1).tolist(), strict=True)
        return [sample.id for sample, counts in found if counts]

    @property
    def changed(self):
        return any(not torch.equal(value, self.before[name]) for name, value in self.weights.items())


def same(first, second, **tolerance):
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], msg=name, **tolerance)


def different(first, second):
    return max(float((value - second[name]).abs().max()) for name, value in first.items())


SCRIPT = {"p0": ALWAYS, "p1": SOMETIMES, "p2": NEVER, "p3": SOMETIMES, "p4": SOMETIMES, "p5": SOMETIMES, "p6": ALWAYS}
SELECT = {"select": AccuracyBand(), "max_samplings": 4}


def test_rejected_groups_are_replaced_and_those_beyond_the_batch_are_dropped(model, tmp_path):
    encoder, _ = model
    refills = [batch(encoder, 6, 2), batch(encoder, 3, 4), batch(encoder, 5, 5)]
    run = Run(model, tmp_path, SCRIPT, [batch(encoder, 0, 1)], refills, **SELECT)
    assert [sample.id for sample in run.updates[0].prompts.samples] == run.counted() == ["p1", "p3"]
    assert run.steps[0]["rollout/samplings"] == 3.0
    assert run.steps[0]["rollout/groups_kept"] == 0.5
    assert run.steps[0]["rollout/batch_filled"] == 1.0
    assert run.steps[0]["rollout/label"] == pytest.approx((2 + 1 + 2 + 0 + 1 + 1) / 12)
    assert run.steps[0]["rollout/groups_with_signal"] == pytest.approx(2 / 6)
    rows = read_table(tmp_path / "rollouts" / "iteration_000001.jsonl")
    assert [row.sample.id for row in rows] == ["p0", "p1", "p6", "p2", "p3", "p4"]
    update, found = run.updates[0], {row.sample.id: row.advantages for row in rows}
    trained = update.advantages[:, 0].reshape(update.trainable.shape)
    assert trained.abs().max() > 0
    assert {name: found[name] for name in ("p1", "p3")} == {
        name: tuple(values) for name, values in zip(("p1", "p3"), trained.tolist(), strict=True)
    }
    assert {found[name] for name in ("p0", "p6", "p2", "p4")} == {(None, None)}, "groups that are not trained on"
    assert run.changed


def test_every_update_has_the_same_number_of_prompts_however_many_are_rejected(model, tmp_path):
    encoder, _ = model
    batches = [batch(encoder, 0, 1), batch(encoder, 3, 4), batch(encoder, 2, 0)]
    refills = [batch(encoder, 3, 2), batch(encoder, 6, 2), batch(encoder, 0, 4), batch(encoder, 5, 1)]
    run = Run(model, tmp_path, SCRIPT, batches, refills, **SELECT)
    assert [run.counted(number) for number in range(3)] == [["p1", "p3"], ["p3", "p4"], ["p4", "p5"]]
    assert [step["rollout/samplings"] for step in run.steps] == [2.0, 1.0, 4.0]


@pytest.mark.parametrize("frozen", [("vision", "audio"), ()])
@pytest.mark.parametrize("update", [UpdateSettings(), UpdateSettings(num_epochs=2)])
@pytest.mark.parametrize("aggregation", [TokenMean(), SequenceMean(), ConstantLength(max_tokens=40)])
def test_an_update_on_a_refilled_batch_is_that_on_the_same_prompts_alone(
    checkpoint, tmp_path, frozen, update, aggregation
):
    """Weights and loss, also of towers that train; negative control: the batch without the refill leads elsewhere."""
    common, found = {"aggregation": aggregation, "update": update}, {}
    plans = {
        "refilled": ([0, 1], [[2, 6], [3, 0]], SELECT),
        "alone": ([1, 3], [], {}),
        "short": ([0, 1], [], {**SELECT, "max_samplings": 1}),
        "fewer": ([1], [], {}),
    }
    for name, (first, refills, settings) in plans.items():
        encoder, policy = omni.load(checkpoint)
        policy.freeze(frozen)
        batches, further = [batch(encoder, *first)], [batch(encoder, *places) for places in refills]
        found[name] = Run((encoder, policy), tmp_path / name, SCRIPT, batches, further, **settings, **common)
    for first, second in (("refilled", "alone"), ("short", "fewer")):
        same(found[first].weights, found[second].weights, rtol=1e-10, atol=1e-13)
        assert found[first].steps[0]["train/loss"] == pytest.approx(found[second].steps[0]["train/loss"], rel=1e-10)
        assert found[first].changed
    assert different(found["refilled"].weights, found["short"].weights) > 1e-6


def test_at_the_cap_the_update_takes_what_passed_and_says_so(model, tmp_path):
    encoder, _ = model
    refills = [batch(encoder, 2, 2)]
    run = Run(model, tmp_path, SCRIPT, [batch(encoder, 0, 1, 2)], refills, select=HasSignal(), max_samplings=2)
    assert run.counted() == ["p1"]
    assert [sample.id for sample in run.updates[0].prompts.samples] == ["p0", "p1", "p2"]
    assert run.steps[0]["rollout/samplings"] == 2.0
    assert run.steps[0]["rollout/batch_filled"] == pytest.approx(1 / 3)
    assert run.changed


def test_nothing_passes_and_no_weight_moves(model, tmp_path):
    """Without the selection the same prompts have no signal either; with one that takes them all they are valid."""
    encoder, _ = model
    run = Run(
        model, tmp_path, SCRIPT, [batch(encoder, 0, 2)], [batch(encoder, 2, 6)], select=HasSignal(), max_samplings=2
    )
    assert run.counted() == []
    assert not run.changed
    assert run.steps[0]["rollout/batch_filled"] == 0.0
    assert run.steps[0]["rollout/invalid_scores"] == 0.0
    all_of_them = Run(model, tmp_path, SCRIPT, [batch(encoder, 0, 2)], select=AccuracyBand(low=0.0, high=1.0))
    assert all_of_them.counted() == ["p0", "p2"]


def test_the_selection_begins_after_its_iterations(model, tmp_path):
    encoder, _ = model
    batches, refills = [batch(encoder, 0, 1)] * 3, [batch(encoder, 3, 4)]
    run = Run(model, tmp_path, SCRIPT, batches, refills, select_after=2, **SELECT)
    assert [step["rollout/samplings"] for step in run.steps] == [1.0, 1.0, 2.0]
    assert [run.counted(number) for number in range(3)] == [["p0", "p1"], ["p0", "p1"], ["p1", "p3"]]


def test_a_prompt_that_comes_again_in_an_iteration_is_sampled_anew(model, tmp_path):
    encoder, _ = model
    refills = [batch(encoder, 0, 1), batch(encoder, 1, 3)]
    run = Run(model, tmp_path, SCRIPT, [batch(encoder, 0, 2)], refills, select=HasSignal(), max_samplings=3)
    assert run.counted() == ["p1", "p1"]
    seeds = [seed for sampling in run.seeds for group in sampling.values() for seed in group]
    assert len(seeds) == len(set(seeds)) == 12


def test_groups_are_not_chosen_by_completions_whose_verifier_failed(model, tmp_path):
    """They count on neither side, and leave a group of one that says nothing."""
    rewards, passed = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]), torch.tensor([[True, False, False]] * 2)
    valid = torch.tensor([[True, True, False], [True, False, False]])
    for rule in (AccuracyBand(low=0.5, high=0.5), HasSignal()):
        assert rule(rewards, passed, valid).tolist() == [True, False]


def scored(policy, prompts, rollout):
    with torch.no_grad():
        return policy(
            ScoringBatch(
                prompts=prompts,
                completion_ids=rollout.completion_ids,
                completion_mask=rollout.completion_mask,
                group_size=rollout.group_size,
            )
        ).logprobs


@pytest.mark.parametrize("encoded", [False, True])
def test_joined_groups_have_the_logprobs_that_they_have_alone(model, encoded):
    """Prompts and completions of other widths, media of other kinds; negative control: another prompt's completions."""
    encoder, policy = model
    engine = omni.engine(encoder, policy, max_new_tokens=5, eos_token_ids=[*encoder.eos_token_ids, *range(0, 300, 4)])
    parts = [batch(encoder, 0, 3), batch(encoder, 3, 8), batch(encoder, 2, 1, 4)]
    parts = [policy.media.encode(part) for part in parts] if encoded else parts
    rollouts = []
    for number, part in enumerate(parts):
        seeds = [[10 * number + row, 77 + row] for row in range(len(part.samples))]
        rollouts.append(engine.generate(part, group_size=2, seeds=seeds, max_new_tokens=3 + number))
    assert len({rollout.completion_ids.shape[1] for rollout in rollouts}) > 1
    assert len({part.input_ids.shape[1] for part in parts}) > 1
    alone = [
        scored(policy, part.select([row]), select_rollout(rollout, [row]))
        for part, rollout in zip(parts, rollouts, strict=True)
        for row in range(len(part.samples))
    ]
    chosen = [6, 0, 3, 4]
    prompts, rollout = join_prompts(parts).select(chosen), select_rollout(join_rollouts(rollouts), chosen)
    found = scored(policy, prompts, rollout).unflatten(0, (-1, 2))
    for row, group in enumerate(chosen):
        width = alone[group].shape[1]
        torch.testing.assert_close(found[row, :, :width], alone[group], rtol=1e-12, atol=1e-12)
        assert not found[row, :, width:].any()
    wrong = scored(policy, join_prompts(parts).select([3, *chosen[1:]]), rollout).unflatten(0, (-1, 2))
    assert (wrong[0] - found[0]).abs().max() > 1e-3


class Pair:
    """One of two ranks that tells what the other one does at each sampling."""

    rank, world_size, lockstep = 0, 2, True

    def __init__(self, other_is_short):
        self._other = iter(other_is_short)
        self.asked = []

    def any(self, flags):
        self.asked.append(flags[0])
        return [flags[0] or next(self._other)]


def test_all_ranks_sample_as_long_as_one_is_short(model):
    """The rank that has enough goes on, keeps what it has, and has it joined as the other ranks do."""
    encoder, _ = model
    script = {f"p{place}": SOMETIMES for place in range(8)}
    engine = ScriptedEngine(script, encode=encoder.encode_target, pad_token_id=encoder.pad_token_id)

    def sample(prompts):
        rollout = engine.generate(prompts, group_size=2, seeds=[])
        right = torch.tensor([[1.0, 0.0]] * len(prompts.samples))
        scores = Scores(rewards=right, valid=right >= 0, components={"label": right}, details=((), ()))
        return Experience(
            raw=prompts,
            prompts=prompts,
            rollout=rollout,
            scores=scores,
            trainable=scores.valid,
            advantages=torch.zeros(rollout.completion_mask.shape),
        )

    def collect(collector):
        samplings = [sample(batch(encoder, 0, 1))]
        while collector.is_short(samplings):
            samplings.append(sample(batch(encoder, 2, 3)))
        return collector.chosen(samplings)

    pair = Pair([True, True, False, True])
    collector = Collector(
        select=AccuracyBand(),
        settings=AlgorithmSettings(max_samplings=5),
        rewards=RewardSettings(pass_component="label"),
        ranks=pair,
    )
    found = collect(collector)
    assert found.num_samplings == 3
    assert pair.asked == [False] * 4
    assert found.rows == (0, 1)
    assert found.refilled, "the other rank encodes its prompts again, which all ranks do together"
    capped = replace(collector, settings=AlgorithmSettings(max_samplings=2), ranks=Pair([True, False]))
    assert collect(capped).num_samplings == 2


def test_more_samplings_need_a_selection_and_a_place_to_sample_from(model, tmp_path):
    with pytest.raises(ValueError, match="max_samplings is 3; it must be at least 1, and 1 without a selection"):
        algorithm(max_samplings=3)
    encoder, policy = model
    with pytest.raises(ValueError, match="max_samplings is 2; the context must have a refill for it"):
        GRPOModule(
            policy,
            omni.engine(encoder, policy, max_new_tokens=2),
            InlineRewards(
                WeightedReward(components={"label": Right()}, settings=RewardSettings(weights={"label": 1.0}))
            ),
            optimizer=OptimizerSettings(factory=torch.optim.SGD, schedule=WarmupConstant()),
            context=StageContext(name="stage", settings=StageSettings(num_steps=1), seed=0, directory=tmp_path),
            algorithm=algorithm(select=HasSignal(), max_samplings=2),
        )
