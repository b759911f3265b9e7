"""Judges against the verdicts of tests/verdicts, and evaluation against the reward.

The judges were mended on all of these cases but the third reader's; on the others the tests find what goes back.
"""

import json
import sys
from pathlib import Path

import judge_pairs
import judge_verdicts
import pytest

from lightning_mmrl.evaluation.tasks.closed_labels import ClosedLabels
from lightning_mmrl.types.records import Completion, Sample

ROOT = Path(__file__).parents[3]


NAMES = ("choice", "math", "label", "emotion_set")


@pytest.mark.parametrize("name", NAMES)
def test_a_judge_is_right_in_99_of_100_cases_in_each_half(name):
    cases = judge_verdicts.read_cases(name)
    wrong = [case for case, _ in judge_verdicts.disagreements(cases)]
    for held_out in (False, True):
        half = [case for case in cases if case.held_out == held_out]
        assert len(half) >= 200
        assert sum(case.held_out == held_out for case in wrong) <= (1 - judge_verdicts.NEEDED) * len(half), wrong


@pytest.mark.parametrize("name", NAMES)
def test_a_judge_is_right_in_99_of_100_cases_of_a_second_reader(name):
    cases = judge_verdicts.read_cases(name, judge_verdicts.VERDICTS / "second")
    assert len(cases) >= 80
    assert len(list(judge_verdicts.disagreements(cases))) <= (1 - judge_verdicts.NEEDED) * len(cases)


def test_the_judges_are_right_in_99_of_100_cases_of_a_third_reader_on_which_nothing_was_mended():
    cases = [case for name in NAMES for case in judge_verdicts.read_cases(name, judge_verdicts.VERDICTS / "third")]
    assert len(cases) == 240
    assert len(list(judge_verdicts.disagreements(cases))) <= (1 - judge_verdicts.NEEDED) * len(cases)


@pytest.mark.parametrize("folder", [".", "second", "third"])
@pytest.mark.parametrize("name", NAMES)
def test_cases_differ_are_balanced_and_say_why(name, folder):
    cases = judge_verdicts.read_cases(name, judge_verdicts.VERDICTS / folder)
    assert len({(case.labels, case.solution, case.answer) for case in cases}) == len(cases)
    assert all(case.note for case in cases)
    unpaid = sum(case.verdict in (False, "none") for case in cases)
    assert 0.4 < unpaid / len(cases) < 0.6


@pytest.mark.parametrize("name", NAMES)
def test_a_changed_verdict_says_what_it_was_and_why(name):
    lines = (ROOT / "tests" / "verdicts" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    changed = [row["changed"] for row in map(json.loads, lines) if "changed" in row]
    assert all(set(change) == {"from", "reason"} and len(change["reason"]) > 20 for change in changed)
    assert len(changed) <= 4  # what the file shows would be the judge's own opinion otherwise


def test_verdicts_of_every_kind_are_told_apart():
    agrees = {
        verdict: [judge_verdicts.agrees(verdict, reward) for reward in (0.0, 0.4, 1.0, "invalid: no mathematics")]
        for verdict in (True, False, "full", "part", "none", "notfull")
    }
    assert agrees == {
        True: [False, False, True, False],
        False: [True, False, False, False],
        "full": [False, False, True, False],
        "part": [False, True, False, False],
        "none": [True, False, False, False],
        "notfull": [True, True, False, False],
    }


def test_a_judge_that_pays_everything_would_be_found(monkeypatch):
    monkeypatch.setitem(judge_verdicts.JUDGES, "choice", lambda sample, completion: 1.0)
    cases = judge_verdicts.read_cases("choice")
    assert len(list(judge_verdicts.disagreements(cases))) > 150


def test_the_command_prints_the_shares_and_says_with_its_code_whether_they_suffice(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["judge_verdicts.py", "--judge", "label"])
    assert judge_verdicts.main() == 0
    assert "odd lines" in capsys.readouterr().out
    monkeypatch.setitem(judge_verdicts.JUDGES, "choice", lambda sample, completion: 1.0)
    monkeypatch.setattr(sys, "argv", ["judge_verdicts.py", "--judge", "choice", "--show", "even"])
    assert judge_verdicts.main() == 1
    assert "wanted False, got 1.0" in capsys.readouterr().out


def test_evaluation_reads_what_the_reward_reads():
    """Accuracy in training and in evaluation are of one matcher."""
    for case in judge_verdicts.read_cases("label"):
        task = ClosedLabels(labels=judge_verdicts.LABELS[case.labels])
        text = f"<think>Lowered brows.</think><answer>{case.answer}</answer>"
        sample = Sample(id="clip", messages=(), solution=case.solution)
        judged = task.judge(sample, Completion(text=text, num_tokens=9, truncated=False))
        assert float(judged.predicted == judged.truth) == judge_verdicts.reward_of(case), case


PAIR_FILES = tuple(judge_pairs.JUDGES)


@pytest.mark.parametrize("name", PAIR_FILES)
def test_a_judge_is_right_in_99_of_100_pairs_of_published_shapes(name):
    pairs = judge_pairs.read_pairs(judge_pairs.PAIRS / judge_pairs.LABELED.format(name), name)
    judged = [pair for pair in pairs if pair.verdict is not None]
    assert len(judged) >= 300
    # `tag_or_text` reads five answers without the tag that the reader wanted; see judge_pairs.EXCEPTIONS.
    needed = 0.98 if name == "reading" else judge_verdicts.NEEDED
    assert len(judge_pairs.disagreements(pairs)) <= (1 - needed) * len(judged)


@pytest.mark.parametrize("name", judge_pairs.EXCEPTIONS)
def test_every_disagreement_on_purpose_has_a_reason_and_no_other_is_left(name):
    pairs = judge_pairs.read_pairs(judge_pairs.PAIRS / judge_pairs.LABELED.format(name), name)
    named = [line for lines in judge_pairs.EXCEPTIONS[name].values() for line in lines]
    assert sorted(named) == [pair.line for pair, _ in judge_pairs.disagreements(pairs)]
    assert len(named) <= 0.02 * len(pairs)


@pytest.mark.parametrize("name", PAIR_FILES)
def test_pairs_differ_and_have_what_a_judge_needs(name):
    paths = [judge_pairs.PAIRS / each.format(name) for each in (judge_pairs.LABELED, judge_pairs.WAITING)]
    pairs = [pair for path in paths if path.exists() for pair in judge_pairs.read_pairs(path, name)]
    assert len(pairs) >= 400
    keys = ("question", "gold", "answer", "completion", "reading", "shape")
    assert len({tuple(pair.row.get(key) for key in keys) for pair in pairs}) == len(pairs)
    assert len({pair.row["shape"] for pair in pairs}) >= 3
    assert all(("answer" in pair.row) != ("completion" in pair.row) for pair in pairs)
    assert (
        all("verdict" not in pair.row for pair in judge_pairs.read_pairs(paths[1], name)) if paths[1].exists() else True
    )


def test_pairs_without_verdicts_are_skipped_aloud_and_pairs_with_them_are_scored(tmp_path, capsys):
    row = {"shape": "sat", "question": "Left or right?", "options": ["left", "right"], "gold": "left"}
    rows = [{**row, "answer": answer} for answer in ("A", "right", "left or right")]

    def write(form, verdicts):
        lines = [json.dumps(each | ({} if verdict == "none" else {"verdict": verdict})) for each, verdict in verdicts]
        (tmp_path / form.format("choice")).write_text("\n".join(lines) + "\n")

    write(judge_pairs.WAITING, [(each, "none") for each in rows])
    assert judge_pairs.report("choice", folder=tmp_path)
    assert "SKIPPED: 3 pairs in pairs_choice.unlabeled.jsonl wait" in capsys.readouterr().out
    write(judge_pairs.LABELED, list(zip(rows, (True, False, None), strict=True)))
    assert judge_pairs.report("choice", folder=tmp_path)
    assert "2/2 = 100.0 % (1 left out by the reader)" in capsys.readouterr().out
    write(judge_pairs.LABELED, list(zip(rows, (True, True, False), strict=True)))
    assert not judge_pairs.report("choice", show=True, folder=tmp_path)
    assert "wanted True, got 0.0" in capsys.readouterr().out
