"""Stories: splits that share no fact, questions whose answer a reader of plain text finds, and the same bytes."""

import json
import re

import pytest

from lightning_mmrl.data.schema import read_manifest
from lightning_mmrl.data.synthetic.stories import (
    LARGEST_TOTAL,
    SPLIT_SIZES,
    Story,
    families_of,
    stories,
    synthesize_stories,
)
from lightning_mmrl.errors import DataError
from lightning_mmrl.rewards.math_answer import MathAnswer
from lightning_mmrl.types.records import Completion

each_split = pytest.mark.parametrize("split", SPLIT_SIZES)


def solved(question):
    """Result and family, from the words alone."""
    first, second = map(int, re.findall("[0-9]+", question))
    if " more." in question:
        return first + second, sorted((first, second))
    assert re.search(r" (lost|sold|gave away) ", question)
    return first - second, sorted((first - second, second))


@each_split
def test_every_question_has_its_solution_and_its_family(split):
    for story in stories(split, seed=3, scale=0.5):
        result, family = solved(story.question)
        assert (story.result, story.family) == (result, "-".join(map(str, family)))
        assert 2 <= result <= LARGEST_TOTAL


def test_no_fact_of_a_held_out_split_is_in_another_for_any_seed():
    found = {split: {story.family for seed in range(3) for story in stories(split, seed=seed)} for split in SPLIT_SIZES}
    assert not found["test"] & (found["train"] | found["cold_start"] | found["validation"])
    assert not found["validation"] & (found["train"] | found["cold_start"])
    assert found["train"] == found["cold_start"] == {f"{x}-{y}" for x, y in families_of("train")}


def test_the_inverse_of_a_fact_is_of_its_family():
    sum_, difference = (
        Story(person="Mia", things="books", verb=verb, start=start, change=change)
        for verb, start, change in (("found", 3, 4), ("lost", 7, -4))
    )
    assert sum_.family == difference.family == "3-4"


@each_split
def test_a_split_has_its_size_and_no_story_twice(split):
    drawn = stories(split)
    assert len({story.question for story in drawn}) == len(drawn) == SPLIT_SIZES[split]
    gains = sum(story.change > 0 for story in drawn)
    assert 0.4 < gains / len(drawn) < 0.6


def test_the_test_split_has_at_least_a_thousand_stories():
    assert SPLIT_SIZES["test"] >= 1000


def test_the_answers_of_the_cold_start_earn_the_reward(tmp_path):
    folder = synthesize_stories(tmp_path / "stories", scale=0.05)
    reward = MathAnswer(prose=True)
    for sample in read_manifest(folder / "cold_start.jsonl", folder):
        text = sample.messages[-1].content
        assert sample.messages[-1].role == "assistant"
        assert reward(sample, Completion(text=text, num_tokens=9, truncated=False)) == 1.0
        wrong = text.replace(f"= {sample.solution} ", f"= {int(sample.solution) + 1} ")
        assert reward(sample, Completion(text=wrong, num_tokens=9, truncated=False)) == 0.0


def test_a_set_is_the_same_each_time_and_another_with_another_seed(tmp_path):
    first, again, other = (
        synthesize_stories(tmp_path / name, seed=seed, scale=0.1) for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    for split in SPLIT_SIZES:
        content = (first / f"{split}.jsonl").read_bytes()
        assert content == (again / f"{split}.jsonl").read_bytes() != (other / f"{split}.jsonl").read_bytes()
    assert json.loads((first / "dataset.json").read_text())["sizes"]["test"] == 100


@pytest.mark.parametrize(("key", "value"), [("seed", -1), ("scale", 0), ("scale", 21)])
def test_numbers_out_of_range_are_refused(key, value, tmp_path):
    with pytest.raises(DataError, match=f"stories: {key} is {value}; it must be"):
        synthesize_stories(tmp_path / "stories", **{key: value})
