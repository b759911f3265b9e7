import pytest

from lightning_mmrl.curriculum.graph import plan_stages
from lightning_mmrl.errors import ConfigError
from lightning_mmrl.registry.kinds import kind_of
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
        (["warm", "reason"], {"warm": "reason"}, "stages.warm.start_from is 'reason'; choose one of base, previous"),
        (["warm"], {"warm": "warm"}, "stages.warm.start_from is 'warm'"),
        (["warm", "reason"], {"reason": "cold_start"}, "is 'cold_start'; choose one of base, previous, warm"),
    ],
)
def test_an_order_that_cannot_run_is_refused(order, starts, sentence):
    with pytest.raises(ConfigError, match=sentence):
        plan(order, **starts)
