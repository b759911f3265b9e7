"""Largest and smallest numbers: splits that share no numbers, answers found in the words, and the same bytes."""

import json
import re

import pytest

from lightning_mmrl.data.schema import read_manifest
from lightning_mmrl.data.synthetic.extremes import SPLIT_SIZES, Extreme, extremes, synthesize_extremes
from lightning_mmrl.errors import DataError
from lightning_mmrl.rewards.math_answer import MathAnswer
from lightning_mmrl.types.records import Completion

each_split = pytest.mark.parametrize("split", SPLIT_SIZES)


@each_split
def test_every_question_has_its_answer_and_a_split_has_none_twice(split):
    drawn = extremes(split)
    for each in drawn:
        numbers = sorted(map(int, re.findall("[0-9]+", each.question)))
        assert len(set(numbers)) == 3
        assert each.result == numbers[-1 if "largest" in each.question else 0]
    assert len({each.question for each in drawn}) == len(drawn) == SPLIT_SIZES[split]
    assert sum("largest" in each.question for each in drawn) == len(drawn) // 2


def test_no_three_numbers_are_in_two_splits_for_any_seed():
    found = {
        split: {tuple(sorted(each.numbers)) for seed in range(3) for each in extremes(split, seed=seed)}
        for split in SPLIT_SIZES
    }
    assert sum(map(len, found.values())) == len(set().union(*found.values()))


def test_neither_the_order_nor_the_word_moves_a_question_to_another_split():
    for a, b, c in ((10, 20, 30), (647, 271, 769), (11, 111, 999), (5 * 5, 36, 49)):
        orders = [(a, b, c), (c, b, a), (b, c, a)]
        assert len({Extreme(numbers=each, word=word).split for each in orders for word in ("largest", "smallest")}) == 1


def test_no_place_in_the_question_is_the_answer_more_often():
    """A model that always names the first number is right a third of the time."""
    places = [each.numbers.index(each.result) for each in extremes("test")]
    assert all(0.28 < places.count(place) / len(places) < 0.39 for place in range(3))


def test_the_test_split_has_at_least_a_thousand_questions():
    assert SPLIT_SIZES["test"] >= 1000


def test_the_answers_of_the_cold_start_earn_the_reward(tmp_path):
    folder = synthesize_extremes(tmp_path / "extremes", scale=0.05)
    reward = MathAnswer(reading="prose")
    for sample in read_manifest(folder / "cold_start.jsonl", folder):
        text = sample.messages[-1].content
        assert sample.messages[-1].role == "assistant"
        assert reward(sample, Completion(text=text, num_tokens=9, truncated=False)) == 1.0
        wrong = text.replace(f" {sample.solution}.", f" {int(sample.solution) + 1}.")
        assert reward(sample, Completion(text=wrong, num_tokens=9, truncated=False)) == 0.0


def test_a_set_is_the_same_each_time_and_another_with_another_seed(tmp_path):
    first, again, other = (
        synthesize_extremes(tmp_path / name, seed=seed, scale=0.1) for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    for split in SPLIT_SIZES:
        content = (first / f"{split}.jsonl").read_bytes()
        assert content == (again / f"{split}.jsonl").read_bytes() != (other / f"{split}.jsonl").read_bytes()
    assert json.loads((first / "dataset.json").read_text())["sizes"]["test"] == 100


@pytest.mark.parametrize(("key", "value"), [("seed", -1), ("scale", 0), ("scale", 1001)])
def test_numbers_out_of_range_are_refused(key, value, tmp_path):
    with pytest.raises(DataError, match=f"extremes: {key} is {value}; it must be"):
        synthesize_extremes(tmp_path / "extremes", **{key: value})
