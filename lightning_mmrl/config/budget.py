"""The budget of a run: up to where it lets each stage go, and which budgets cannot work."""

import math
from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction

from lightning_mmrl.errors import ConfigError
from lightning_mmrl.settings.budget import MEASURES, BudgetSettings
from lightning_mmrl.settings.rollout import lag_of
from lightning_mmrl.settings.route import RouteSettings
from lightning_mmrl.settings.rules import one_of, require
from lightning_mmrl.settings.run import RunSettings
from lightning_mmrl.settings.stage import StageSettings

ROUNDING = 1e-5
"""How far the sum of shares may be from 1, as with three times 0.333333."""


ASKED = ("endpoint", "local_checkpoint")
"""Keys of a reward that asks a model: where the model is."""


def shares(config: RunSettings) -> dict[str, float]:
    """The share of each stage that the budget ends, in the order of the stages; empty without a budget."""
    if config.budget is None:
        return {}
    given = config.budget.shares or {name: 1.0 for name in [*config.trained][-1:]}
    return {name: given[name] for name in config.order if name in given}


def limits(config: RunSettings) -> dict[str, float]:
    """Up to where each stage that the budget ends may go, in the measure of the budget.

    The limit of a stage is what it and all stages before it may cost together, apart from stages whose costs do not
    count: the sum of the shares up to the stage, times the budget. Shares are exact in decimal digits.
    """
    if config.budget is None:
        return {}
    found, total = shares(config), Fraction(str(config.budget.total))
    whole = sum(map(_exact, found.values()), Fraction())
    so_far, ends = Fraction(), {}
    for name, share in found.items():
        so_far += _exact(share)
        ends[name] = float(total * so_far / whole)
    return ends


def counted_before(config: RunSettings, name: str) -> list[str]:
    """The stages before a stage whose costs count."""
    apart = [] if config.budget is None else config.budget.apart
    return [each for each in config.order[: config.order.index(name)] if each not in apart]


def known_steps(config: RunSettings, stages: Mapping[str, StageSettings] | None = None) -> Mapping[str, float]:
    """Steps of each stage that trains under a budget of steps; infinite where they are not known before.

    A stage that the budget ends does so at the step whose end is nearest to its limit, the earlier one of two, whatever
    the stages before it took. Not known are the steps of a stage that `stop_when` may end or that runs for epochs, and
    then those of the next stage that the budget ends, unless the former does not count.

    Args:
        config: The run.
        stages: The stages that train, with the steps of their epochs where these are known; None for those of the run.
    """
    ends, spent, found = limits(config), 0.0, {}
    for name, stage in (stages or config.trained).items():
        if name in ends:
            end = math.ceil(ends[name] - 0.5)
            found[name] = max(0, end - spent) if math.isfinite(spent) else math.inf
            spent = end
            continue
        found[name] = math.inf if stage.num_steps is None or stage.stop_when is not None else stage.num_steps
        spent += 0 if config.budget is None or name in config.budget.apart else found[name]
    return found


def with_budget(config: RunSettings, stages: Mapping[str, StageSettings]) -> dict[str, StageSettings]:
    """The stages that train, with the steps that they will make in the place of nominal ones: None if not known."""
    measured = config.budget is not None and config.budget.measure == "steps"
    known, found = known_steps(config, stages) if measured else {}, dict(stages)
    for name in limits(config):
        steps = known.get(name, math.inf)
        found[name] = replace(found[name], num_steps=int(steps) if math.isfinite(steps) else None, num_epochs=None)
    return found


def uncounted(config: RunSettings) -> str | None:
    """A sentence about the models that a budget of operations does not count; None if there are none.

    These are experts and judges of stages that count, at an endpoint or on this machine.
    """
    if config.budget is None or config.budget.measure != "flops":
        return None
    found = []
    for name in config.order:
        stage = config.stages[name]
        if name in config.budget.apart:
            continue
        if isinstance(stage, RouteSettings) and stage.expert is not None:
            found.append(f"the expert of stages.{name}")
        components = {} if stage.rewards is None else stage.rewards.components
        if any(isinstance(node, Mapping) and any(map(node.get, ASKED)) for node in components.values()):
            found.append(f"the judges of stages.{name}")
    return f"budget.flops does not count the operations of {' and '.join(found)}" if found else None


def check_budget(config: RunSettings) -> None:
    """Refuses a budget that cannot work.

    Raises:
        ConfigError: Naming key, value and rule.
    """
    budget = config.budget
    if budget is None:
        return
    if len(budget.given) != 1:
        has = f"has {' and '.join(budget.given)}" if budget.given else "has no limit"
        raise ConfigError(f"budget {has}; give exactly one of {', '.join(MEASURES)}, for example budget={{steps: 200}}")
    if not config.trained:
        raise ConfigError("budget ends stages that train, and order has none; set budget=null")
    _check_names(config, budget)
    for name in shares(config):
        _check_stage(config, name, config.trained[name])
    if budget.measure == "steps":
        for name, steps in known_steps(config).items():
            if steps < 1:
                raise ConfigError(
                    f"budget.steps is {budget.steps}, which leaves no step for stages.{name} (its limit is step "
                    f"{limits(config)[name]:g} of all); give a larger budget, or the stage a larger share"
                )


def _check_names(config: RunSettings, budget: BudgetSettings) -> None:
    for name in budget.apart:
        one_of(name, "budget.apart", config.order)
    for name, share in budget.shares.items():
        one_of(name, "budget.shares", config.trained)
        require(math.isfinite(share) and share > 0, f"budget.shares.{name}", share, "above 0")
        rule = "left out: the stage is in budget.apart, so its costs do not count"
        require(name not in budget.apart, f"budget.shares.{name}", share, rule)
    last = [*config.trained][-1]
    if budget.shares and last not in budget.shares:
        raise ConfigError(f"budget.shares has no {last}, the last stage that trains; give it a share")
    require(last not in budget.apart, "budget.apart", last, "without the last stage that trains, which the budget ends")
    total = sum(map(_exact, budget.shares.values()), Fraction())
    if budget.shares and abs(total - 1) > ROUNDING:
        raise ConfigError(f"budget.shares sum up to {float(total):g}; they must sum up to 1")


def _check_stage(config: RunSettings, name: str, stage: StageSettings) -> None:
    """Refuses a stage that the budget ends, if it cannot be ended so."""
    path = f"stages.{name}"
    if stage.stop_when is not None:
        raise ConfigError(f"{path}.stop_when is set, and budget.shares ends the stage by its costs; set it to null")
    if stage.algorithm is not None and lag_of(config.rollout):
        raise ConfigError(
            f"rollout.lag is {lag_of(config.rollout)}, and the budget ends {path} at a step that is not known before: "
            "what is sampled ahead of it would be spent without being counted; set rollout.lag=0"
        )


def _exact(number: float) -> Fraction:
    return Fraction(str(number))
