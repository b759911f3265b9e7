"""The LightningModules in a real Trainer, on the tiny model."""

import json
from dataclasses import replace
from functools import partial

import omni
import pytest
import torch
from torch.utils.data import DataLoader

from lightning_mmrl.algorithms.advantages.group_normalized import GroupNormalized
from lightning_mmrl.algorithms.advantages.leave_one_out import LeaveOneOut
from lightning_mmrl.algorithms.losses.aggregation import TokenMean
from lightning_mmrl.algorithms.losses.ppo_clip import PPOClip
from lightning_mmrl.algorithms.schedules import WarmupConstant
from lightning_mmrl.data.collate import EncodedSample, collate_targets
from lightning_mmrl.errors import MediaError, StageError
from lightning_mmrl.models.families.qwen_vision import normalized
from lightning_mmrl.rewards.compose import WeightedReward
from lightning_mmrl.rewards.pool import InlineRewards
from lightning_mmrl.rollout.scripted import ScriptedEngine
from lightning_mmrl.settings.algorithm import AlgorithmSettings, PhaseSettings, RewardSettings, UpdateSettings
from lightning_mmrl.settings.stage import Bound, StageSettings, TrainerSettings
from lightning_mmrl.stages.algorithm import Algorithm
from lightning_mmrl.stages.context import OptimizerSettings, StageContext
from lightning_mmrl.stages.ending import Ending
from lightning_mmrl.stages.grpo import GRPOModule
from lightning_mmrl.stages.policy_gradient import PolicyGradientModule
from lightning_mmrl.stages.ppo import PPOModule
from lightning_mmrl.stages.rloo import RLOOModule
from lightning_mmrl.stages.rollout_table import RolloutTable
from lightning_mmrl.stages.sft import SFTModule
from lightning_mmrl.tracking.lightning_logger import RunLogger
from lightning_mmrl.tracking.null import NullRun
from lightning_mmrl.training.trainer import training_trainer
from lightning_mmrl.types.batches import ScoringBatch

GOOD = "<think>lowered brows and fast tone</think><answer>angry</answer>"
BAD = "<think>lowered brows and fast tone</think><answer>user</answer>"


@pytest.fixture
def model(tmp_path):
    encoder, policy = omni.load(omni.build(tmp_path / "omni"), dtype=torch.float32)
    return encoder, policy


def optimizer(lr=1e-2):
    return OptimizerSettings(factory=partial(torch.optim.SGD, lr=lr), schedule=WarmupConstant())


def context(tmp_path, num_steps):
    return StageContext(name="stage", settings=StageSettings(num_steps=num_steps), seed=0, directory=tmp_path)


def trainer(tmp_path, gradient_clip_val=None, validate_every=None):
    return training_trainer(
        TrainerSettings(accelerator="cpu"),
        directory=tmp_path,
        logger=RunLogger(NullRun("run"), tmp_path),
        callbacks=[],
        validate_every=validate_every,
        gradient_clip_val=gradient_clip_val,
    )


class WantsAngry:
    """1 for the right answer."""

    def __call__(self, sample, completion):
        return float("<answer>angry</answer>" in completion.text)


class Fails:
    """A verifier that is down."""

    def __call__(self, sample, completion):
        raise RuntimeError("verifier down")


def rl_module(model, tmp_path, *, reward=None, script=None, algorithm=None, table=None, num_steps=1, lr=1e-2):
    encoder, policy = model
    texts = script or {f"p{index}": [GOOD, BAD] for index in range(4)}
    engine = ScriptedEngine(texts, encode=encoder.encode_target, pad_token_id=encoder.pad_token_id)
    rewards = InlineRewards(
        WeightedReward(components={"label": reward or WantsAngry()}, settings=RewardSettings(weights={"label": 1.0})),
        RewardSettings(max_invalid_rate=1.0),
    )
    algorithm = algorithm or Algorithm(
        advantage=GroupNormalized(), loss=PPOClip(), aggregation=TokenMean(), settings=AlgorithmSettings(group_size=2)
    )
    return GRPOModule(
        policy,
        engine,
        rewards,
        optimizer=optimizer(lr),
        context=context(tmp_path, num_steps),
        algorithm=algorithm,
        table=table,
    )


def weights(policy):
    return {name: parameter.detach().clone() for name, parameter in policy.named_parameters()}


def changed(policy, before):
    return any(not torch.equal(parameter, before[name]) for name, parameter in policy.named_parameters())


def fit(module, encoder, tmp_path, num_batches=1):
    batch = omni.prompts(encoder)
    trainer(tmp_path).fit(module, DataLoader([batch] * num_batches, batch_size=None))
    return batch


class Counts:
    """Numbers without a meaning, so that every group has a signal."""

    def __call__(self, sample, completion):
        return float(sum(completion.text.encode()) % 7)


@pytest.mark.parametrize("freeze", [[], ["vision", "audio"], ["text"]])
def test_an_iteration_runs_each_tower_and_prefills_each_prompt_once(model, tmp_path, freeze):
    """However many completions, microbatches and passes: towers and prompts are not computed again."""
    encoder, policy = model
    policy.freeze(freeze)
    algorithm = Algorithm(
        advantage=GroupNormalized(),
        loss=PPOClip(),
        aggregation=TokenMean(),
        settings=AlgorithmSettings(group_size=4, update=UpdateSettings(tokens_per_microbatch=150)),
    )
    module = rl_module(model, tmp_path, reward=Counts(), algorithm=algorithm)
    module.engine = omni.engine(encoder, policy, max_new_tokens=5)
    towers, passes, decoder = [], [], []
    hooks = [tower.register_forward_hook(lambda *_: towers.append(1)) for tower in policy.media.backbone.towers]
    hooks.append(policy.register_forward_hook(lambda *_: passes.append(len(decoder))))
    first_layer = policy.model.model.layers[0]
    hooks.append(first_layer.register_forward_hook(lambda _, inputs, __: decoder.append(inputs[0].shape[1])))
    before = weights(policy)
    batch = fit(module, encoder, tmp_path)
    for hook in hooks:
        hook.remove()
    assert changed(policy, before)
    prompt_tokens = int(batch.prompt_mask.sum())
    scored = [decoder[at - 1] for at in passes]
    steps = decoder[1 : passes[0] - 1]
    num_completion_tokens = int(module.latest["train/tokens"])
    assert len(towers) == 2
    assert module.latest["media/tower_prompts"] == 3  # the fourth is text alone
    assert len(scored) > 1
    assert decoder[0] == prompt_tokens
    assert len(steps) == 4
    assert max(steps) <= 4 * len(batch.samples)
    assert sum(scored) == prompt_tokens + num_completion_tokens


def test_further_updates_run_trainable_towers_again(model, tmp_path):
    encoder, policy = model
    module = rl_module(model, tmp_path, algorithm=two_updates())
    towers = []
    hook = policy.model.visual.register_forward_hook(lambda *_: towers.append(1))
    fit(module, encoder, tmp_path)
    hook.remove()
    assert len(towers) == 1 + 2


def two_updates():
    return Algorithm(
        advantage=GroupNormalized(),
        loss=PPOClip(),
        aggregation=TokenMean(),
        settings=AlgorithmSettings(group_size=2, update=UpdateSettings(num_epochs=2)),
    )


def test_an_iteration_raises_what_is_rewarded(model, tmp_path):
    encoder, policy = model
    module = rl_module(model, tmp_path, num_steps=3)
    before = weights(policy)
    batch = omni.prompts(encoder)

    def gap():
        rollout = module.engine.generate(batch, group_size=2, seeds=[])
        scoring = ScoringBatch(
            prompts=batch,
            completion_ids=rollout.completion_ids,
            completion_mask=rollout.completion_mask,
            group_size=2,
        )
        with torch.no_grad():
            sums = policy(scoring).logprobs.sum(-1).reshape(-1, 2)
        return (sums[:, 0] - sums[:, 1]).mean().item()

    first = gap()
    fit(module, encoder, tmp_path, num_batches=3)
    assert changed(policy, before)
    assert gap() > first + 0.01
    assert module.latest["rollout/label"] == 0.5
    assert module.latest["rollout/groups_with_signal"] == 1.0
    assert module.engine.version == 3


def test_constant_rewards_change_no_weight(model, tmp_path):
    encoder, policy = model
    module = rl_module(model, tmp_path, script={f"p{index}": [GOOD, GOOD] for index in range(4)})
    before = weights(policy)
    fit(module, encoder, tmp_path)
    assert not changed(policy, before)
    assert module.latest["rollout/groups_with_signal"] == 0.0


def test_a_failed_verifier_trains_nothing_and_is_counted(model, tmp_path):
    encoder, policy = model
    module = rl_module(model, tmp_path, reward=Fails())
    before = weights(policy)
    fit(module, encoder, tmp_path)
    assert not changed(policy, before)
    assert module.latest["rollout/invalid_scores"] == 1.0


def test_the_ratio_is_one_at_the_first_update_and_moves_after(model, tmp_path):
    encoder, _ = model
    algorithm = Algorithm(
        advantage=GroupNormalized(),
        loss=PPOClip(),
        aggregation=TokenMean(),
        settings=AlgorithmSettings(group_size=2, update=UpdateSettings(num_epochs=1)),
    )
    once = rl_module(model, tmp_path, algorithm=algorithm)
    fit(once, encoder, tmp_path)
    assert once.latest["train/approx_kl"] == 0.0
    many = Algorithm(
        advantage=GroupNormalized(),
        loss=PPOClip(),
        aggregation=TokenMean(),
        settings=AlgorithmSettings(group_size=2, update=UpdateSettings(num_epochs=3)),
    )
    twice = rl_module(model, tmp_path, algorithm=many, lr=0.05)
    fit(twice, encoder, tmp_path)
    assert twice.latest["train/approx_kl"] > 0.0


@pytest.mark.parametrize("preset", [GRPOModule, RLOOModule, PPOModule])
def test_presets_override_only_defaults(preset):
    own = {name for name in vars(preset) if not name.startswith("__")}
    assert own <= {"default_algorithm", "_abc_impl"}
    assert issubclass(preset, PolicyGradientModule)


def test_rloo_differs_from_grpo_in_its_advantage_alone():
    grpo, rloo = GRPOModule.default_algorithm, RLOOModule.default_algorithm
    assert rloo.advantage == LeaveOneOut()
    assert replace(rloo, advantage=grpo.advantage) == grpo


def test_an_rloo_update_is_the_gradient_of_leave_one_out_rewards(model, tmp_path):
    """One SGD step against the score function written out: w += lr * d/dw mean_i A_i * mean_t log p_it."""
    encoder, policy = model
    algorithm = replace(RLOOModule.default_algorithm, settings=AlgorithmSettings(group_size=2))
    module = rl_module(model, tmp_path, algorithm=algorithm)
    module._context.settings.max_grad_norm = 1e9
    rollout = module.engine.generate(omni.prompts(encoder), group_size=2, seeds=[])
    scoring = ScoringBatch(
        prompts=omni.prompts(encoder),
        completion_ids=rollout.completion_ids,
        completion_mask=rollout.completion_mask,
        group_size=2,
    )
    means = policy(scoring).logprobs.sum(-1) / rollout.completion_mask.sum(-1)
    objective = (torch.tensor([1.0, -1.0]).repeat(4) * means).mean()  # rewards 1 and 0, each minus the other
    head = policy.model.lm_head.weight
    [gradient] = torch.autograd.grad(objective, [head])
    before = head.detach().clone()
    fit(module, encoder, tmp_path)
    torch.testing.assert_close(head.detach() - before, 1e-2 * gradient, rtol=1e-3, atol=1e-7)
    assert not torch.allclose(head.detach() - before, -1e-2 * gradient, rtol=1e-3, atol=1e-7)


class Rises:
    """A validation whose UAR rises by 0.3 each time."""

    def __init__(self):
        self.uar = 0.0

    def step(self, prompts):
        pass

    def finish(self):
        self.uar += 0.3
        return {"uar": self.uar}


@pytest.mark.parametrize(
    ("bound", "cooldown_steps", "steps"),
    [(0.5, 0, 4), (0.2, 0, 2), (2.0, 0, 6), (None, 0, 6), (0.2, 3, 5), (0.5, 9, 6)],
)
def test_a_stage_ends_after_the_first_validation_that_meets_its_bound(model, tmp_path, bound, cooldown_steps, steps):
    encoder, _ = model
    module = rl_module(model, tmp_path, num_steps=6)
    stop_when = None if bound is None else Bound(metric="validation/uar", at_least=bound)
    module.ending = Ending(StageSettings(stop_when=stop_when, cooldown_steps=cooldown_steps))
    module._validation = Rises()
    loader = DataLoader([omni.prompts(encoder)] * 6, batch_size=None)
    trainer(tmp_path, validate_every=2).fit(module, loader, DataLoader([omni.prompts(encoder)], batch_size=None))
    assert module.engine.version == steps


def test_the_learning_rate_of_sft_falls_to_nothing_while_the_stage_cools_down(model, tmp_path):
    encoder, policy = model
    module = SFTModule(policy, optimizer=optimizer(), context=context(tmp_path, 9))
    module.ending = Ending(StageSettings(stop_when=Bound(metric="validation/uar", at_least=0.2), cooldown_steps=4))
    module._validation = Rises()
    rates = []
    module._report = lambda values, step: rates.append(values.get("train/learning_rate"))
    loader = DataLoader([targets(encoder, [GOOD, "angry", BAD, "user"])] * 9, batch_size=None)
    trainer(tmp_path, validate_every=2).fit(module, loader, DataLoader([omni.prompts(encoder)], batch_size=None))
    assert [rate for rate in rates if rate is not None] == pytest.approx([0.01, 0.01, 0.01, 0.0075, 0.005, 0.0025])


@pytest.mark.parametrize("kind", ["sft", "rl"])
def test_validations_are_numbered_by_steps_of_the_stage(model, tmp_path, kind):
    """However many optimizer steps one of them takes."""
    encoder, policy = model
    if kind == "sft":
        module = SFTModule(policy, optimizer=optimizer(), context=context(tmp_path, 4))
        batch = targets(encoder, [GOOD, "angry", BAD, "user"])
    else:
        module = rl_module(model, tmp_path, algorithm=two_updates(), num_steps=4)
        batch = omni.prompts(encoder)
    module._validation = Rises()
    steps = []
    module._report = lambda values, step: steps.append((step, module.global_step, *values))
    validation = DataLoader([omni.prompts(encoder)], batch_size=None)
    trainer(tmp_path, validate_every=2).fit(module, DataLoader([batch] * 4, batch_size=None), validation)
    updates = 1 if kind == "sft" else 2
    validated = [entry for entry in steps if entry[2:] == ("validation/uar",)]
    assert [entry[:2] for entry in validated] == [(2, 2 * updates), (4, 4 * updates)]


class Counting(SFTModule):
    """A stage that knows something more."""

    seen = 0

    def stage_state(self):
        return {**super().stage_state(), "seen": self.seen}

    def load_stage_state(self, state):
        super().load_stage_state(state)
        self.seen = state["seen"]


def test_a_subclass_adds_to_the_state_of_a_stage(model, tmp_path):
    first, second = (Counting(model[1], optimizer=optimizer(), context=context(tmp_path, 1)) for _ in range(2))
    first.ending = Ending(StageSettings(stop_when=Bound(metric="validation/uar", at_least=0.5)))
    first.ending.validated({"validation/uar": 0.6}, step=2)
    first.latest, first.seen, checkpoint = {"train/loss": 1.5}, 3, {}
    first.on_save_checkpoint(checkpoint)
    known = {
        "latest": {"train/loss": 1.5},
        "ending": {"met_at": 2},
        "bad_steps": [],
        "start_digest": None,
        "scalings": 0,
        "costs": first.costs.state_dict(),
    }
    assert checkpoint == {"stage": {**known, "seen": 3}}
    assert not second.ending.ended(2)
    second.on_load_checkpoint(checkpoint)
    assert (second.latest, second.seen, second.ending.ended(2)) == ({"train/loss": 1.5}, 3, True)


class Sometimes:
    """Rewards that differ within a group in every other iteration only: four prompts of two completions each."""

    def __init__(self):
        self.calls = 0

    def __call__(self, sample, completion):
        self.calls += 1
        return float((self.calls - 1) // 8 % 2 == 0 and "<answer>angry</answer>" in completion.text)


def test_the_learning_rate_of_rl_falls_to_nothing_also_over_iterations_without_signal(model, tmp_path):
    encoder, _ = model
    reward = Sometimes()
    module = rl_module(model, tmp_path, reward=reward, num_steps=9)
    module.ending = Ending(StageSettings(stop_when=Bound(metric="validation/uar", at_least=0.2), cooldown_steps=4))
    module._validation = Rises()
    used = {}
    report = module._report

    def note(values, step):
        used.setdefault(step, (values.get("train/learning_rate"), "train/grad_norm" in values))
        report(values, step)

    module._report = note
    loader = DataLoader([omni.prompts(encoder)] * 9, batch_size=None)
    trainer(tmp_path, validate_every=2).fit(module, loader, DataLoader([omni.prompts(encoder)], batch_size=None))
    assert [used[step][0] for step in sorted(used)] == pytest.approx([0.01, 0.01, 0.01, 0.0075, 0.005, 0.0025])
    assert [used[step][1] for step in sorted(used)] == [True, False] * 3


@pytest.mark.parametrize("kind", ["sft", "rl"])
def test_a_stage_with_everything_frozen_is_refused(model, tmp_path, kind):
    encoder, policy = model
    policy.freeze(["vision", "audio", "text"])
    module = rl_module(model, tmp_path)
    batch = omni.prompts(encoder)
    if kind == "sft":
        module = SFTModule(policy, optimizer=optimizer(), context=context(tmp_path, 1))
        batch = targets(encoder, [GOOD, "angry", BAD, "user"])
    with pytest.raises(StageError, match=r"^stages\.stage\.freeze leaves no parameter"):
        trainer(tmp_path).fit(module, DataLoader([batch], batch_size=None))


def test_a_group_of_one_is_refused():
    with pytest.raises(ValueError, match="group_size is 1"):
        Algorithm(
            advantage=GroupNormalized(),
            loss=PPOClip(),
            aggregation=TokenMean(),
            settings=AlgorithmSettings(group_size=1),
        )


def test_the_rollout_table_holds_every_response(model, tmp_path):
    encoder, _ = model
    module = rl_module(model, tmp_path, table=RolloutTable(tmp_path / "rollouts"))
    fit(module, encoder, tmp_path)
    [path] = (tmp_path / "rollouts").iterdir()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["id"] for row in rows] == ["p0", "p1", "p2", "p3"]
    assert rows[0]["pass_rate"] == 0.5
    assert [response["text"] for response in rows[0]["responses"]] == [GOOD, BAD]
    assert rows[0]["responses"][0]["components"] == {"label": 1.0}


def targets(encoder, texts):
    items = []
    for index, text in enumerate(texts):
        item = omni.encoded(encoder, f"p{index}", omni.CONTENTS[index], index)
        ids = encoder.tokenizer(text).input_ids  # the encoder refuses control tokens
        items.append(EncodedSample(sample=item.sample, prompt=item.prompt, target_ids=(*ids, encoder.eos_token_ids[0])))
    return collate_targets(items, encoder.pad_token_id)


def test_a_target_that_holds_a_media_token_is_refused(model, tmp_path):
    encoder, policy = model
    module = SFTModule(policy, optimizer=optimizer(), context=context(tmp_path, 1))
    batch = targets(encoder, [GOOD, "<|AUDIO|>angry", BAD, "user"])
    with pytest.raises(MediaError, match=r"^sample p1: 1 audio placeholders in its target"):
        trainer(tmp_path).fit(module, DataLoader([batch], batch_size=None))


def test_sft_learns_its_targets(model, tmp_path):
    encoder, policy = model
    batch = targets(encoder, [GOOD, "angry", BAD, "user"])
    module = SFTModule(policy, optimizer=optimizer(0.05), context=context(tmp_path, 8))
    losses = []
    step = module.training_step
    module.training_step = lambda *args: losses.append(step(*args)) or losses[-1]
    trainer(tmp_path, gradient_clip_val=1.0).fit(module, DataLoader([batch] * 8, batch_size=None))
    assert losses[-1].item() < 0.8 * losses[0].item()


def test_the_sft_loss_is_the_mean_over_target_tokens_alone(model, tmp_path):
    encoder, policy = model
    batch = targets(encoder, [GOOD, "angry", BAD, "user"])
    module = SFTModule(policy, optimizer=optimizer(), context=context(tmp_path, 1))
    module._report = lambda values, step: None
    module._learning_rate = lambda: 0.0
    loss = module.training_step(batch, 0)
    total, count = 0.0, 0
    for row in range(4):
        keep = batch.prompts.prompt_mask[row]
        target = batch.completion_ids[row][batch.completion_mask[row]]
        ids = torch.cat([batch.prompts.input_ids[row, keep], target])[None]
        media = normalized(batch.prompts.select([row]).media.tensors)
        seconds = torch.tensor([2 / (4 / 1.5)]) if "video_grid_thw" in media else None
        logits = policy.model(
            input_ids=ids, attention_mask=torch.ones_like(ids), video_second_per_grid=seconds, **media
        ).logits[0, keep.sum() - 1 : -1]
        logprobs = logits.masked_fill(policy.banned, -torch.inf).log_softmax(-1).gather(-1, target[:, None])
        total, count = total - logprobs.sum().item(), count + len(target)
    assert loss.item() == pytest.approx(total / count, abs=1e-4)


def test_phases_change_what_is_sampled_and_the_temperature_that_is_trained(model, tmp_path):
    encoder, policy = model
    phases = {
        "short": PhaseSettings(after=1, group_size=3, max_new_tokens=2),
        "cool": PhaseSettings(after=2, temperature=0.5),
    }
    algorithm = Algorithm(
        advantage=GroupNormalized(),
        loss=PPOClip(),
        aggregation=TokenMean(),
        settings=AlgorithmSettings(group_size=4, phases=phases),
    )
    module = rl_module(model, tmp_path, reward=Counts(), algorithm=algorithm, num_steps=3)
    module.engine = omni.engine(encoder, policy, max_new_tokens=5, eos_token_ids=[])
    found, generate = [], module.engine.generate

    def remember(prompts, **arguments):
        rollout = generate(prompts, **arguments)
        found.append((rollout.group_size, rollout.completion_ids.shape[1], policy.temperature))
        return rollout

    module.engine.generate = remember
    fit(module, encoder, tmp_path, num_batches=3)
    assert found == [(4, 5, 1.0), (3, 2, 1.0), (3, 2, 0.5)]
