"""Losses of pairs by an independent derivation in NumPy and float64, by finite differences, and by TRL's trainer."""

import math
from collections import defaultdict
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lightning_mmrl.algorithms.losses.preference import PreferenceObjective, RewardShift
from lightning_mmrl.settings.dpo import PreferenceSettings
from lightning_mmrl.stages.dpo import pair_logprobs
from lightning_mmrl.types.batches import PairLogprobs

MPO = {"preference_weight": 0.8, "quality_weight": 0.2, "generation_weight": 1.0}
CASES = {
    "dpo": {},
    "smoothed": {"label_smoothing": 0.1},
    "ipo": {"loss": "ipo"},
    "hinge": {"loss": "hinge", "beta": 0.02},
    "mpo": MPO,
    "mpo of ipo": {**MPO, "loss": "ipo", "beta": 0.2},
}


def drawn(seed, num=7):
    """Log-probabilities of pairs, as sums over tokens, and the numbers of these tokens."""
    generator = np.random.default_rng(seed)
    tokens = generator.integers(1, 30, size=(2, num)).astype(float)
    return {
        "chosen": -generator.exponential(1.2, num) * tokens[0],
        "rejected": -generator.exponential(1.2, num) * tokens[1],
        "reference_chosen": -generator.exponential(1.2, num) * tokens[0],
        "reference_rejected": -generator.exponential(1.2, num) * tokens[1],
        "tokens_chosen": tokens[0],
        "tokens_rejected": tokens[1],
    }


def by_hand(found, settings, shift):
    """The mean loss of pairs, from the probability that the chosen answer wins (Bradley-Terry), pair by pair."""
    total = 0.0
    for place in range(len(found["chosen"])):
        one = {name: float(values[place]) for name, values in found.items()}
        rewards = {side: settings.beta * (one[side] - one[f"reference_{side}"]) for side in ("chosen", "rejected")}
        wins = np.longdouble(1) / (1 + np.exp(np.longdouble(rewards["rejected"] - rewards["chosen"])))
        if settings.loss == "sigmoid":
            clean, turned = -np.log(wins), -np.log1p(-wins)
            preference = (1 - settings.label_smoothing) * clean + settings.label_smoothing * turned
        elif settings.loss == "hinge":
            preference = max(0.0, 1 - (rewards["chosen"] - rewards["rejected"]))
        else:
            means = [rewards[side] / settings.beta / one[f"tokens_{side}"] for side in ("chosen", "rejected")]
            preference = (means[0] - means[1] - 1 / (2 * settings.beta)) ** 2
        good = 1 / (1 + np.exp(np.longdouble(shift - rewards["chosen"])))
        bad = 1 / (1 + np.exp(np.longdouble(shift - rewards["rejected"])))
        quality = -np.log(good) - np.log1p(-bad)
        generation = -one["chosen"] / one["tokens_chosen"]
        total += settings.preference_weight * preference
        total += settings.quality_weight * quality + settings.generation_weight * generation
    return float(total) / len(found["chosen"])


def computed(found, settings, shift):
    """The same from the functions that train."""
    objective = PreferenceObjective(settings)
    pairs = PairLogprobs(**{name: torch.as_tensor(values) for name, values in found.items()})
    return objective.total(objective.parts(pairs, shift)).mean()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("shift", [0.0, -0.3])
def test_the_loss_is_the_closed_form(name, shift):
    settings = PreferenceSettings(**CASES[name])
    for seed in range(5):
        found = drawn(seed)
        assert computed(found, settings, shift).item() == pytest.approx(by_hand(found, settings, shift), rel=1e-9)


def test_a_shift_of_the_other_sign_would_show():
    """The negative control."""
    found, settings = drawn(0), PreferenceSettings(**MPO)
    assert abs(computed(found, settings, 0.3).item() / by_hand(found, settings, -0.3) - 1) > 1e-3


@pytest.mark.parametrize("name", CASES)
def test_the_gradient_is_that_of_finite_differences(name):
    settings, found, step = PreferenceSettings(**CASES[name]), drawn(1), 1e-6
    tensors = {
        key: torch.as_tensor(values).requires_grad_(key in ("chosen", "rejected")) for key, values in found.items()
    }
    computed(tensors, settings, 0.2).backward()
    for side in ("chosen", "rejected"):
        for place in range(len(found[side])):
            around = []
            for sign in (1, -1):
                moved = {key: values.copy() for key, values in found.items()}
                moved[side][place] += sign * step
                around.append(by_hand(moved, settings, 0.2))
            slope = (around[0] - around[1]) / (2 * step)
            gradient = tensors[side].grad
            assert gradient is not None
            assert gradient[place].item() == pytest.approx(slope, rel=1e-5, abs=1e-8)


def test_values_that_are_known_without_a_computer():
    same = {name: np.full(1, -2.0) for name in ("chosen", "rejected", "reference_chosen", "reference_rejected")}
    same |= {"tokens_chosen": np.full(1, 4.0), "tokens_rejected": np.full(1, 4.0)}
    assert computed(same, PreferenceSettings(), 0.0).item() == pytest.approx(math.log(2), rel=1e-12)
    assert computed(same, PreferenceSettings(loss="hinge"), 0.0).item() == 1
    assert computed(same, PreferenceSettings(loss="ipo", beta=0.25), 0.0).item() == 4
    expected = 0.8 * math.log(2) + 0.2 * 2 * math.log(2) + 0.5
    assert computed(same, PreferenceSettings(**MPO), 0.0).item() == pytest.approx(expected, rel=1e-12)


def test_far_rewards_have_finite_losses():
    far = drawn(2)
    far["chosen"] = far["chosen"] - 1e6
    assert math.isfinite(computed(far, PreferenceSettings(beta=1.0, **MPO), 0.0).item())


def test_the_running_mean_is_the_mean_of_all_rewards():
    generator = np.random.default_rng(3)
    batches = [generator.normal(size=size) for size in (2, 8, 1, 6)]
    shift = RewardShift()
    for batch in batches:
        shift.add(float(batch.sum()), len(batch))
    assert shift.mean == pytest.approx(float(np.concatenate(batches).mean()), rel=1e-12)
    assert shift.count == 17


TRL = {
    "sigmoid": (["sigmoid"], [1.0], {}),
    "ipo": (["ipo"], [1.0], {"loss": "ipo"}),
    "hinge": (["hinge"], [1.0], {"loss": "hinge"}),
    "quality": (["bco_pair"], [1.0], {"preference_weight": 0.0, "quality_weight": 1.0}),
    "mpo": (["sigmoid", "bco_pair", "sft"], [0.8, 0.2, 1.0], MPO),
}
LENGTHS = ((5, 3), (5, 7), (5, 2))
"""Tokens of the chosen and of the rejected answers; TRL's SFT loss is a mean over tokens, ours one over pairs."""


@pytest.fixture(scope="module")
def trl_trainer():
    """TRL's trainer without a model: its loss takes the log-probabilities that a test gives it."""
    from trl import DPOTrainer

    return DPOTrainer


class Scripted:
    """A model whose forward pass returns given log-probabilities of tokens, chosen answers first."""

    def __init__(self, logprobs):
        self.logprobs, self.training = logprobs, True

    def __call__(self, **inputs):
        zeros = torch.zeros_like(self.logprobs)
        return SimpleNamespace(
            log_probs=self.logprobs, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool(), aux_loss=None
        )


def trl_loss(trainer_class, loss_types, weights, beta, own, reference, mask):
    """The loss of TRL 1.16.0 for log-probabilities of tokens."""
    gather = SimpleNamespace(
        device=torch.device("cpu"),
        gather=lambda values: values,
        gather_for_metrics=lambda values: values,
        unwrap_model=lambda model: model,
    )
    trainer = SimpleNamespace(
        model=Scripted(own),
        ref_model=Scripted(reference),
        accelerator=gather,
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=False,
        args=SimpleNamespace(gradient_checkpointing_kwargs=None),
        f_divergence_type="reverse_kl",
        loss_types=loss_types,
        loss_weights=weights,
        beta=beta,
        label_smoothing=0.0,
        use_weighting=False,
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
    )
    whole = torch.cat([torch.zeros(len(mask), 1, dtype=mask.dtype), mask], dim=1)
    inputs = {
        "input_ids": torch.zeros_like(whole, dtype=torch.long),
        "attention_mask": torch.ones_like(whole, dtype=torch.long),
        "completion_mask": whole.long(),
    }
    return trainer_class._compute_loss(trainer, trainer.model, inputs, False)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TRL)
def test_the_loss_and_its_gradient_are_those_of_trl(trl_trainer, name, monkeypatch):
    import trl.trainer.dpo_trainer as module

    monkeypatch.setattr(module, "disable_gradient_checkpointing", lambda *_: nullcontext())
    monkeypatch.setattr(module, "is_peft_model", lambda model: False)
    loss_types, weights, changes = TRL[name]
    settings = PreferenceSettings(beta=0.3, **changes)
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([pair[0] for pair in LENGTHS] + [pair[1] for pair in LENGTHS])
    mask = torch.arange(7) < lengths[:, None]
    own, reference = (-torch.rand(6, 7, generator=generator, dtype=torch.float64) * 3 * mask for _ in range(2))
    own.requires_grad_()
    theirs = trl_loss(trl_trainer, loss_types, weights, 0.3, own * mask, reference, mask)
    theirs.backward()
    expected = own.grad
    order = [0, 3, 1, 4, 2, 5]  # our rows lie pair by pair
    ours = own.detach()[order].requires_grad_()
    pairs = pair_logprobs(ours, reference[order], mask[order])
    objective = PreferenceObjective(settings)
    loss = objective.total(objective.parts(pairs, 0.0)).mean()
    loss.backward()
    assert loss.item() == pytest.approx(theirs.item(), rel=1e-6)
    assert expected is not None
    torch.testing.assert_close(ours.grad, expected[order], rtol=1e-6, atol=1e-9)
