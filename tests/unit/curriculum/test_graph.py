import pytest

from lightning_mmrl.curriculum.graph import plan_stages
from lightning_mmrl.errors import ConfigError
from lightning_mmrl.registry.kinds import kind_of
from lightning_mmrl.settings.data import SourceSettings, StageDataSettings
from lightning_mmrl.settings.sample import SampleSettings
from lightning_mmrl.settings.stage import StageSettings

NAMES = ("warm", "cold_start", "reason")


def plan(order, **starts):
    kinds = {name: "rl" if name == "reason" else "sft" for name in NAMES}
    stages = {name: StageSettings(kind=kinds[name], start_from=starts.get(name, "previous")) for name in NAMES}
    return plan_stages(order, stages, kind_of)


def test_stages_stand_in_order_with_all_that_is_known_of_them():
    specs = plan(["reason", "warm"], reason="base")
    assert [(spec.name, spec.index, spec.settings.kind) for spec in specs] == [("reason", 0, "rl"), ("warm", 1, "sft")]
    assert [spec.settings.start_from for spec in specs] == ["base", "previous"]


@pytest.mark.parametrize(
    ("starts", "expected"),
    [
        ({}, [None, "warm", "cold_start"]),
        ({"reason": "base"}, [None, "warm", None]),
        ({"reason": "warm"}, [None, "warm", "warm"]),
        ({"warm": "base", "cold_start": "base"}, [None, None, "cold_start"]),
    ],
)
def test_a_stage_starts_where_it_says(starts, expected):
    assert [spec.source for spec in plan(NAMES, **starts)] == expected


@pytest.mark.parametrize(
    ("order", "starts", "sentence"),
    [
        ([], {}, "order is empty; name at least one stage"),
        (["warm", "raeson"], {}, r"order\[1\]: unknown stage 'raeson'; stages defines cold_start, reason, warm"),
        (["warm", "warm"], {}, r"order\[1\]: stage 'warm' appears twice"),
        (
            ["warm", "reason"],
            {"warm": "reason"},
            "warm.start_from is 'reason', which comes later in the order; choose one of base",
        ),
        (
            ["warm"],
            {"warm": "warm"},
            "stages.warm.start_from is 'warm', the stage itself; choose one of base, previous",
        ),
        (
            ["warm", "reason"],
            {"reason": "cold_start"},
            "'cold_start', which is no stage of the order; choose one of base, previous, warm",
        ),
    ],
)
def test_an_order_that_cannot_run_is_refused(order, starts, sentence):
    with pytest.raises(ConfigError, match=sentence):
        plan(order, **starts)


def reading(stage, artifact="own"):
    return StageDataSettings(sources={"own": SourceSettings(stage=stage, artifact=artifact)})


@pytest.mark.parametrize(
    ("start_from", "reason"),
    [
        ("again", "draw', which itself builds on again; put a stage that makes data before it in the order"),
        ("base", "draw', which comes later in the order; put a stage that makes data before it in the order"),
    ],
)
def test_a_circle_is_told_from_a_wrong_order(start_from, reason):
    stages = {
        "again": StageSettings(kind="sft", data=reading("draw")),
        "draw": SampleSettings(kind="sample", start_from=start_from),
    }
    with pytest.raises(ConfigError, match=f"^stages.again.data.sources.own.stage is '{reason}$"):
        plan_stages(["again", "draw"], stages, kind_of)


def test_a_circle_through_a_stage_at_the_end_is_one_too():
    stages = {
        "first": StageSettings(kind="sft", data=reading("second")),
        "second": SampleSettings(kind="sample", data=reading("third")),
        "third": SampleSettings(kind="sample", start_from="first"),
    }
    with pytest.raises(ConfigError, match="is 'second', which itself builds on first; "):
        plan_stages(["first", "second", "third"], stages, kind_of)
