"""Ranks with different media: every mix trains without a hang, with the gradients of one process."""

import omni
import pytest
import rank_cases
import ranks

CONTENT = {
    "text": "Which emotion? angry",
    "image": "<image>Which emotion?",
    "video": "<video>angry",
    "audio": "<audio>Which emotion?",
}
MIXES = {
    "text|audio": ("text", "audio"),
    "image|video": ("image", "video"),
    "text+image|video+audio": ("text", "image", "video", "audio"),
    "text|text": ("text", "text"),
}
RECIPES = {
    "sft": {"stage": "sft"},
    "one-update": {"stage": "grpo"},
    "two-updates": {"stage": "grpo", "minibatches": 2},
}
CASES = [f"{mix}-{recipe}" for mix in MIXES for recipe in RECIPES]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def case(name, checkpoint, **more):
    """One optimizer step over two ranks, of which the first has the first half of the contents."""
    mix, _, recipe = name.partition("-")
    contents = [CONTENT[part] for part in MIXES[mix]]
    fixed = {"name": name, "checkpoint": checkpoint, "contents": contents, "steps": 1, "quiet": [], "adam": False}
    return {**fixed, **RECIPES[recipe], **more}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return str(omni.build(tmp_path_factory.mktemp("modalities") / "omni"))


@pytest.fixture(scope="module")
def two_ranks(checkpoint, tmp_path_factory):
    cases = [
        {**case(name, checkpoint, strategy=strategy), "name": f"{name}-{strategy}"}
        for name in CASES
        for strategy in ("ddp", "fsdp2")
    ]
    found = ranks.launch(cases, tmp_path_factory.mktemp("two"), timeout_s=400)
    return {each["name"]: result for each, result in zip(cases, found, strict=True)}


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_one_process(two_ranks, checkpoint, tmp_path, name):
    expected = rank_cases.run_stage(case(name, checkpoint), tmp_path)["gradients"]
    for strategy in ("ddp", "fsdp2"):
        for found in two_ranks[f"{name}-{strategy}"]:
            # A tower that nobody has media for has no gradient, which is not a gradient of zero.
            assert found["gradients"].keys() == expected.keys()
            for parameter, gradient in expected.items():
                scale = gradient.abs().max().clamp(min=1e-6)
                assert (found["gradients"][parameter] - gradient).abs().max() <= 1e-6 * scale, parameter


def test_towers_that_other_ranks_do_not_enter_would_show(checkpoint, tmp_path):
    """Without a stand-in for the media of other ranks, the ranks wait for each other, or take wrong weights."""
    name = "text|audio-sft"
    good = case(name, checkpoint, strategy="fsdp2")
    bad = {**good, "name": "bad", "mistake": "own towers", "watchdog_s": 30}
    with pytest.raises(RuntimeError):
        ranks.launch([good, bad], tmp_path, timeout_s=200)
    assert (tmp_path / f"{name}.rank0.pt").exists()
    assert not (tmp_path / "bad.rank0.pt").exists()
