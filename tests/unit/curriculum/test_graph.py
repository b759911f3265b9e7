from types import SimpleNamespace

import pytest

from lightning_mmrl.curriculum.graph import place_among_trained, plan_stages, with_ancestors, with_descendants
from lightning_mmrl.errors import ConfigError
from lightning_mmrl.registry.kinds import kind_of
from lightning_mmrl.settings.data import SourceSettings, StageDataSettings
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


def sources(**edges):
    """Sources of data; each is (stage, artifact)."""
    found = {name: SourceSettings(stage=stage, artifact=artifact) for name, (stage, artifact) in edges.items()}
    return StageDataSettings(sources=found)


def node(name, start="previous", checkpoint=None, **edges):
    make, kind = (SampleSettings, "sample") if name.startswith("draw") else (StageSettings, "sft")
    return make(kind=kind, start_from=start, checkpoint=checkpoint, data=sources(**edges))


def planned(**stages):
    """A curriculum in the order of the arguments; `again` reads what `draw` made."""
    return plan_stages(list(stages), stages, kind_of)


def test_edges_are_weights_and_data_and_previous_is_the_last_stage_that_trains():
    warm, draw, draw_more, again = planned(
        warm=node("warm"),
        draw=node("draw"),
        draw_more=node("draw_more", old=("draw", "own")),
        again=node("again", old=("draw", "own"), new=("draw_more", "own")),
    )
    assert warm.inputs == {}
    assert draw.inputs == {"weights": Edge("warm", "handoff", "weights")}
    assert draw_more.inputs == {"weights": Edge("warm", "handoff", "weights"), "data.sources.old": Edge("draw", "own")}
    assert again.inputs == {
        "weights": Edge("warm", "handoff", "weights"),
        "data.sources.old": Edge("draw", "own"),
        "data.sources.new": Edge("draw_more", "own"),
    }
    assert draw.outputs == {"rollouts": "table", "own": "manifest"}
    assert [each.trains for each in (warm, draw, draw_more, again)] == [True, False, False, True]
    assert [each.source for each in (warm, draw, draw_more, again)] == [None, "warm", "warm", "warm"]


def test_a_checkpoint_of_its_own_takes_the_place_of_a_starting_point():
    _, draw = planned(warm=node("warm"), draw=node("draw", start="warm", checkpoint="Qwen/Base"))
    assert draw.inputs == {}


def test_only_stages_that_train_are_counted():
    specs = planned(draw=node("draw"), warm=node("warm"), draw_more=node("draw_more"), again=node("again"))
    assert [place_among_trained(spec, specs) for spec in specs] == [None, 0, None, 1]


def test_what_builds_on_a_stage_follows_weights_and_data():
    specs = planned(
        warm=node("warm"),
        draw=node("draw"),
        again=node("again", start="base", own=("draw", "own")),
        last=node("last"),
        other=node("other", start="warm"),
    )
    assert with_descendants("draw", specs) == {"draw", "again", "last"}
    assert with_descendants("other", specs) == {"other"}
    assert with_ancestors(["last"], specs) == {"last", "again", "draw", "warm"}
    assert with_ancestors(["other"], specs) == {"other", "warm"}


@pytest.mark.parametrize(
    ("stages", "sentence"),
    [
        (
            {"draw": node("draw", old=("again", "own")), "again": node("again", own=("draw", "own"))},
            "stages.draw.data.sources.old.stage is 'again', which itself builds on draw; put a stage that makes",
        ),
        (
            {"again": node("again", own=("draw", "own")), "draw": node("draw")},
            "stages.again.data.sources.own.stage is 'draw', which comes later in the order; put a stage that",
        ),
        (
            {"draw": node("draw", own=("draw", "own"))},
            "stages.draw.data.sources.own.stage is 'draw', the stage itself; put a stage that makes data before it",
        ),
        (
            {"draw": node("draw"), "again": node("again", own=("drew", "own"))},
            "stages.again.data.sources.own.stage is 'drew', which is no stage of the order; choose one of draw$",
        ),
        (
            {"draw": node("draw"), "again": node("again", own=("previous", "own"))},
            "stages.again.data.sources.own.stage is 'previous', which is no stage of the order; choose one of draw$",
        ),
        (
            {"draw": node("draw"), "again": node("again", own=("draw", "onw"))},
            "artifact is 'onw', which stage draw does not make; did you mean 'own'?",
        ),
        (
            {"draw": node("draw"), "again": node("again", own=("draw", None))},
            "stages.again.data.sources.own has a stage and no artifact; set stages.again.data.sources.own.artifact=own",
        ),
        (
            {"draw": node("draw"), "again": node("again", own=("draw", "rollouts"))},
            "artifact is 'rollouts', which is no manifest but table; known are own",
        ),
        (
            {"warm": node("warm"), "again": node("again", own=("warm", "handoff"))},
            "artifact is 'handoff', which is no manifest but weights; stage warm makes no data",
        ),
        (
            {"draw": node("draw"), "again": node("again", start="draw")},
            "stages.again.start_from is 'draw', which makes no weights; choose one of base, previous$",
        ),
    ],
)
def test_edges_that_cannot_be_followed_are_refused(stages, sentence):
    with pytest.raises(ConfigError, match=sentence):
        planned(**stages)


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
            "comes later in the order; put a stage that makes tables",
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
