"""Targets and losses of pairs that could teach nothing are refused by key, value and rule."""

import re

import pytest

from lightning_mmrl.config.compose import compose
from lightning_mmrl.errors import ConfigError

LOSSES = ("preference", "quality", "generation")
PAIRS = ("+stage@stages.prefer=mpo", "order=[prefer]")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["stages.cold_start.target=happy"],
            "stages.cold_start.target is happy; it must be a text with a column in braces, such as",
        ),
        (
            ["stages.reason.data.manifest=null", "+stages.reason.data.sources.a={manifest: a.jsonl, target: '{b}'}"],
            "stages.reason.data.sources.a.target is {b}; it must be null: stages.reason is rl, and an sft stage learns",
        ),
        (
            [
                *PAIRS,
                "stages.prefer.data.manifest=null",
                "+stages.prefer.data.sources.a={manifest: a.jsonl, target: '{b}'}",
            ],
            "stages.prefer.data.sources.a.target is {b}; it must be null: stages.prefer is dpo, and an sft",
        ),
        (["+stages.reason.target=x"], "stages.reason.target: unknown key"),
        (
            ["algorithm@stages.reason=hpt", "stages.reason.algorithm.router.target=happy"],
            "stages.reason.algorithm.router.target is happy; it must be a text with a column in braces, such as",
        ),
        (
            ["algorithm@stages.reason=hpt", "stages.reason.algorithm.router.unsolved_at_most=-0.1"],
            "stages.reason.algorithm.router.unsolved_at_most is -0.1; it must be from 0 to 1, or null",
        ),
        (
            [
                *PAIRS,
                *(f"stages.prefer.preference.{name}_weight=0" for name in ("preference", "quality", "generation")),
            ],
            "stages.prefer.preference has no loss with a weight; set stages.prefer.preference.preference_weight,",
        ),
        (
            [*PAIRS, "stages.prefer.preference.loss=ipo", "stages.prefer.preference.label_smoothing=0.1"],
            "stages.prefer.preference.label_smoothing is 0.1; it must be 0 unless stages.prefer.preference.loss is sig",
        ),
        ([*PAIRS, "stages.prefer.preference.beta=0"], "stages.prefer.preference.beta is 0.0; it must be above 0"),
        ([*PAIRS, "stages.prefer.preference.loss=dpo"], "stages.prefer.preference.loss is 'dpo', which is no choice"),
        ([*PAIRS, "stages.prefer.preference.quality_weight=-1"], "quality_weight is -1.0; it must be at least 0"),
        ([*PAIRS, "+algorithm@stages.prefer=grpo"], "stages.prefer.algorithm: belongs to rl stages"),
    ],
)
def test_what_could_teach_nothing_is_refused(overrides, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        compose(overrides)


def test_the_stage_of_mpo_has_the_weights_of_the_paper():
    weights = {name: compose([*PAIRS, f"stages.prefer.preference.loss={name}"]) for name in ("sigmoid", "ipo")}
    for config in weights.values():
        assert config.stages["prefer"].preference.weights == {"preference": 0.8, "quality": 0.2, "generation": 1.0}  # type: ignore[attr-defined]
