"""Folds one after another: each a run of its own, failures told, and what is reported of them."""

import json
import os
import signal
import stat
import threading
import time
from statistics import stdev
from types import SimpleNamespace

import pytest
from run_folders import LABELS, RunFolder

from lightning_mmrl.app import processes
from lightning_mmrl.app.folds import Fold, folds_of_set, planned, run_folds, train_fold
from lightning_mmrl.config.compose import compose
from lightning_mmrl.errors import ConfigError, DataError, StageError
from lightning_mmrl.evaluation.folds import over_folds
from lightning_mmrl.training.interruption import Interrupted

ANSWERS = {
    "1": [("happy", "happy"), ("sad", "sad"), ("happy", "sad"), ("sad", "sad")],
    "2": [("happy", "happy"), ("sad", "happy"), ("happy", None), ("sad", "sad")],
    "3": [("happy", "happy"), ("sad", "sad"), ("happy", "happy"), ("sad", "sad")],
}


def fold(tmp_path, name, *arguments):
    config = compose([f"output_dir={tmp_path}", f"run_name=x-fold_{name}", f"data.labels=[{','.join(LABELS)}]"])
    return Fold(name=name, arguments=arguments, config=config)


def trained(each, shift=0):
    """Leaves what the training of a fold leaves: one stage, a set of its own and one that all folds share."""
    run = RunFolder(each.directory, order=("reason",))
    run.finish("reason")
    run.evaluate("reason", ANSWERS[each.name])
    run.evaluate("reason", ANSWERS[each.name], name="ood")
    own = run.place("reason") / "evaluation" / "test.jsonl"
    own.write_text(own.read_text().replace('"test-', f'"test-{each.name}-'))


@pytest.fixture
def three(tmp_path):
    return [fold(tmp_path, name) for name in ANSWERS]


def run(folds, fails=()):
    said, begun = [], []

    def train(each):
        begun.append(each.name)
        if each.name in fails:
            return fails[each.name]
        if not each.directory.exists():
            trained(each)
        return 0

    sets, codes = run_folds(folds, folds[0].shared, said.append, train)
    written = json.loads((folds[0].shared / "folds.json").read_text())
    return SimpleNamespace(sets=sets, codes=codes, said=said, begun=begun, written=written)


def test_the_report_has_each_fold_their_mean_and_spread_and_the_pooled_answers(three, tmp_path):
    found = run(three)
    assert three[0].shared == tmp_path / "x-folds"
    assert found.codes == {"1": 0, "2": 0, "3": 0}
    assert [(each["stage"], each["name"]) for each in found.written["results"]] == [
        ("reason", "test"),
        ("reason", "ood"),
    ]
    test, ood = found.written["results"]
    war = [3 / 4, 2 / 4, 4 / 4]
    assert [test["folds"][name]["war"] for name in ANSWERS] == war
    assert test["over_folds"]["war"] == pytest.approx({"mean": 3 / 4, "std": stdev(war), "num_folds": 3})
    assert set(test["over_folds"]) >= {"war", "uar", "macro_f1", "recall/happy"}
    assert test["num_samples"] == {"1": 4, "2": 4, "3": 4}
    assert test["pooled"]["num_samples"] == 12
    assert test["pooled"]["metrics"]["war"] == 9 / 12
    assert test["pooled"]["intervals"]["war"]["low"] < 9 / 12 < test["pooled"]["intervals"]["war"]["high"]
    assert ood["pooled"] is None  # the same clips in each fold
    assert found.written["folds"]["2"] == {"run": "x-fold_2", "exit_code": 0}


def test_a_failed_fold_is_told_and_the_others_are_trained_and_reported(three):
    found = run(three, fails={"2": 2})
    assert found.begun == ["1", "2", "3"]
    assert found.codes == {"1": 0, "2": 2, "3": 0}
    assert "fold 2 failed with exit code 2; the same command tries it again" in found.said
    [test, _] = found.written["results"]
    assert set(test["folds"]) == {"1", "3"}
    assert test["over_folds"]["war"]["num_folds"] == 2
    again = run(three)
    assert again.codes == {"1": 0, "2": 0, "3": 0}
    assert again.written["results"][0]["over_folds"]["war"]["num_folds"] == 3


def test_if_every_fold_fails_there_is_a_report_without_results(three):
    found = run(three, fails=dict.fromkeys("123", 1))
    assert (found.sets, found.written["results"]) == ([], [])


def test_predictions_that_are_gone_are_named(three):
    run(three)
    (three[1].directory / "stages" / "00-reason" / "evaluation" / "test.jsonl").unlink()
    with pytest.raises(DataError, match=r"x-fold_2/.*test\.jsonl cannot be read"):
        run(three)


def test_a_metric_that_a_fold_lacks_is_averaged_over_the_others():
    found = over_folds({"1": {"a": 1.0, "b": 0.5}, "2": {"a": 0.0}, "3": {"a": 0.5, "b": float("nan")}})
    assert (found["a"].mean, found["a"].num_folds) == (0.5, 3)
    assert (found["b"].mean, found["b"].std, found["b"].num_folds) == (0.5, None, 1)


def composed(arguments):
    return compose(list(arguments))


def test_each_fold_is_a_run_of_its_own_in_one_place(tmp_path):
    given = [f"output_dir={tmp_path}", "run_name=mine", "evaluation.sets.test=fold_{fold}/test.jsonl"]
    first, second = planned({"1": [], "2": []}, given, composed)
    assert (first.config.run_name, second.config.run_name) == ("mine-fold_1", "mine-fold_2")
    assert second.arguments[-2:] == ["evaluation.sets.test=fold_2/test.jsonl", "run_name=mine-fold_2"]
    assert second.config.evaluation.sets["test"].manifest == "fold_2/test.jsonl"
    assert first.shared == second.shared == tmp_path / "mine-folds"
    [fast] = planned({"fold_1": []}, ["experiment=quickstart", "debug=fast"], composed)
    assert fast.config.run_name == "debug-fast-quickstart-fold_1"
    assert composed(fast.arguments) == fast.config
    assert fast.shared.name == "debug-fast-quickstart-folds"


def test_folds_in_different_places_and_bad_keys_are_refused_before_any_trains():
    with pytest.raises(ConfigError, match="different output_dir or equal run_name"):
        planned({"1": [], "2": []}, ["output_dir=runs/{fold}"], composed)
    with pytest.raises(ConfigError, match="sede"):
        planned({"1": []}, ["sede=3"], composed)


def test_published_folds_are_taken_with_their_configs_and_made_ones_with_their_media(tmp_path):
    prepared, made = tmp_path / "dfew", tmp_path / "made"
    for number in (0, 1):
        (prepared / f"fold_{number}").mkdir(parents=True)
        (prepared / "configs" / "data").mkdir(parents=True, exist_ok=True)
        (prepared / "configs" / "data" / f"dfew_fold_{number}.yaml").touch()
        (made / f"fold_{number}").mkdir(parents=True)
    found = folds_of_set(prepared)
    own = ["--config-dir", str(prepared / "configs")]
    assert found["fold_1"] == [*own, "data=dfew_fold_1", f'data.root="{prepared / "fold_1"}"']
    assert list(found) == ["fold_0", "fold_1"]
    with pytest.raises(StageError, match="name a folder of mmrl data prepare"):
        folds_of_set(made)
    (made / "folds.json").write_text('{"media_root": "/clips"}')
    assert folds_of_set(made)["fold_0"] == [
        f'data.root="{made / "fold_0"}"',
        'data.media_root="/clips"',
        "data.build=null",
    ]
    with pytest.raises(DataError, match="has no folders fold_1"):
        folds_of_set(tmp_path)


def script(tmp_path, monkeypatch, text):
    """Runs a shell script in the place of Python and the command line."""
    path = tmp_path / "python"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(processes, "sys", SimpleNamespace(executable=str(path)))


@pytest.mark.parametrize(("text", "code"), [("exit 0", 0), ("exit 3", 3), ("kill -KILL $$", 128 + 9)])
def test_the_exit_code_of_a_fold_is_that_of_its_process(tmp_path, monkeypatch, text, code):
    script(tmp_path, monkeypatch, f'echo "$@" > {tmp_path}/seen; {text}')
    assert train_fold(fold(tmp_path, "1", "seed=1")) == code
    assert (tmp_path / "seen").read_text() == "-m lightning_mmrl.cli.main train seed=1\n"


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_the_fold_once_and_ends_the_command_when_the_fold_has_ended(tmp_path, monkeypatch, signum):
    name = signal.Signals(signum).name.removeprefix("SIG")
    log = tmp_path / "log"
    script(
        tmp_path,
        monkeypatch,
        f"trap 'echo got >> {log}; sleep 0.3; echo saved >> {log}; exit 143' {name}\n"
        f"echo ready >> {log}\nfor i in $(seq 200); do sleep 0.05; done",
    )

    def interrupt():
        while not log.exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signum)

    before = signal.getsignal(signum)
    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(Interrupted) as caught:
        train_fold(fold(tmp_path, "1"))
    thread.join()
    assert caught.value.exit_code == 128 + signum
    assert log.read_text().split() == ["ready", "got", "saved"]
    assert signal.getsignal(signum) == before
