from types import SimpleNamespace

import pytest

from lightning_mmrl.curriculum.graph import plan_stages
from lightning_mmrl.errors import ConfigError
from lightning_mmrl.registry.kinds import kind_of
from lightning_mmrl.settings.sample import SampleSettings
from lightning_mmrl.settings.stage import DataStageSettings, StageSettings
from lightning_mmrl.types.records import Edge

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


def plan_own(order, settings, **inputs):
    """A curriculum in which `draw` makes a table and data, and `pick` has the given inputs and reads no weights."""
    sample = SampleSettings(kind="sample")
    pick = SimpleNamespace(inputs=lambda stage: inputs, outputs=lambda stage: {"kept": "manifest"})
    stages = {"draw": sample, "pick": settings, "warm": StageSettings(kind="sft")}
    return plan_stages(order, stages, lambda stage, path: pick if stage is settings else kind_of(stage, path))


def test_a_kind_may_read_a_table_and_no_weights():
    table = Edge("draw", "rollouts", "table")
    draw, pick = plan_own(["draw", "pick"], DataStageSettings(kind="my.pick"), table=table)
    assert (draw.reads_weights, draw.source) == (True, None)
    assert (pick.reads_weights, pick.source, dict(pick.inputs)) == (False, None, {"table": table})
    assert not pick.trains


@pytest.mark.parametrize(
    ("order", "keys", "edge", "sentence"),
    [
        (
            "draw pick",
            {},
            Edge("draw", "own", "table"),
            "pick.table.artifact is 'own', which is no table but manifest; known are rollouts",
        ),
        ("draw pick", {}, Edge("draw", "rollout", "table"), "does not make; did you mean 'rollouts'"),
        (
            "draw pick",
            {},
            Edge("draw", "rollouts"),
            "is 'rollouts', which is no manifest but table; known are own",
        ),
        (
            "pick draw",
            {},
            Edge("draw", "rollouts", "table"),
            "not come earlier in the order; no earlier stage makes tables",
        ),
        (
            "warm pick",
            {},
            Edge("warm", "rollouts", "table"),
            "which stage warm does not make; stage warm makes no tables",
        ),
        (
            "draw pick",
            {"start_from": "draw"},
            None,
            "pick.start_from is 'draw', and stages of kind my.pick read no weights",
        ),
        (
            "draw pick",
            {"checkpoint": "a/b"},
            None,
            "pick.checkpoint is 'a/b', and stages of kind my.pick read no weights",
        ),
    ],
)
def test_an_input_of_a_wrong_type_is_refused(order, keys, edge, sentence):
    inputs = {} if edge is None else {"table": edge}
    with pytest.raises(ConfigError, match=sentence):
        plan_own(order.split(), DataStageSettings(kind="my.pick", **keys), **inputs)
