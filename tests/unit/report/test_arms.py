"""Reading a comparison: values of arms, pairs, budgets, folds, and what is missing or damaged."""

import json
import math
import re
import shutil

import pytest
from arm_folders import FOUR, ArmsFolder, set_uar, spent
from run_folders import RunFolder
from scipy import stats

from lightning_mmrl.errors import DataError
from lightning_mmrl.report.arms_read import summarize
from lightning_mmrl.types.records import HANDOFF, WEIGHTS

SFT, RL = {0: 0.5, 1: 0.6, 2: 0.4}, {0: 0.55, 1: 0.7, 2: 0.6}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return ArmsFolder(tmp_path_factory.mktemp("made") / "orders", {"sft": SFT, "rl": RL}, best=0.125)


@pytest.fixture
def arms(made, tmp_path):
    return made.copied(tmp_path / "orders")


def cell(summary, arm, seed, fold=None):
    return next(each for each in summary.cells if (each.arm, each.seed, each.fold) == (arm, seed, fold))


def test_arms_are_compared_by_seed_after_their_last_trained_stage(arms):
    found = summarize(arms.folder)
    assert (found.metric, found.is_complete, found.notes) == ("uar", True, ())
    assert found.by_seed() == {"sft": SFT, "rl": RL}
    [contrast] = found.contrasts
    expected = stats.ttest_rel(list(RL.values()), list(SFT.values()))
    assert (contrast.arm, contrast.over, contrast.seeds) == ("rl", "sft", (0, 1, 2))
    assert contrast.found.p_value == pytest.approx(expected.pvalue)
    assert cell(found, "rl", 1).best == 0.7 + 0.125
    assert cell(found, "rl", 1).base == 0.5, "two of the four answers after pretrain are right"
    assert [each.mean for each in found.best_contrasts] == pytest.approx([contrast.mean])


def test_only_stages_that_count_are_part_of_the_budget(arms):
    [one, *_] = summarize(arms.folder).cells
    assert [(each.stage, each.counts, each.flops) for each in one.stages] == [
        ("pretrain", False, 500.0),
        ("cold_start", True, 200.0),
        ("reason", True, 800.0),
    ]
    assert (one.spent("flops"), one.spent("steps"), one.spent("seconds")) == (1000.0, 14.0, 20.0)


@pytest.mark.parametrize(("operations", "equal"), [(1020, True), (980, True), (1021, False), (979, False)])
def test_an_arm_off_its_budget_is_said(tmp_path, operations, equal):
    arms = ArmsFolder(tmp_path / "orders", {"sft": SFT, "rl": RL}, operations={"rl": operations})
    found = summarize(arms.folder)
    assert (found.is_equal("sft"), found.is_equal("rl")) == (True, equal)
    told = f"rl: unequal budget, runs spent {operations / 10:.1f} to {operations / 10:.1f} % of the budget"
    assert any(note.startswith(told) for note in found.notes) != equal


def test_arms_that_are_off_in_two_directions_are_unequal_together(tmp_path):
    arms = ArmsFolder(tmp_path / "orders", {"sft": SFT, "rl": RL}, operations={"sft": 985, "rl": 1015})
    found = summarize(arms.folder)
    assert (found.is_equal("sft"), found.is_equal("rl"), found.is_equal("rl", "sft")) == (True, True, False)
    told = "sft and rl: unequal budget, runs spent 98.5 to 101.5 % of the budget, and 2 % off it or apart was allowed."
    assert told in found.notes
    assert [each["equal_budget"] for each in found.plain()["differences"]] == [False]


def test_one_run_off_the_budget_is_enough(arms):
    run = RunFolder(arms.folder / "other", order=("pretrain", "cold_start", "reason"))
    weights = run.finish("pretrain")[HANDOFF]
    weights = run.finish("cold_start", reads={WEIGHTS: weights}, costs=spent(200), start="pretrain")[HANDOFF]
    run.finish("reason", reads={WEIGHTS: weights}, costs=spent(900), start="cold_start")
    shutil.copy(run.folder / "manifest.json", arms.folder / "runs" / "rl-seed1" / "manifest.json")
    found = summarize(arms.folder)
    assert found.shares("rl") == [1.0, 1.1, 1.0]
    assert found.is_equal("rl") is False
    assert "runs spent 100.0 to 110.0 % of the budget, and 2 % off it or apart was allowed" in " ".join(found.notes)


def test_without_a_budget_arms_are_held_against_the_baseline(tmp_path):
    arms = ArmsFolder(tmp_path / "orders", {"sft": SFT, "rl": RL}, operations={"rl": 1500}, budget=None)
    found = summarize(arms.folder)
    assert (found.measure, found.shares("rl"), found.is_equal("rl")) == ("flops", [1.5] * 3, False)
    assert any("of what sft spent on average" in note for note in found.notes)


def test_unknown_operations_are_no_equal_budget(arms):
    path = arms.folder / "runs" / "rl-seed2" / "manifest.json"
    content = json.loads(path.read_text())
    content["stages"]["reason"]["result"]["costs"]["ranks"][0]["operations"] = {}
    path.write_text(json.dumps(content))
    found = summarize(arms.folder)
    assert found.is_equal("rl") is None
    assert "rl: it is not known how much of the budget it spent, in flops." in found.notes


def test_a_budget_of_steps_counts_steps(arms):
    arms.content["budget"] = {"steps": 14}
    arms.save()
    found = summarize(arms.folder)
    assert (found.measure, found.shares("rl")) == ("steps", [1.0] * 3)


def test_failed_and_missing_runs_leave_their_pairs_alone(tmp_path):
    arms = ArmsFolder(tmp_path / "orders", {"sft": SFT, "rl": {**RL, 1: None}, "late": RL}, seeds=[0, 1, 2, 3])
    arms.content["runs"][6]["exit_code"] = None
    arms.save()
    shutil.rmtree(arms.folder / "runs" / "late-seed2")
    found = summarize(arms.folder)
    rl, late = found.contrasts
    assert (rl.seeds, rl.found.values) == ((0, 2), pytest.approx((0.05, 0.2)))
    assert (late.seeds, late.found) == ((1,), None)
    assert not found.is_complete
    told = " ".join(found.notes)
    for part in (
        "rl, seed 1: failed with exit code 1.",
        "1 of 12 runs has not ended.",
        "late, seed 2: cannot be read:",
        "3 of 12 runs have not begun.",
        "if bad training made them fail",
        "rl over sft: paired over the 2 of 4 seeds that both have (seeds 0, 2).",
        "late over sft: one seed in common, which has no interval (seeds 1).",
    ):
        assert part in told, part


def test_runs_that_are_planned_and_not_begun_are_counted(arms):
    """`mmrl compare` names all runs from the beginning."""
    for run in arms.content["runs"][1:]:
        run["exit_code"] = None
        shutil.rmtree(arms.folder / run["folder"])
    arms.save()
    found = summarize(arms.folder)
    assert found.notes[0] == "5 of 6 runs have not begun."
    assert [note for note in found.notes if "seed 1" in note] == []


def test_folds_are_means_of_their_seed_and_need_all_folds(tmp_path):
    sft = {seed: {"fold_1": 0.25, "fold_2": 0.5} for seed in range(3)}
    rl = {seed: {"fold_1": 0.25 + seed / 8, "fold_2": 0.75} for seed in range(3)}
    arms = ArmsFolder(tmp_path / "orders", {"sft": sft, "rl": rl}, folds=["fold_1", "fold_2"])
    found = summarize(arms.folder)
    assert found.by_seed() == {"sft": dict.fromkeys(range(3), 0.375), "rl": {0: 0.5, 1: 0.5625, 2: 0.625}}
    assert found.contrasts[0].seeds == (0, 1, 2), "three units, and not six"
    arms.content["runs"].pop()
    arms.save()
    assert summarize(arms.folder).contrasts[0].seeds == (0, 1)


def test_a_named_metric_is_compared(arms):
    arms.content["measure"]["metric"] = "war"
    arms.save()
    found = summarize(arms.folder)
    assert (found.metric, set(found.by_seed()["rl"].values())) == ("war", {0.5})
    [contrast] = found.contrasts
    assert "same in all 3 seeds" in contrast.why_not
    arms.content["measure"]["metric"] = "wer"
    arms.save()
    assert cell(summarize(arms.folder), "rl", 0).problem == "has no metric wer on test"


def test_the_headline_is_that_of_most_runs_and_one_odd_run_is_named(arms):
    path = arms.folder / "runs" / "sft-seed0" / "stages" / "02-reason" / "evaluation" / "evaluation.json"
    content = json.loads(path.read_text())
    content["test"]["task"] = {"headline": "accuracy"}
    path.write_text(json.dumps(content))
    found = summarize(arms.folder)
    assert found.metric == "uar"
    assert [each.title for each in found.cells if each.problem] == ["sft, seed 0"]
    assert cell(found, "sft", 0).problem == "is measured by accuracy, others by uar"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_value_that_is_not_finite_is_none(arms, value):
    set_uar(arms.folder / "runs" / "rl-seed1" / "stages" / "02-reason" / "evaluation", value)
    found = summarize(arms.folder)
    assert found.contrasts[0].seeds == (0, 2)
    assert f"rl, seed 1: has uar {value} on test." in found.notes
    json.dumps(found.plain(), allow_nan=False)


def test_an_unfinished_last_stage_is_not_taken_for_the_one_before(arms):
    path = arms.folder / "runs" / "rl-seed1" / "manifest.json"
    content = json.loads(path.read_text())
    del content["stages"]["reason"]
    path.write_text(json.dumps(content))
    assert cell(summarize(arms.folder), "rl", 1).problem == "is damaged: its manifest has no finished reason"


def test_different_sets_of_samples_are_said(arms):
    run = RunFolder(arms.folder / "other")
    run.evaluate("reason", [*FOUR, ("sad", "sad")])
    target = arms.folder / "runs" / "rl-seed1" / "stages" / "02-reason" / "evaluation" / "evaluation.json"
    shutil.copy(run.place("reason") / "evaluation" / "evaluation.json", target)
    told = "Runs were evaluated on different numbers of samples: 5 on 4 samples, 1 on 5 samples"
    assert any(note.startswith(told) for note in summarize(arms.folder).notes)


def test_other_sets_at_the_best_validation_are_not_taken_for_the_measure(arms):
    path = arms.folder / "best" / "rl-seed1" / "evaluation.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "test-silent": {**content["test"], "metrics": {"uar": 0.1}}}))
    assert cell(summarize(arms.folder), "rl", 1).best == 0.7 + 0.125


def test_a_lost_evaluation_of_the_best_validation_is_said(arms):
    shutil.rmtree(arms.folder / "best" / "rl-seed1")
    found = summarize(arms.folder)
    assert found.best_contrasts[0].seeds == (0, 2)
    assert "rl, seed 1: the evaluation of its weights with the best validation has no figure" in " ".join(found.notes)


def test_an_evaluation_of_the_best_validation_that_failed_costs_that_figure_alone(arms):
    arms.content["runs"][4] |= {"best": None, "best_exit_code": 3}
    arms.save()
    found = summarize(arms.folder)
    assert cell(found, "rl", 1).value == RL[1]
    assert (found.contrasts[0].seeds, found.best_contrasts[0].seeds) == ((0, 1, 2), (0, 2))
    assert found.notes[0] == (
        "rl, seed 1: its weights with the best validation were not evaluated; `mmrl evaluate` failed with exit code 3."
    )


def test_one_seed_has_no_interval_and_one_arm_no_comparison(tmp_path):
    alone = ArmsFolder(tmp_path / "alone", {"sft": {0: 0.5}})
    assert summarize(alone.folder).contrasts == ()
    pair = ArmsFolder(tmp_path / "pair", {"sft": {0: 0.5}, "rl": {0: 0.5}})
    [contrast] = summarize(pair.folder).contrasts
    assert contrast.found is None
    assert contrast.why_not.startswith("one seed")


def test_folders_outside_the_comparison_are_not_read(arms):
    shutil.copytree(arms.folder / "runs" / "rl-seed1", arms.folder.parent / "outside")
    arms.content["runs"][4]["folder"] = "../outside"
    arms.content["runs"][5]["best"] = str(arms.folder.parent / "outside")
    arms.save()
    found = summarize(arms.folder)
    assert cell(found, "rl", 1).problem == "its folder leads out of the comparison's"
    assert cell(found, "rl", 2).best is None
    summary = arms.folder / "best" / "rl-seed0" / "evaluation.json"
    summary.rename(arms.folder.parent / "elsewhere.json")
    summary.symlink_to(arms.folder.parent / "elsewhere.json")
    assert cell(summarize(arms.folder), "rl", 0).best is None


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("manifest.json", "{"),
        ("manifest.json", '{"version": 3, "stages": {"reason": 7}}'),
        ("config.yaml", "[1"),
        ("stages/02-reason/evaluation/evaluation.json", '{"test": {}}'),
        ("stages/02-reason/evaluation/evaluation.json", "[]"),
        *(
            (
                "stages/02-reason/evaluation/evaluation.json",
                f'{{"test": {{"num_samples": {size}, "metrics": {{"uar": {value}}}, "intervals": {{}}}}}}',
            )
            for size, value in ((4, "true"), (4, '"0.5"'), (4, "1" + 400 * "0"), ("Infinity", 0.5), ("true", 0.5))
        ),
    ],
)
def test_a_damaged_run_costs_its_own_figure_alone(arms, file, content):
    (arms.folder / "runs" / "rl-seed1" / file).write_text(content)
    found = summarize(arms.folder)
    if file != "config.yaml":  # the page of the run needs it, and figures do not
        assert found.contrasts[0].seeds == (0, 2)
        assert any(note.startswith("rl, seed 1: ") for note in found.notes)
    assert cell(found, "rl", 0).value == 0.55


@pytest.mark.parametrize("left", [{}, {"pairs": {"path": "stages/02-reason/artifacts/pairs", "digest": "a"}}])
@pytest.mark.parametrize(
    ("evaluation", "problem"),
    [("e", "stage reason was evaluated and has no handoff"), (None, "its manifest has no weights of reason")],
)
def test_the_value_of_an_earlier_stage_is_not_taken_where_the_last_one_lost_its_weights(
    arms, left, evaluation, problem
):
    path = arms.folder / "runs" / "rl-seed1" / "manifest.json"
    content = json.loads(path.read_text())
    content["stages"]["reason"]["evaluation"] = evaluation
    content["stages"]["reason"]["result"]["artifacts"] = left
    path.write_text(json.dumps(content))
    found = cell(summarize(arms.folder), "rl", 1)
    assert found.value is None
    assert problem in found.problem


def test_a_plan_of_an_earlier_version_does_not_say_which_stages_train(arms):
    for arm in arms.content["arms"].values():
        del arm["trained"]
    arms.save()
    assert cell(summarize(arms.folder), "rl", 1).value == 0.7


@pytest.mark.parametrize("leads_out", ["evaluation.json", "test.jsonl"])
def test_an_evaluation_that_leads_out_is_not_called_a_missing_one(arms, leads_out):
    place = arms.folder / "runs" / "rl-seed1" / "stages" / "02-reason" / "evaluation"
    (place / leads_out).rename(arms.folder.parent / leads_out)
    (place / leads_out).symlink_to(arms.folder.parent / leads_out)
    found = cell(summarize(arms.folder), "rl", 1)
    assert found.value is None
    assert re.search(rf"cannot be read: .*{leads_out} leads out of", found.problem)


def test_damage_to_another_set_is_not_the_reason_why_the_measured_one_is_missing(arms):
    place = arms.folder / "runs" / "rl-seed1" / "stages" / "02-reason" / "evaluation"
    content = json.loads((place / "evaluation.json").read_text())
    (place / "evaluation.json").write_text(json.dumps({"ood": content["test"]}))
    (place / "ood.jsonl").symlink_to(arms.folder.parent / "elsewhere.jsonl")
    assert cell(summarize(arms.folder), "rl", 1).problem == "was not evaluated on test after its last trained stage"


def test_finished_runs_that_the_plan_leaves_out_are_named(arms):
    arms.content["seeds"] = [0, 1]
    arms.content["runs"] = [run for run in arms.content["runs"] if run["seed"] != 2]
    arms.save()
    told = "Runs in the folder that are no part of this comparison, 2: rl-seed2, sft-seed2."
    assert summarize(arms.folder).notes == (told,)


def test_costs_that_are_no_numbers_are_unknown(arms):
    arms.content["budget"] = {"seconds": 20.0}
    arms.save()
    path = arms.folder / "runs" / "rl-seed1" / "manifest.json"
    whole = path.read_text()
    path.write_text(whole.replace('"optimize": 10.0', '"optimize": NaN'))
    assert summarize(arms.folder).is_equal("rl") is None
    path.write_text(whole.replace('"optimize": 10.0', '"optimize": "long"'))
    assert "damaged" in cell(summarize(arms.folder), "rl", 1).problem


KEYS = ("version", "name", "question", "exploratory", "command", "baseline", "measure", "tolerance", "arms", "seeds")


@pytest.mark.parametrize("key", [*KEYS, "folds", "runs"])
def test_a_plan_that_lacks_a_key_gets_one_sentence(arms, key):
    del arms.content[key]
    arms.save()
    with pytest.raises(DataError, match=rf"compare.json has no key {key}; restore it, or remove"):
        summarize(arms.folder)


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"version": 2}, "has version 2"),
        ({"seeds": ["a"]}, "seeds has 'a', which is of the wrong kind"),
        ({"seeds": [0, 0, 1, 2]}, "seeds has an entry twice"),
        ({"seeds": [0, 1]}, "arm 'sft', seed 2, fold None, which arms, seeds or folds do not name"),
        ({"seeds": True}, "seeds is True"),
        ({"baseline": "x"}, "baseline is 'x', and the arms are sft, rl"),
        ({"arms": {"sft": {}, "rl": {}}}, "no key arms.sft.shares"),
        ({"arms": []}, "arms is "),
        ({"runs": [3]}, "runs.0 is no mapping"),
        ({"measure": {"metric": None}}, "no key measure.set"),
        ({"budget": {}}, "it must be one of flops, steps, seconds above 0"),
        ({"budget": {"flops": 1, "steps": 2}}, "it must be one of"),
        ({"budget": {"flops": -1}}, "it must be one of"),
        ({"budget": {"flops": math.nan}}, "it must be one of"),
        ({"budget": {"flops": 10**400}}, "it must be one of"),
        ({"budget": {"flops": 5e-324}}, "it must be one of"),
        *(({"tolerance": value}, "it must be at least 0 and below 1") for value in (-1, math.nan, 10**400)),
        ({"seeds": []}, "seeds is empty"),
    ],
)
def test_a_plan_that_contradicts_itself_gets_one_sentence(arms, keys, sentence):
    arms.content |= keys
    arms.save()
    with pytest.raises(DataError) as caught:
        summarize(arms.folder)
    assert sentence in str(caught.value)


def test_two_runs_in_one_folder_are_refused(arms):
    arms.content["runs"][1]["folder"] = arms.content["runs"][0]["folder"]
    arms.save()
    with pytest.raises(DataError, match=r"runs\.folder has an entry twice"):
        summarize(arms.folder)


@pytest.mark.parametrize("folder", ["a\0b", "r" * 300, "../out"])
def test_a_folder_that_is_none_costs_its_run(arms, folder):
    arms.content["runs"][1]["folder"] = folder
    arms.save()
    found = summarize(arms.folder)
    assert sum(each.value is None for each in found.cells) == 1
    assert any(note.startswith("Runs in the folder that are no part of this comparison, 1: ") for note in found.notes)


def test_an_evaluation_that_is_a_folder_is_not_called_a_missing_one(arms):
    path = arms.folder / "runs" / "rl-seed1" / "stages/02-reason/evaluation/evaluation.json"
    path.unlink()
    path.mkdir()
    assert "cannot be read" in cell(summarize(arms.folder), "rl", 1).problem


@pytest.mark.parametrize("content", ["{", "[]", "", "[" * 100_000])
def test_a_damaged_plan_gets_one_sentence(arms, content):
    (arms.folder / "compare.json").write_text(content)
    with pytest.raises(DataError, match=r"compare\.json"):
        summarize(arms.folder)


def test_a_folder_without_a_plan_is_none_of_a_comparison(tmp_path):
    with pytest.raises(DataError, match="is no folder of a comparison"):
        summarize(tmp_path)
