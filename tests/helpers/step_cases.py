"""Rollouts whose log-probabilities are tables: the product's own step without a model, to compare with other codes."""

from dataclasses import dataclass, replace
from functools import cache

import torch

from lightning_mmrl.app.stages import build_algorithm
from lightning_mmrl.config.compose import compose
from lightning_mmrl.config.folders import configs_dir
from lightning_mmrl.ops.packing import Budget
from lightning_mmrl.protocols.ranks import ALONE
from lightning_mmrl.registry.targets import build
from lightning_mmrl.stages.advantages import penalized_rewards, shared_advantages
from lightning_mmrl.stages.optimize import Minibatch, Objective, accumulate_loss
from lightning_mmrl.types.batches import Experience, MediaInputs, PolicyOutput, PromptBatch, Rollout, Scores
from lightning_mmrl.types.records import Completion, Message, Sample

WITH_CRITIC = ("lmm_r1", "ppo")
"""Presets whose advantages are of tokens; `test_ppo.py` has them, and `test_presets.py` all others."""
PRESETS = sorted({path.stem for path in configs_dir().glob("algorithm/*.yaml")} - set(WITH_CRITIC))
WHOLE, ROW_BY_ROW = Budget(tokens=10**6), Budget(tokens=1)
WIDTH = 6


@cache
def preset(name):
    """The algorithm of a preset as `mmrl train experiment=quickstart algorithm@stages.reason=NAME` builds it."""
    stage = compose(["experiment=quickstart", f"algorithm@stages.reason={name}"]).stages["reason"]
    make = build({**stage.module, "_partial_": True}, "module")
    return build_algorithm(stage, make, "stages.reason")


@dataclass(kw_only=True)
class Table:
    """Log-probabilities [N, C] under three policies and the engine, entropies, and what the completions earned."""

    logprobs: torch.Tensor
    old: torch.Tensor
    reference: torch.Tensor
    entropy: torch.Tensor
    mask: torch.Tensor
    rewards: torch.Tensor
    valid: torch.Tensor
    truncated: torch.Tensor
    sampler: torch.Tensor | None = None

    @property
    def size(self):
        return self.rewards.shape[1]

    def select(self, prompts):
        """The given prompts."""
        rows = [prompt * self.size + place for prompt in prompts for place in range(self.size)]
        tokens = {name: getattr(self, name)[rows] for name in ("logprobs", "old", "reference", "entropy", "mask")}
        scores = {name: getattr(self, name)[prompts] for name in ("rewards", "valid", "truncated")}
        return Table(**tokens, **scores, sampler=None if self.sampler is None else self.sampler[rows])


def drawn(seed, size, *, num_prompts=5, all_valid=False, moved=0.4, apart=0.5):
    """Ragged completions, some invalid or truncated; a constant group, and one with a single valid completion.

    `moved` is how far a log-probability typically is from the one at rollout, `apart` how far that is from the
    engine's.
    """
    generator = torch.Generator().manual_seed(1000 * size + seed)
    num_rows = num_prompts * size
    noise = torch.randn(4, num_rows, WIDTH, generator=generator, dtype=torch.float64)
    rewards = torch.randint(0, 4, (num_prompts, size), generator=generator).double() / 2
    rewards[0] += torch.randn(size, generator=generator, dtype=torch.float64)
    rewards[1] = 0.1
    valid = torch.rand(num_prompts, size, generator=generator) < 0.8
    valid[0] = True
    valid[2] = torch.arange(size) == 1
    old = noise[0] * 0.4 - 2
    return Table(
        logprobs=old + noise[1] * moved,
        old=old,
        reference=old + noise[2] * 0.3,
        entropy=noise[3].abs(),
        mask=torch.arange(WIDTH) < torch.randint(1, WIDTH + 1, (num_rows, 1), generator=generator),
        rewards=rewards,
        valid=torch.ones_like(valid) if all_valid else valid,
        truncated=torch.rand(num_prompts, size, generator=generator) < 0.2,
        sampler=old + apart * torch.randn(num_rows, WIDTH, generator=generator, dtype=torch.float64),
    )


class TablePolicy:
    """Says what a table says; a token's id is the row that it stands in."""

    def __init__(self, logprobs, entropy):
        self.logprobs = logprobs.clone().requires_grad_()
        self.entropy = entropy.clone().requires_grad_()

    def __call__(self, batch, *, entropy_gradient=False):
        rows, mask = batch.completion_ids[:, 0], batch.completion_mask
        entropy = torch.where(mask, self.entropy[rows], 0.0)
        return PolicyOutput(
            logprobs=torch.where(mask, self.logprobs[rows], 0.0),
            entropy=entropy if entropy_gradient else entropy.detach(),
        )


def experience_of(table):
    """The experience that a stage would make of the table, and its scores."""
    num_prompts, size = table.rewards.shape
    samples = tuple(
        Sample(id=f"p{place}", messages=(Message(role="user", content="why"),), solution="so")
        for place in range(num_prompts)
    )
    ones = torch.ones(num_prompts, 1, dtype=torch.long)
    prompts = PromptBatch(
        samples=samples,
        input_ids=ones,
        prompt_mask=ones.bool(),
        position_ids=torch.zeros(3, num_prompts, 1, dtype=torch.long),
        next_position=torch.ones(num_prompts, dtype=torch.long),
        media=MediaInputs(tensors={}, counts={}),
    )
    rollout = Rollout(
        completion_ids=torch.arange(num_prompts * size)[:, None].expand(-1, WIDTH),
        completion_mask=table.mask,
        sampler_logprobs=torch.zeros(table.mask.shape) if table.sampler is None else table.sampler,
        completions=tuple(
            Completion(text="", num_tokens=int(row.sum()), truncated=bool(cut))
            for row, cut in zip(table.mask, table.truncated.flatten(), strict=True)
        ),
        group_size=size,
        policy_version=0,
    )
    # The value that a failed verifier left there must not matter.
    rewards = torch.where(table.valid, table.rewards, torch.nan)
    scores = Scores(rewards=rewards, valid=table.valid, components={}, details=())
    experience = Experience(
        prompts=prompts,
        rollout=rollout,
        advantages=torch.zeros_like(rewards),
        trainable=table.valid,
        reference_logprobs=table.reference,
        old_logprobs=table.old,
    )
    return experience, scores


def taken(algorithm, table, *, budget=WHOLE, ranks=ALONE, on_policy=False, entropy_coefficient=0.0, weights=None):
    """Statistics and gradients by log-probabilities and entropies of one optimizer step on a whole table.

    `weights` are how often each completion counts; PAD draws them from advantages, which is not done here.
    """
    experience, scores = experience_of(table)
    experience = replace(experience, weights=weights)
    if algorithm.mask_truncated:
        experience = replace(experience, trainable=table.valid & ~table.truncated)
    rewards = penalized_rewards(experience, scores, algorithm.kl, algorithm.kl.coefficient)
    advantages = shared_advantages(algorithm.advantage, rewards, scores, ranks)
    experience = replace(experience, advantages=advantages)
    policy = TablePolicy(table.logprobs, table.entropy)
    rows = tuple(range(len(table.rewards)))
    totals = accumulate_loss(
        policy,
        experience,
        Minibatch(rows=rows, live=rows),
        objective=Objective(
            loss=algorithm.loss,
            aggregation=algorithm.aggregation,
            correction=algorithm.correction,
            ranks=ranks,
            kl=algorithm.kl,
            kl_coefficient=0.0 if algorithm.kl.in_reward else algorithm.kl.coefficient,
            entropy_coefficient=entropy_coefficient,
        ),
        old_logprobs=None if on_policy else table.old,
        budget=budget,
        prompts=experience.prompts.select,
        backward=torch.Tensor.backward,
    )
    return totals, policy.logprobs.grad, policy.entropy.grad
