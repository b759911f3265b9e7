"""What the rewards of published systems pay, as their files compose them into a stage."""

import pytest

from lightning_mmrl.app.rewards import build_reward
from lightning_mmrl.config.compose import compose
from lightning_mmrl.types.records import Completion, Message, Sample

LONG = "I look at the picture again and again. " * 8
PAYS = {
    # File: overrides, the gold, and what completions earn in total.
    "mm_eureka": (
        [],
        "A",
        {
            "<think>so</think><answer>A</answer>": 1.5,
            "Well, <think>so</think><answer>A</answer> Done.": 1.5,
            "<think>so</think> hence <answer>A</answer>": 1.0,
            "<think>so</think><answer>So in the end it has to be A</answer>": 1.5,
            "<think>so</think><answer>B</answer>": 0.5,
            "A": 1.0,
            "A or B": 0.0,
        },
    ),
    "mm_eureka base model": (
        ["weights.format=1", "components.format.min_think_characters=300"],
        "$12$ cm",
        {
            f"<think>{LONG}</think><answer>0.12 m</answer>": 2.0,
            "<think>so</think><answer>12 cm</answer>": 1.0,
            f"<think>{LONG}</think><answer>12 kg</answer>": 1.0,
        },
    ),
    "visualthinker": (
        [],
        "left",
        {
            "<think>so</think>\n<answer>left</answer>": 2.0,
            "<think>so</think>The chair is near. So it has to be (A)": 1.0,
            "<think>so</think>\n<answer>right</answer>": 1.0,
            "The chair is near. So it has to be (B)": 0.0,
        },
    ),
    "boxed": (
        [],
        "\\frac{1}{2}",
        {
            "So $\\boxed{0.5}$.": 1.0,
            "<think>so</think>$\\boxed{0.5}$": 1.0,
            "<think>$\\boxed{0.5}$</think>": 0.0,
            "<answer>0.5</answer>": 1.0,  # a deviation: a tag or a phrase may stand in for the box
            "0.5": 0.0,
        },
    ),
    "hard_format_answer": (
        [],
        "\\frac{1}{2}",
        {
            "<think>so</think><answer>So $\\boxed{0.5}$.</answer>": 1.0,
            "<think>so</think><answer>0.25</answer>": 0.0,
            "<answer>0.5</answer>": 0.0,
        },
    ),
    "mixed": ([], "left", {"<think>so</think><answer>A</answer>": 2.0, "\\boxed{left}": 1.0, "left": 0.0}),
    "choice": ([], "left", {"<think>so</think><answer>(A)</answer>": 2.0, "<answer>Left</answer>": 1.0}),
    "mathematics": ([], "12 cm", {"<think>so</think><answer>120 mm</answer>": 2.0, "<answer>12 kg</answer>": 0.0}),
}


@pytest.mark.parametrize("name", PAYS)
def test_a_reward_file_pays_what_its_system_pays(name):
    overrides, gold, paid = PAYS[name]
    prefix = "stages.reason.rewards"
    config = compose([f"+reward@{prefix}={name.split()[0]}", *(f"{prefix}.{each}" for each in overrides)])
    settings = config.stages["reason"].rewards
    reward = build_reward(settings, prefix)
    asked = (Message(role="user", content="Which way?"),)
    options = {"options": ["left", "right"]} if gold == "left" else {}
    sample = Sample(id="q", messages=asked, solution=gold, extras=options)
    scores = {text: reward.score(sample, Completion(text=text, num_tokens=9, truncated=False)) for text in paid}
    assert {text: score.total for text, score in scores.items()} == paid
    assert settings.pass_component in next(iter(scores.values())).components
