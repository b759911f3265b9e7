"""The orchestrator against fakes: what is run, skipped, tracked and written down, also when something fails."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from curriculum_lab import NAMES, Job, Lab

from lightning_mmrl.curriculum.artifacts import SEAL, folder_digest, write_artifact
from lightning_mmrl.curriculum.handoff import REQUIRED, check_handoff
from lightning_mmrl.curriculum.manifest import FILE, Manifest
from lightning_mmrl.curriculum.selection import Selection
from lightning_mmrl.errors import ConfigError, GateError, StageError
from lightning_mmrl.settings.stage import Bound


@pytest.fixture
def lab(tmp_path):
    return Lab(tmp_path)


def test_stages_run_in_order_each_from_the_one_before(lab):
    results = lab.run()
    assert lab.happened == ["start run-1.0", *[f"{verb} {name}" for name in NAMES for verb in ("train", "evaluate")]]
    assert lab.weights("02-reason") == "base>warm>cold_start>reason"
    assert [result.name for result in results] == NAMES
    assert results[0].metrics == {"warm/loss": 0.5, "warm/test/uar": 0.25}
    assert set(results[0].seconds) == {"train", "evaluate"}
    assert results[2].handoff.path == "stages/02-reason/handoff"
    assert results[0].inputs["weights"] == folder_digest(lab.base)
    assert [result.inputs["weights"] for result in results[1:]] == [result.handoff.digest for result in results[:2]]


def test_what_follows_an_evaluation_finds_it_recorded_and_is_not_part_of_its_time(lab, monkeypatch):
    clock, record = [0.0], lab.record

    def slow_record(parent):
        clock[0] += 1000.0
        record(parent)

    monkeypatch.setattr("lightning_mmrl.curriculum.orchestrator.time.monotonic", lambda: clock[0])
    lab.record, lab.base_evaluation = slow_record, "how"
    results = lab.run()
    assert lab.recorded == [["base", *NAMES[:number]] for number in range(4)]
    assert [result.seconds["evaluate"] for result in results] == [0.0] * 3
    lab.recorded.clear()
    lab.run(evaluation="other")
    assert lab.recorded == [["base", *NAMES]] * 3, "each stage is evaluated again"


def test_every_hand_over_carries_facts_and_lineage(lab):
    results = lab.run()
    facts = check_handoff(lab.directory / results[1].handoff.path)
    assert facts["labels"] == ["sad"]
    assert facts["lineage"] == {
        "stage": "cold_start",
        "started_from": "previous",
        "input_digest": results[0].handoff.digest,
        "input_seal": results[0].handoff.seal,
        "steps": 200,
        "skipped_steps": 1,
        "changed_weights": True,
    }
    assert (facts["digest"], facts["seal"]) == (results[1].handoff.digest, results[1].handoff.seal)


def test_a_stage_that_changed_no_weight_is_known_by_lineage_and_manifest(lab):
    lab.changed = False
    (result,) = lab.run(order=["warm"])
    assert check_handoff(lab.directory / result.handoff.path)["lineage"]["changed_weights"] is False
    entry = Manifest.read(lab.directory).stages["warm"].result
    assert (entry.num_steps, entry.num_skipped, entry.changed) == (200, 1, False)


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        ("previous", "base>warm>cold_start>reason"),
        ("base", "base>reason"),
        ("warm", "base>warm>reason"),
        ("cold_start", "base>warm>cold_start>reason"),
    ],
)
def test_a_stage_starts_from_previous_base_or_a_named_stage(lab, start, expected):
    lab.run(reason=start)
    assert lab.weights("02-reason") == expected


def test_a_run_is_tracked_as_a_parent_with_children(lab):
    results = lab.run()
    parent, *children = lab.tracker.runs
    assert parent.tags == {"mmrl.curriculum": "lab", "mmrl.order": "warm,cold_start,reason"}
    assert parent.metrics == [({f"{name}/test/uar": 0.25}, step) for step, name in enumerate(NAMES, start=1)]
    assert [child.name for child in children] == ["00-warm", "01-cold_start", "02-reason"]
    assert {child.parent_id for child in children} == {parent.id}
    assert [child.tags["mmrl.output_digest"] for child in children] == [result.handoff.digest for result in results]
    assert [child.tags["mmrl.input_digest"] for child in children] == [result.inputs["weights"] for result in results]
    assert set(lab.tracker.statuses.values()) == {"FINISHED"}
    assert [result.tracking_id for result in results] == [child.id for child in children]
    assert lab.tracker.num_closed == 1


def test_a_finished_run_is_reported_and_not_run(lab):
    first = lab.run()
    assert lab.run() == first
    assert lab.happened == []
    assert lab.tracker.runs == []
    assert lab.said == [f"stage {number} of 3 {name}: already finished" for number, name in enumerate(NAMES, start=1)]


def test_a_longer_curriculum_runs_only_what_is_new_in_the_same_parent_run(lab):
    first = lab.run(["warm", "cold_start"])
    second = lab.run(NAMES)
    assert second[:2] == first
    assert lab.happened == ["start run-1.0", "train reason", "evaluate reason"]
    assert [run.id for run in lab.tracker.runs] == ["run-1.0", "run-2.1"]
    assert lab.weights("02-reason") == "base>warm>cold_start>reason"


def test_a_changed_stage_is_refused_before_anything_happens(lab):
    lab.run(["warm", "cold_start"])
    before = (lab.directory / FILE).read_text()
    with pytest.raises(ConfigError, match=r"stages.warm: finished in .* with another configuration:") as refusal:
        lab.run(changed=["warm"])
    assert "\n    stages.warm.num_steps: 200 -> 300\n" in str(refusal.value)
    assert "--allow-changes" in str(refusal.value)
    assert (lab.happened, lab.tracker.runs) == ([], [])
    assert (lab.directory / FILE).read_text() == before


def test_a_pending_stage_may_change(lab):
    lab.run(["warm"])
    lab.run(["warm", "reason"], changed=["reason"])
    assert lab.finished == ["warm", "reason"]


def test_a_changed_stage_is_kept_where_that_is_allowed(lab):
    lab.run(["warm"])
    lab.run(["warm", "reason"], changed=["warm"], selection=Selection(allow_changes=True))
    assert lab.happened[1:] == ["train reason", "evaluate reason"]


def test_from_stage_runs_a_stage_and_all_after_it_again(lab):
    lab.run()
    lab.run(changed=["cold_start"], selection=Selection(from_stage="cold_start"))
    assert lab.happened[1:] == ["train cold_start", "evaluate cold_start", "train reason", "evaluate reason"]
    assert Manifest.read(lab.directory).stages["cold_start"].digest == "changed"
    assert lab.weights("01-cold_start.replaced-1") == "base>warm>cold_start"
    lab.run(changed=["cold_start"], selection=Selection(from_stage="reason"))
    assert lab.weights("02-reason.replaced-2") == "base>warm>cold_start>reason"


def test_only_stage_runs_one_stage(lab):
    lab.run(["warm"])
    results = lab.run(selection=Selection(only_stage="cold_start"))
    assert lab.happened[1:] == ["train cold_start", "evaluate cold_start"]
    assert [result.name for result in results] == ["warm", "cold_start"]
    lab.run(selection=Selection(only_stage="cold_start"))
    assert lab.happened[1:] == ["train cold_start", "evaluate cold_start"]


def test_a_stage_runs_again_once_what_it_started_from_was_replaced(lab):
    lab.run()
    lab.run(selection=Selection(only_stage="cold_start"))
    lab.run()
    assert lab.happened == []  # the same weights again: nothing is stale
    lab.salt = "!"
    lab.run(selection=Selection(only_stage="cold_start"))
    lab.salt = ""
    lab.run()
    assert lab.happened[-2:] == ["train reason", "evaluate reason"]
    assert lab.weights("02-reason") == "base>warm>cold_start!>reason"


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        (Selection(from_stage="reson"), "--from-stage reson: no such stage; order has warm, cold_start, reason"),
        (Selection(only_stage="reason"), "starts from cold_start, which is not finished; run cold_start first"),
        (Selection(from_stage="reason"), "starts from cold_start, which is not finished"),
        (Selection(from_stage="warm", only_stage="warm"), "exclude each other"),
    ],
)
def test_a_selection_that_cannot_run_is_refused_before_anything_happens(lab, selection, message):
    lab.run(["warm"])
    with pytest.raises(ConfigError, match=message):
        lab.run(selection=selection)
    assert (lab.happened, lab.tracker.runs) == ([], [])


def test_an_interrupted_second_run_of_a_stage_leaves_the_first_in_its_folder(lab):
    lab.run(["warm"])
    lab.failures = {("train", "warm"): KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        lab.run(["warm"], selection=Selection(only_stage="warm"))
    assert lab.finished == []
    assert lab.weights("00-warm.replaced-1") == "base>warm"


def test_a_gate_that_is_not_met_ends_the_curriculum(lab):
    gates = {"warm": Bound(metric="test/uar", at_least=0.5)}
    message = "stages.warm.gate asks for test/uar at least 0.5, found 0.25"
    with pytest.raises(StageError, match=message):
        lab.run(gates=gates)
    assert lab.finished == ["warm"]
    assert lab.tracker.statuses == {"lab": "FAILED", "00-warm": "FINISHED"}
    with pytest.raises(StageError, match=message):
        lab.run(gates=gates)
    assert lab.happened == ["start run-1.0"]
    lab.run(gates={"warm": Bound(metric="test/uar", at_least=0.25)})
    assert lab.finished == NAMES


def test_a_gate_holds_for_a_finished_curriculum_too(lab):
    lab.run()
    with pytest.raises(StageError, match=r"stages.reason.gate asks for test/uar at most 0.2, found 0.25"):
        lab.run(gates={"reason": Bound(metric="test/uar", at_most=0.2)})


@pytest.fixture
def interrupted(lab):
    """A run that was interrupted in its second stage, which had saved a state."""
    lab.saves_states = True
    lab.failures = {("train", "cold_start"): KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        lab.run()
    lab.failures = {}
    return lab


def test_an_unfinished_stage_goes_on_from_its_state_in_its_own_tracked_run(interrupted):
    interrupted.run()
    assert interrupted.happened == [
        "start run-1.0",
        "continue cold_start",
        "evaluate cold_start",
        "train reason",
        "evaluate reason",
    ]
    assert [run.id for run in interrupted.tracker.runs] == ["run-1.0", "run-1.2", "run-2.2"]
    assert set(interrupted.tracker.statuses.values()) == {"FINISHED"}
    assert not list(interrupted.directory.glob("stages/*/state"))


def test_a_stage_that_was_killed_before_its_first_state_keeps_its_tracked_run(lab):
    lab.failures = {("train", "cold_start"): KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        lab.run()
    lab.failures = {}
    lab.run()
    assert [run.id for run in lab.tracker.runs] == ["run-1.0", "run-1.2", "run-2.2"]
    assert "train cold_start" in lab.happened
    assert not list(lab.directory.glob("stages/*.replaced-*"))


def test_a_stage_that_was_killed_before_its_first_state_may_change(lab):
    lab.failures = {("train", "cold_start"): KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        lab.run()
    lab.failures = {}
    lab.run(changed=["cold_start"])
    assert [run.id for run in lab.tracker.runs] == ["run-1.0", "run-2.1", "run-2.2"]


def test_a_state_is_left_where_the_hand_over_failed(lab):
    """Training is not repeated because the disk was full at its end."""
    lab.saves_states, lab.failures = True, {("export", "warm"): OSError("no space left on device")}
    with pytest.raises(OSError, match="no space"):
        lab.run(["warm"])
    lab.failures = {}
    lab.run(["warm"])
    assert lab.happened[1:] == ["continue warm", "evaluate warm"]


def test_an_unfinished_stage_that_is_configured_differently_is_refused(interrupted):
    with pytest.raises(ConfigError, match=r"stages.cold_start: begun in .* with another configuration"):
        interrupted.run(changed=["cold_start"])
    assert (interrupted.happened, interrupted.tracker.runs) == ([], [])
    assert (interrupted.directory / "stages" / "01-cold_start" / "state").is_dir()


def test_an_unfinished_stage_goes_on_differently_where_that_is_allowed(interrupted):
    interrupted.run(changed=["cold_start"], selection=Selection(allow_changes=True))
    assert interrupted.happened[1:3] == ["continue cold_start", "evaluate cold_start"]


@pytest.mark.parametrize("changed", [[], ["cold_start"]])
def test_an_unfinished_stage_that_is_asked_for_begins_again_only_if_it_was_changed(interrupted, changed):
    interrupted.run(changed=changed, selection=Selection(from_stage="cold_start"))
    assert interrupted.happened[1] == ("train cold_start" if changed else "continue cold_start")
    kept = interrupted.directory / "stages" / "01-cold_start.replaced-1" / "state"
    assert kept.is_dir() == bool(changed)


def test_an_unfinished_stage_begins_again_once_what_it_started_from_was_replaced(interrupted):
    interrupted.salt = "!"
    interrupted.run(selection=Selection(only_stage="warm"))
    interrupted.run()
    assert interrupted.happened[1] == "train cold_start"
    assert interrupted.weights("01-cold_start") == "base>warm!>cold_start!"
    assert (interrupted.directory / "stages" / "01-cold_start.replaced-1" / "state").is_dir()


@pytest.mark.parametrize("content", ["", '{"content": {', "[]", '{"content": {}}', "[" * 100_000])
def test_states_that_nobody_can_tell_what_they_are_of_stop_the_run(interrupted, content):
    note = interrupted.directory / "stages" / "01-cold_start" / "attempt.json"
    note.write_text(content)
    with pytest.raises(StageError, match=r"attempt.json is damaged .* or remove .*01-cold_start to run"):
        interrupted.run()
    assert (note.parent / "state").is_dir()


@pytest.mark.parametrize("place", ["build", "train", "export", "evaluate"])
@pytest.mark.parametrize(
    ("error", "status"),
    [(RuntimeError("out of memory"), "FAILED"), (KeyboardInterrupt(), "KILLED"), (SystemExit(1), "FAILED")],
)
def test_a_stage_that_ends_early_is_not_finished_and_says_how(lab, place, error, status):
    lab.failures = {(place, "cold_start"): error}
    with pytest.raises(type(error)):
        lab.run()
    assert lab.tracker.statuses == {"lab": status, "00-warm": "FINISHED", "01-cold_start": status}
    assert lab.tracker.num_closed == 1
    assert lab.finished == (["warm", "cold_start"] if place == "evaluate" else ["warm"])


def test_a_run_continues_at_the_stage_that_was_not_finished(lab):
    lab.failures = {("train", "cold_start"): KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        lab.run()
    parent = lab.tracker.runs[0].id
    lab.failures = {}
    results = lab.run()
    assert lab.happened[1:] == ["train cold_start", "evaluate cold_start", "train reason", "evaluate reason"]
    assert lab.tracker.runs[0].id == parent
    assert [result.name for result in results] == NAMES
    assert lab.weights("02-reason") == "base>warm>cold_start>reason"


def test_a_failed_evaluation_does_not_lose_the_training(lab):
    lab.failures = {("evaluate", "cold_start"): RuntimeError("full disk")}
    with pytest.raises(RuntimeError, match="full disk"):
        lab.run()
    lab.failures = {}
    results = lab.run()
    assert lab.happened[1:] == ["evaluate cold_start", "train reason", "evaluate reason"]
    assert results[1].metrics == {"cold_start/loss": 0.5, "cold_start/test/uar": 0.25}
    assert [run.id for run in lab.tracker.runs if run.name == "01-cold_start"] == [results[1].tracking_id]


def test_another_evaluation_is_made_from_the_hand_over_without_training(lab):
    lab.run()
    lab.run(evaluation="other sets")
    assert lab.happened[1:] == [f"evaluate {name}" for name in NAMES]
    lab.run(evaluation="other sets")
    assert lab.happened == []


def test_a_changed_start_is_refused_also_where_the_other_start_is_finished(lab):
    lab.run()
    with pytest.raises(ConfigError, match=r"stages.reason: finished in .*\n    reason starts_from: cold_start -> warm"):
        lab.run(reason="warm")
    assert lab.happened == []


def test_only_a_changed_stage_may_run_alone_before_what_builds_on_it(lab):
    lab.run()
    lab.salt = "!"
    lab.run(changed=["cold_start"], selection=Selection(only_stage="cold_start"))
    assert lab.happened[1:] == ["train cold_start", "evaluate cold_start"]
    assert "stage 3 of 3 reason: an artifact that it read was replaced; the next run runs it again" in lab.said


def test_from_stage_leaves_stages_alone_that_do_not_build_on_it(lab):
    lab.run(reason="warm")
    lab.run(reason="warm", selection=Selection(from_stage="cold_start"))
    assert lab.happened[1:] == ["train cold_start", "evaluate cold_start"]


def test_a_stage_that_cannot_start_is_not_set_aside(lab):
    lab.run()
    (lab.directory / "stages" / "01-cold_start" / "handoff" / "model.safetensors").write_text("evil")
    with pytest.raises(StageError, match="01-cold_start/handoff"):
        lab.run(selection=Selection(only_stage="reason"))
    assert lab.finished == NAMES
    assert lab.weights("02-reason") == "base>warm>cold_start>reason"


def test_a_selection_is_not_held_up_by_the_gates_of_other_stages(lab):
    lab.run()
    lab.run(gates={"cold_start": Bound(metric="test/uar", at_least=0.5)}, selection=Selection(only_stage="warm"))
    assert lab.tracker.statuses["lab"] == "FINISHED"
    with pytest.raises(GateError):
        lab.run(gates={"warm": Bound(metric="test/uar", at_least=0.5)}, selection=Selection(only_stage="cold_start"))


def test_the_run_in_the_tracker_is_known_before_the_first_stage_ends(lab):
    lab.failures = {("train", "warm"): RuntimeError("x")}
    with pytest.raises(RuntimeError):
        lab.run()
    assert Manifest.read(lab.directory).tracking_id == "run-1.0"


def test_a_start_that_fails_fails_the_run(lab, monkeypatch):
    monkeypatch.setattr(lab, "base", lab.base / "none")
    with pytest.raises(FileNotFoundError):
        lab.run()
    assert lab.tracker.runs[0].status == "FAILED"
    assert lab.finished == []


@pytest.mark.parametrize("spoil", ["weights", "seal", "folder", "another"])
def test_a_hand_over_that_was_tampered_with_is_not_started_from(lab, spoil):
    lab.run(["warm"])
    handoff = lab.directory / "stages" / "00-warm" / "handoff"
    if spoil == "weights":
        (handoff / "model.safetensors").write_text("evil")
    elif spoil == "seal":
        (handoff / SEAL).write_text("{}")
    elif spoil == "folder":
        shutil.rmtree(handoff)
    else:  # complete and sealed, but not what the stage left
        write_artifact(handoff, write_all, {})
    with pytest.raises(StageError, match="00-warm/handoff"):
        lab.run(["warm", "reason"])
    # The seal is read before anything begins, the files when a stage starts from them.
    begun = spoil in ("weights", "folder")
    assert lab.tracker.statuses == ({"lab": "FAILED"} if begun else {})
    assert lab.happened == (["start run-1.0"] if begun else [])
    assert lab.finished == ["warm"]
    lab.run(["warm", "reason"], selection=Selection(from_stage="warm"))
    assert lab.finished == ["warm", "reason"]


def test_a_damaged_manifest_stops_the_run_before_anything_happens(lab):
    lab.run(["warm"])
    (lab.directory / FILE).write_text("{")
    with pytest.raises(StageError, match="is damaged"):
        lab.run()
    assert (lab.happened, lab.tracker.runs) == ([], [])


def test_a_base_model_of_the_hub_is_named_as_it_is(lab, monkeypatch):
    monkeypatch.setattr(Job, "export", lambda self, artifact, directory: write_all(directory))
    lab.base = Path("Qwen/Base")
    [result] = lab.run(["warm"])
    assert result.inputs["weights"] == "Qwen/Base"


@pytest.mark.parametrize("spoil", ["nothing", "file", "subfolder", "missing", "stray", "seal"])
def test_a_handoff_of_another_run_as_the_base_model_is_checked(lab, spoil, tmp_path):
    other = Lab(tmp_path / "other")
    [before] = other.run(["warm"])
    lab.base = other.directory / before.handoff.path
    write = {"file": "model.safetensors", "stray": "adapter_config.json", "subfolder": "adapter/adapter_config.json"}
    if spoil in write:
        (lab.base / write[spoil]).parent.mkdir(exist_ok=True)
        (lab.base / write[spoil]).write_text("evil")
    elif spoil != "nothing":
        (lab.base / {"missing": "tokenizer.json", "seal": SEAL}[spoil]).unlink()
    if spoil != "nothing":
        with pytest.raises(StageError, match=str(lab.base)):
            lab.run(["reason"])
        return
    [result] = lab.run(["reason"])
    assert result.inputs["weights"] == before.handoff.digest
    lineage = check_handoff(lab.directory / result.handoff.path)["lineage"]
    assert (lineage["input_digest"], lineage["input_seal"]) == (before.handoff.digest, before.handoff.seal)


def write_all(directory):
    for name in (*REQUIRED, "model.safetensors"):
        (directory / name).write_text('{"other": 1}')


def test_the_manifest_is_plain_json(lab):
    lab.run(["warm"])
    content = json.loads((lab.directory / FILE).read_text())
    assert content["version"] == 3
    assert content["stages"]["warm"]["digest"] == "same"
    assert content["stages"]["warm"]["result"]["artifacts"]["handoff"]["path"] == "stages/00-warm/handoff"


def test_the_run_of_a_stage_that_was_killed_without_a_word_is_marked(lab):
    """SIGKILL leaves no time to set a status; the note in the manifest does it at the next start."""
    lab.failures["train", "cold_start"] = RuntimeError("stop")
    with pytest.raises(RuntimeError, match="stop"):
        lab.run()
    assert Manifest.read(lab.directory).running_id is None
    replace(Manifest.read(lab.directory), running_id="run-1.9", running_name="01-cold_start").write(lab.directory)
    lab.failures.clear()
    lab.run()
    assert [run.status for run in lab.tracker.runs if run.id == "run-1.9"] == ["KILLED"]
    assert Manifest.read(lab.directory).running_id is None


KEPT = Manifest.write


class Killed(BaseException):
    """Stands for a SIGKILL."""


@pytest.mark.parametrize("write", range(2, 12))  # the first one notes the id of the parent
def test_runs_have_their_true_status_after_a_kill_before_any_change_of_the_manifest(lab, monkeypatch, write):
    """A killed process says nothing to the tracker, so what it had not said yet, the next start says."""
    writes = []

    def killed(manifest, directory):
        writes.append(manifest)
        if len(writes) == write:
            for run in lab.tracker.runs:
                monkeypatch.setattr(run, "finish", lambda status: None)  # a dead process tells nothing
            raise Killed
        if len(writes) < write:
            KEPT(manifest, directory)

    monkeypatch.setattr(Manifest, "write", killed)
    with pytest.raises(Killed):
        lab.run(["warm", "reason"])
    statuses = {run.id: run.status for run in lab.tracker.runs}
    monkeypatch.undo()
    lab.run(["warm", "reason"])
    statuses |= {run.id: run.status for run in lab.tracker.runs}
    known = Manifest.read(lab.directory)
    kept = [known.tracking_id, *(stage.result.tracking_id for stage in known.stages.values())]
    assert {statuses[each] for each in kept} == {"FINISHED"}
    assert set(statuses.values()) <= {"FINISHED", "KILLED"}
    assert known.running_id is None


def test_the_run_in_progress_is_noted_while_it_lasts(lab):
    seen = []
    build = lab.build
    lab.build = lambda *how: seen.append(Manifest.read(lab.directory).running_id) or build(*how)
    lab.run()
    assert seen == [run.id for run in lab.tracker.runs if run.name != "lab"]


def test_a_run_goes_up_to_a_named_stage_and_on_from_there(lab):
    lab.base_evaluation = "how"
    lab.run(selection=Selection(until_stage="base"))
    assert lab.happened.pop() == "evaluate base"
    lab.run(selection=Selection(until_stage="cold_start"))
    assert lab.happened[-4:] == [f"{verb} {name}" for name in NAMES[:2] for verb in ("train", "evaluate")]
    lab.happened.clear()
    lab.run(selection=Selection(until_stage="cold_start"))
    assert lab.happened == [], "what is finished is not run again"
    lab.run()
    assert lab.happened[1:] == ["train reason", "evaluate reason"]
    with pytest.raises(ConfigError, match="--until-stage cold: no such stage; order has warm, cold_start, reason"):
        lab.run(selection=Selection(until_stage="cold"))
    with pytest.raises(ConfigError, match="--only-stage and --until-stage exclude each other"):
        lab.run(selection=Selection(only_stage="warm", until_stage="warm"))


def test_a_run_that_begins_with_all_its_stages_finished_is_tracked_and_described(lab):
    """As an arm of a comparison whose stages other arms share."""
    lab.run()
    replace(Manifest.read(lab.directory), tracking_id=None).write(lab.directory)
    lab.happened.clear()
    lab.run()
    assert lab.happened == ["start run-2.0"]
    assert lab.tracker.statuses == {"lab": "FINISHED"}
