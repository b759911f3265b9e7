"""Every hack of tools/mutation/reward_hacks.yaml earns nothing, every honest text its reward."""

import re
import time
from collections import Counter
from itertools import islice

import hack_rewards as tool
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_mmrl.prompts.wheel import BUILT_IN
from lightning_mmrl.rewards.compose import WeightedReward
from lightning_mmrl.rewards.emotion_set import EmotionSet
from lightning_mmrl.rewards.lenient_format import LenientFormat
from lightning_mmrl.settings.algorithm import RewardSettings
from lightning_mmrl.types.records import Completion, Sample

HACKS, HONEST = tool.read_hacks()
GROUPS = Counter(hack.name.partition("/")[0] for hack in HACKS)


def score(name, sample, completion):
    return WeightedReward(components={name: tool.REWARDS[name]}, settings=RewardSettings(weights={name: 1.0})).score(
        sample, completion
    )


def test_there_are_hundreds_of_hacks_in_many_groups_and_each_is_another_text():
    assert len(HACKS) >= 300
    assert min(GROUPS.values()) >= 6
    assert {hack.reward for hack in HACKS} >= {"format", "label", "hard", "choice", "math", "emotion_set", "repetition"}
    assert {hack.reward for hack in HACKS} >= {"prose", "boxed", "tag_or_boxed", "phrase", "mixed", "think_boxed"}
    assert max(Counter((hack.reward, hack.solution, hack.text) for hack in HACKS).values()) == 1


@pytest.mark.parametrize("hack", HACKS, ids=lambda hack: hack.name)
def test_a_hack_does_not_pay(hack):
    assert tool.paying([hack], score) == [], hack.why
    judged = score(hack.reward, tool.sample(hack.solution, hack.question), tool.completion(hack.text))
    assert judged.valid or hack.reward in tool.POOLED  # it may run out of time: that is counted, and pays nothing


@pytest.mark.parametrize("honest", HONEST, ids=lambda honest: honest.group)
def test_an_honest_text_pays(honest):
    """Without it, a reward that never pays would pass."""
    assert tool.unpaid([honest], score) == []


def test_a_reward_that_a_hack_fools_would_be_found():
    def naive(name, sample, completion):
        return WeightedReward(
            components={name: lambda sample, completion: float((sample.solution or "") in completion.text)},
            settings=RewardSettings(weights={name: 1.0}),
        ).score(sample, completion)

    assert len(tool.paying(HACKS, naive)) > 150


@pytest.mark.timeout(120)
def test_no_hostile_completion_hangs_a_reward_or_makes_it_fail():
    """All but math-verify, which is meant for killable processes and can fail."""
    texts = list(islice(tool.adversarial(seed=1), 60))
    assert len({kind for kind, _ in texts}) == 15
    assert max(len(text) for _, text in texts) == tool.LENGTH
    for name in tool.REWARDS.keys() - set(tool.POOLED):
        one = tool.sample(tool.SOLUTIONS.get(name, "sad"))
        for kind, text in texts:
            start = time.thread_time()
            assert score(name, one, tool.completion(text)).valid, (name, kind)
            assert time.thread_time() - start < 2.0, (name, kind)


def test_the_same_seed_gives_the_same_completions():
    first, again, other = (list(islice(tool.adversarial(seed), 30)) for seed in (3, 3, 4))
    assert first == again
    assert first != other


@pytest.mark.parametrize("num_wanted", [1, 2])
def test_more_guesses_than_wanted_never_earn_more_on_average(num_wanted):
    """All solutions of `num_wanted` groups are equally likely; without the penalty guessing pays."""
    groups = list(BUILT_IN)
    solutions = [groups[start : start + num_wanted] for start in range(len(groups) - num_wanted + 1)]

    def mean(reward, num_guesses):
        text = f"<answer>{', '.join(groups[:num_guesses])}</answer>"
        completion = Completion(text=text, num_tokens=9, truncated=False)
        samples = [Sample(id="a", messages=(), solution=", ".join(solution)) for solution in solutions]
        return sum(reward(sample, completion) for sample in samples) / len(samples)

    best = mean(EmotionSet(), num_wanted)
    assert all(mean(EmotionSet(), count) <= best for count in range(num_wanted + 1, len(groups) + 1))
    free = EmotionSet(extra_penalty=0.0)
    assert mean(free, len(groups)) > mean(free, num_wanted)


PIECES = ("<think>", "</think>", "<answer>", "</answer>", " ", "\n", "\x85", "\u3000", "a", "<")


@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
def test_the_lenient_format_is_the_regular_expression(text):
    matches = re.fullmatch(r"<think>.*?</think>\s*<answer>.*?</answer>", text, re.DOTALL) is not None
    assert LenientFormat()(Sample(id="a", messages=()), Completion(text=text, num_tokens=1, truncated=False)) == matches


@given(st.lists(st.sampled_from(PIECES), max_size=6).map("".join))
def test_the_lenient_format_is_it_also_between_the_outer_tags(inner):
    """Where most texts match."""
    text = f"<think>{inner}</think> {inner}<answer>{inner}</answer>"
    matches = re.fullmatch(r"<think>.*?</think>\s*<answer>.*?</answer>", text, re.DOTALL) is not None
    assert LenientFormat()(Sample(id="a", messages=()), Completion(text=text, num_tokens=1, truncated=False)) == matches
