"""Verdicts of a language model as a component of a reward."""

from types import SimpleNamespace

import pytest

from lightning_mmrl.errors import ConfigError, RewardError
from lightning_mmrl.protocols.experts import ExpertAnswer
from lightning_mmrl.rewards.asked import AskedRewards
from lightning_mmrl.rewards.compose import WeightedReward
from lightning_mmrl.rewards.llm_judge import LlmJudge
from lightning_mmrl.rewards.pool import InlineRewards
from lightning_mmrl.settings.algorithm import RewardSettings
from lightning_mmrl.types.records import Completion, Message, Sample

JUDGE = LlmJudge(expert={"model": "m"}, endpoint={"base_url": "http://127.0.0.1:9/v1"}, instructions="{truth}|{answer}")


def sample(name, solution="4"):
    return Sample(id=name, messages=(Message(role="user", content="2 + 2"),), solution=solution)


def completions(*texts):
    return [Completion(text=text, num_tokens=1, truncated=False) for text in texts]


def label(sample, completion):
    return 1.0 if completion.text == sample.solution else 0.0


def failing(sample, completion):
    raise ValueError("no verdict")


def asks(**replies):
    """An expert that replies to an answer as told, and the answers that it was asked about."""
    asked = []

    def ask(requests):
        found = []
        for request in requests:
            answer = request.turns[0].content.split("\n")[-2]
            asked.append(answer)
            reply = replies.get(f"n{answer}", "Verdict: wrong")
            found.append(ExpertAnswer(key=request.key, text=reply, problem=None if reply else "over_budget"))
        return found

    return SimpleNamespace(name="m", ask=ask, asked=asked)


def rewards(expert, judge=JUDGE, weight=2.0, **others):
    weights = {**dict.fromkeys(others, 1.0), "judge": weight}
    settings = RewardSettings(components={name: {} for name in weights}, weights=weights)
    own = RewardSettings(components={key: {} for key in others}, weights=dict.fromkeys(others, 1.0))
    inner = InlineRewards(WeightedReward(components=others, settings=own), own) if others else None
    return AskedRewards(inner=inner, judges={"judge": (judge, expert)}, settings=settings)


def test_a_verdict_joins_the_weighted_sum_and_its_agreement_is_recorded():
    expert = asks(n4="Verdict: right", n5="Verdict: right", n6="Verdict: wrong")
    ((right, lenient, wrong),) = rewards(expert, label=label).score([sample("a")], [completions("4", "5", "6")])
    assert right.total == 1.0 + 2.0
    assert right.components == {"label": 1.0, "judge": 1.0, "judge_agrees": 1.0}
    assert (lenient.total, lenient.components["judge_agrees"]) == (2.0, 0.0)
    assert (wrong.total, wrong.components["judge_agrees"]) == (0.0, 1.0)


def test_the_same_answer_is_asked_about_once_for_each_sample():
    expert = asks(n4="Verdict: right")
    groups = rewards(expert).score([sample("a"), sample("b")], [completions("4", "4", "5"), completions("4")])
    assert sorted(expert.asked) == ["4", "4", "5"]
    assert [[each.total for each in group] for group in groups] == [[2.0, 2.0, 0.0], [2.0]]


@pytest.mark.parametrize(("reply", "said"), [(None, "over_budget"), ("Well.", "Verdict")])
def test_an_answer_without_a_verdict_has_no_score(reply, said):
    (scores,) = rewards(asks(n4=reply), label=label).score([sample("a")], [completions("4", "5")])
    assert [each.valid for each in scores] == [False, True]
    assert scores[0].failed == "judge"
    assert said in scores[0].reason
    assert scores[0].total == 0.0


def test_nobody_is_asked_about_an_answer_whose_other_rewards_failed():
    expert = asks()
    (scores,) = rewards(expert, other=failing).score([sample("a")], [completions("4")])
    assert (scores[0].valid, scores[0].failed, expert.asked) == (False, "other", [])


def test_an_answer_to_which_no_other_reward_applies_is_judged():
    (scores,) = rewards(asks(n4="Verdict: right"), other=lambda sample, completion: None).score(
        [sample("a")], [completions("4")]
    )
    assert (scores[0].valid, scores[0].total) == (True, 2.0)


def test_a_sample_without_a_solution_is_not_compared():
    expert = asks()
    (scores,) = rewards(expert).score([sample("a", solution=None)], [completions("4")])
    assert not scores[0].valid
    assert "no solution" in scores[0].reason
    assert expert.asked == []


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"expert": {"model": "m"}},
        {"expert": {"model": "m"}, "endpoint": {"base_url": "http://h/v1"}, "local_checkpoint": "c"},
        {"local_checkpoint": "c", "max_reply_tokens": 0},
        {"expert": {"model": "m"}, "endpoint": {"base_url": "http://h/v1", "concurrency": 0}},
    ],
)
def test_a_judge_is_one_endpoint_or_one_checkpoint(keys):
    with pytest.raises(ConfigError):
        LlmJudge(**keys)


def test_a_judge_refuses_to_be_a_part_of_another_reward():
    with pytest.raises(RewardError, match="many answers at once"):
        JUDGE(sample("a"), completions("4")[0])
