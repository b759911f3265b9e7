from lightning_mmrl.curriculum.changes import MOST_SHOWN, changed_keys, describe_changes
from lightning_mmrl.settings.stage import StageSettings
from lightning_mmrl.types.records import StageSpec


def spec(name, **content):
    keys = {key.replace("__", "."): value for key, value in content.items()}
    return StageSpec(
        name=name, index=0, settings=StageSettings(kind="sft", start_from="previous"), digest="", content=keys
    )


def test_keys_that_came_and_went_are_shown_with_a_dash():
    assert changed_keys({"a": 1, "b": None}, {"b": None, "c": [1]}) == ["a: 1 -> -", "c: - -> [1]"]


def test_a_default_that_changed_is_said_with_the_way_to_go_on():
    key = "stage.data.sources.own.weight"
    assert changed_keys({key: 1.0}, {key: None}) == [
        f"{key}: 1.0 -> None (1 was the default of earlier versions; set weight: 1 for each source to go on as before)"
    ]
    assert changed_keys({key: 2.0}, {key: None}) == [f"{key}: 2.0 -> None"]


def test_a_change_of_several_stages_is_said_once():
    finished = {name: {"seed": 0, "stage.num_steps": 1, "index": 0} for name in ("warm", "reason")}
    now = [spec("warm", seed=1, stage__num_steps=1, index=0), spec("reason", seed=1, stage__num_steps=2, index=1)]
    assert describe_changes(finished, now) == [
        "seed: 0 -> 1",
        "stages.reason.num_steps: 1 -> 2",
        "reason index: 0 -> 1",
    ]


def test_stages_that_are_not_finished_do_not_count():
    assert describe_changes({}, [spec("warm", seed=1)]) == []


def test_many_changes_and_long_values_are_cut():
    lines = describe_changes({"warm": {}}, [spec("warm", **{f"key{number}": "x" * 100 for number in range(30)})])
    assert len(lines) == MOST_SHOWN + 1
    assert lines[-1] == f"and {30 - MOST_SHOWN} more"
    assert all(len(line) < 80 for line in lines)
