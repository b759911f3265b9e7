"""Where prompts go by their pass rates, and which of their completions and targets count then."""

from dataclasses import replace

import pytest
import torch
from algorithms import algorithm_of
from step_cases import drawn, experience_of

from lightning_mmrl.algorithms.advantages.group_normalized import GroupNormalized
from lightning_mmrl.algorithms.losses.aggregation import TokenMean
from lightning_mmrl.algorithms.losses.ppo_clip import PPOClip
from lightning_mmrl.algorithms.selection.has_signal import HasSignal
from lightning_mmrl.algorithms.selection.pad import PaperPAD
from lightning_mmrl.data.rollout_table import read_table
from lightning_mmrl.settings.algorithm import AlgorithmSettings, CriticSettings, RouterSettings
from lightning_mmrl.settings.stage import StageSettings
from lightning_mmrl.stages.collect import Collector
from lightning_mmrl.stages.context import StageContext
from lightning_mmrl.stages.rollout_table import RolloutTable
from lightning_mmrl.stages.router import Router, learns
from lightning_mmrl.types.batches import Scores
from lightning_mmrl.types.records import Score

NEVER, ONCE, ALWAYS, UNJUDGED = (0, 0), (1, 0), (1, 1), (None, None)
TARGETS = {"p0": [5, 6, 7], "p1": [5], "p2": [8, 9], "p3": [4], "p4": "sample p4 does not end with an assistant turn"}


def experience(*groups):
    """Prompts p0, p1 and so on with two completions each: right, wrong, or without a valid score."""
    found = experience_of(drawn(0, 2, num_prompts=len(groups)) if len(groups) > 2 else drawn(0, 2, num_prompts=3))
    assert len(found.trainable) == len(groups)
    right = torch.tensor([[float(each or 0) for each in group] for group in groups])
    valid = torch.tensor([[each is not None for each in group] for group in groups])
    details = tuple(
        tuple(
            Score(total=float(each or 0), components={"label": float(each or 0)}, valid=each is not None)
            for each in group
        )
        for group in groups
    )
    scores = Scores(rewards=right, valid=valid, components={"label": right}, details=details)
    return replace(found, scores=scores, trainable=valid, advantages=torch.zeros(found.rollout.completion_mask.shape))


def router(said=None, **keys):
    context = StageContext(
        name="stage",
        settings=StageSettings(),
        seed=0,
        directory=None,
        target_tokens=lambda sample, num_positions: TARGETS[sample.id],
        say=(lambda message: None) if said is None else said.append,
    )
    return Router(RouterSettings(**keys), context)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, ["sft", "rl", "rl", "rl", "rl"]),
        ({"solved_at_least": 1.0}, ["sft", "rl", "dropped", "rl", "rl"]),
        ({"unsolved_at_most": 0.5}, ["sft", "sft", "rl", "rl", "rl"]),
        ({"unsolved_at_most": 1.0, "solved_at_least": 0.5}, ["sft", "dropped", "dropped", "rl", "rl"]),
        ({"unsolved_at_most": 1.0}, ["sft", "sft", "sft", "rl", "rl"]),
        ({"unsolved_at_most": None}, ["rl"] * 5),
    ],
)
def test_a_prompt_goes_where_its_pass_rate_sends_it(keys, expected):
    """The fourth has no valid score, the last no target."""
    routes = router(**keys).routes(experience(NEVER, ONCE, ALWAYS, UNJUDGED, NEVER))
    assert [route.to for route in routes] == expected
    missing = [route.missing for route in routes]
    assert missing[:4] == [None] * 4
    assert missing[4] == (None if keys.get("unsolved_at_most", 0) is None else TARGETS["p4"])


def test_only_valid_scores_count():
    routes = router().routes(experience((None, 0), (None, 1), (1, 0)))
    assert [route.to for route in routes] == ["sft", "rl", "rl"]


def test_completions_count_for_rl_alone_and_targets_for_sft_alone():
    scored = experience(NEVER, ONCE, ALWAYS, NEVER, (1, None))
    found = Collector(router=router(solved_at_least=1.0)).chosen([scored])
    batch = found.batch
    rl = [False, True, False, False, False]
    assert batch.trainable.any(-1).tolist() == batch.scores.valid.any(-1).tolist() == rl
    assert batch.targets.completion_ids.tolist() == [[5, 6, 7], [0, 0, 0], [0, 0, 0], [4, 0, 0], [0, 0, 0]]
    assert batch.targets.completion_mask.sum(-1).tolist() == [3, 0, 0, 1, 0]
    assert batch.targets.group_size == 1
    assert learns(batch) == [True, False, False, True, False]
    assert found.routes_taken == ["sft", "rl", "dropped", "sft", "dropped"]
    assert torch.equal(found.all_scores.valid, scored.scores.valid), "metrics see all scores"


def test_a_completion_that_did_not_count_before_does_not_count_in_rl():
    batch = Collector(router=router()).chosen([experience(NEVER, (1, None), ALWAYS)]).batch
    assert batch.trainable.tolist() == batch.scores.valid.tolist() == [[False, False], [True, False], [True, True]]


def test_without_a_router_nothing_is_learned_but_completions():
    batch = Collector().chosen([experience(NEVER, ONCE, ALWAYS)]).batch
    assert batch.targets is None
    assert learns(batch) == [False] * 3


def test_a_selection_judges_the_groups_of_rl_alone():
    """A prompt of SFT has no signal and is kept; a solved one that is dropped makes room."""
    settings = AlgorithmSettings(max_samplings=2)
    collector = Collector(select=HasSignal(), settings=settings, router=router(solved_at_least=1.0))
    first = experience(NEVER, ALWAYS, ONCE)
    assert collector.is_short([first])
    found = collector.chosen([first, experience(NEVER, NEVER, ONCE)])
    assert found.rows == (0, 2, 3)
    assert found.refilled
    assert found.routes_taken == ["sft", "dropped", "rl", "sft", None, None]
    assert learns(found.batch) == [True, False, True]
    assert found.batch.trainable.any(-1).tolist() == [False, True, False]
    kept = Collector(select=HasSignal(), settings=settings).chosen([first, experience(NEVER, NEVER, ONCE)])
    assert kept.rows == (0, 2, 5), "without a router, prompts without a signal fill the missing place alone"


def test_the_table_says_where_prompts_went(tmp_path):
    found = Collector(router=router(solved_at_least=1.0)).chosen([experience(NEVER, ONCE, ALWAYS)])
    table = RolloutTable(tmp_path, StageSettings(rollout_table_every=1))
    rows = read_table(table.write(1, *found.everything, routes=found.routes_taken))
    assert [row.route for row in rows] == ["sft", "rl", "dropped"]
    plain = read_table(table.write(2, *found.everything))
    assert [row.route for row in plain] == [None] * 3
    assert "route" not in (tmp_path / "iteration_000002.jsonl").read_text()


def test_a_missing_target_is_counted_and_said_once():
    said = []
    sends = router(said)
    routes = sends.routes(experience(NEVER, ONCE, ALWAYS, ONCE, NEVER))
    for _ in range(2):
        assert sends.stats(routes) == {
            "route/rl": 0.8,
            "route/sft": 0.2,
            "route/dropped": 0.0,
            "route/without_target": 0.2,
        }
    [message] = said
    assert message.startswith("1 of 5 prompts are not solved and stay in RL, having no target to learn: sample p4 ")


def test_targets_are_needed_unless_no_prompt_can_go_to_sft():
    context = StageContext(name="stage", settings=StageSettings(), seed=0, directory=None)
    with pytest.raises(ValueError, match="target_tokens"):
        Router(RouterSettings(), context)
    Router(RouterSettings(unsolved_at_most=None), context)


@pytest.mark.parametrize("other", [{"critic": CriticSettings(), "advantage": None}, {"resample": PaperPAD()}])
def test_a_router_goes_without_a_critic_and_without_resample(other):
    parts = {"advantage": GroupNormalized(), "loss": PPOClip(), "aggregation": TokenMean(), **other}
    algorithm_of(**parts)
    with pytest.raises(ValueError, match=r"^a router does without a critic and without resample"):
        algorithm_of(**parts, router=RouterSettings())
