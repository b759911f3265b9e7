"""Ranks with different media: every mix trains without a hang, with the gradients of one process."""

import omni
import pytest
import rank_cases
import ranks

MIXES = {
    "text|audio": ("text", "audio"),
    "image|video": ("image", "video"),
    "text+image|video+audio": ("text", "image", "video", "audio"),
    "text|text": ("text", "text"),
}
CASES = [f"{mix}-{recipe}" for mix in MIXES for recipe in rank_cases.RECIPES]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def case(name, checkpoint):
    """One optimizer step over two ranks; the first rank has the first half of the contents."""
    mix, _, recipe = name.partition("-")
    contents = [rank_cases.MODALITIES[part] for part in MIXES[mix]]
    return rank_cases.one_step(name, recipe, checkpoint, contents)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return str(omni.build(tmp_path_factory.mktemp("modalities") / "omni"))


@pytest.fixture(scope="module")
def two_ranks(checkpoint, tmp_path_factory):
    cases = rank_cases.on_strategies([case(name, checkpoint) for name in CASES])
    return ranks.launch(cases, tmp_path_factory.mktemp("two"), timeout_s=400)


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_one_process(two_ranks, checkpoint, tmp_path, name):
    expected = rank_cases.run_stage(case(name, checkpoint), tmp_path)["gradients"]
    for strategy in rank_cases.STRATEGIES:
        for found in two_ranks[f"{name}-{strategy}"]:
            # A tower that nobody has media for has no gradient, which is not a gradient of zero.
            errors = rank_cases.errors(found["gradients"], expected)
            assert {parameter: error for parameter, error in errors.items() if error > 1e-6} == {}


def test_towers_that_other_ranks_do_not_enter_would_show(checkpoint, tmp_path):
    """Without a stand-in for the media of other ranks, the ranks wait for each other, or take wrong weights."""
    name = "text|audio-sft"
    good = {**case(name, checkpoint), "strategy": "fsdp2"}
    bad = {**good, "name": "bad", "mistake": "own towers", "watchdog_s": 30}
    with pytest.raises(RuntimeError):
        ranks.launch([good, bad], tmp_path, timeout_s=200)
    assert (tmp_path / f"{name}.rank0.pt").exists()
    assert not (tmp_path / "bad.rank0.pt").exists()
