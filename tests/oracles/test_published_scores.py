"""Judges of published benchmarks against the scorers that published them, on random and unreadable answers.

published_scores.json holds verdicts of lmms-eval's scorers (tools/truth/published_scores.py writes it). The others are
reimplemented here from the projects' own code, in another way than in the package.
"""

import json
import math
import random
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lightning_mmrl.evaluation.tasks.cv_bench import CVBench
from lightning_mmrl.evaluation.tasks.math_vision import MathVision
from lightning_mmrl.evaluation.tasks.mathvista import MathVista
from lightning_mmrl.evaluation.tasks.mme_emotion import MMEEmotion
from lightning_mmrl.evaluation.tasks.mmmu import MMMU
from lightning_mmrl.evaluation.tasks.sat import SAT
from lightning_mmrl.evaluation.tasks.we_math import WeMath
from lightning_mmrl.rewards.choice_answer import ChoiceAnswer
from lightning_mmrl.rewards.mixed_answer import MixedAnswer
from lightning_mmrl.types.records import Completion, Message, Sample

RECORDED = json.loads(Path(__file__).with_name("published_scores.json").read_text())
ASKED = (Message(role="user", content="?"),)
CHOICE = ChoiceAnswer(reading="tag_or_text", steps=("text", "letter", "last_letter"))


def judged(task, text, solution, name="q", speaker=None, **extras):
    sample = Sample(id=name, messages=ASKED, solution=solution, speaker=speaker, extras=extras)
    return task.judge(sample, Completion(text=text, num_tokens=1, truncated=False))


def test_mathvista_compares_as_its_scorer():
    """The scorer sees extracted answers; a blank one is a guess there and wrong here, so none is among them."""
    rights = 0
    for case in RECORDED["mathvista"]:
        extras = {"answer_type": case["answer_type"], "precision": case["precision"]}
        extras |= {} if case["choices"] is None else {"options": case["choices"]}
        found = judged(MathVista(), f"<answer>{case['text']}</answer>", case["answer"], **extras)
        assert (found.scores["accuracy"] == 1) == case["right"], case
        rights += case["right"]
    assert 60 < rights < 240


def test_math_vision_compares_as_its_scorer():
    rights, unlike = 0, []
    for case in RECORDED["math_vision"]:
        extras = {"options": case["options"]} if case["options"] else {}
        found = judged(MathVision(), case["response"], case["answer"], **extras)
        rights += case["right"]
        if (found.scores["accuracy"] == 1) != case["right"]:
            unlike.append(case)
    assert not unlike
    assert 60 < rights < 240


def test_open_questions_of_mmmu_are_compared_as_by_its_scorer():
    rights = 0
    for case in RECORDED["mmmu_open"]:
        found = judged(MMMU(), case["response"], case["answer"])
        assert (found.scores["accuracy"] == 1) == case["right"], case
        rights += case["right"]
    assert 40 < rights < 240


def choice_of_mmmu(response, options):
    """MMMU's parse_multi_choice_response, told by patterns; None where it draws at random."""
    text = f" {re.sub(r'^[,.!?;:]+|[,.!?;:]+$', '', response)} "
    for pattern in (r"\(([{}])\)", r"(?<= )([{}])(?= )"):
        named = re.findall(pattern.format("".join(options)), text)
        if named:
            return named[-1]
    if len(text.split()) <= 5:
        return None
    ends = [(text.lower().rfind(value.lower()), -ord(letter), letter) for letter, value in options.items()]
    place, _, letter = max(ends)
    return letter if place >= 0 else None


def test_choices_of_mmmu_are_read_as_by_its_scorer():
    draw, texts = random.Random(3), ("red", "blue", "dark blue", "a very long option", "7.5")
    seen = set()
    for _ in range(600):
        options = dict(zip("ABCD", draw.sample(texts, 4), strict=True))
        letter, other = draw.choice("ABCDE"), draw.choice("ABCD")
        form = draw.choice(
            (
                *("{l}", "({l})", "{l}.", "({l}) or ({o})", "It is {l} and not {o} I think", "the {t}", "{o}) {t}"),
                *("I am rather sure that it is the {t}", "no idea at all about this one", "?", "{l}: {t}"),
            )
        )
        response = form.format(l=letter, o=other, t=draw.choice(texts))
        expected = choice_of_mmmu(response, options)
        assert judged(MMMU(), response, "A", options=list(options.values())).predicted == expected, response
        seen.add(expected)
    assert seen == {None, *"ABCD"}


def test_we_math_counts_as_its_scripts():
    task = WeMath()
    for case in RECORDED["we_math"]:
        rows = [
            judged(
                task,
                "<Answer>: <<B>>" if row["joker"] else "<Answer>: <<C>>",
                "B",
                f"{row['ID']}-{row['key']}",
                row["ID"],
                key=row["key"],
            )
            for row in random.Random(1).sample(case["rows"], len(case["rows"]))
        ]
        found, counts = task.metrics(rows), case["counts"]
        problems = len({row["ID"] for row in case["rows"]})
        for kind in ("strict", "loose"):
            mastered, rote = counts[f"CompleteMastery_{kind}"], counts[f"RoteMemorization_{kind}"]
            lost = 0.5 * counts["InadequateGeneralization"] + rote + counts["InsufficientKnowledge"]
            assert found[f"cm_{kind}"] == pytest.approx(mastered / problems)
            assert found[f"rm_{kind}"] == pytest.approx(rote / (mastered + rote))
            assert found[f"score_{kind}"] == pytest.approx((problems - lost) / problems)
        assert found["ik"] == pytest.approx(counts["InsufficientKnowledge"] / problems)
        assert found["ig"] == pytest.approx(counts["InadequateGeneralization"] / problems)
        table = pd.DataFrame(case["rows"])
        single = table[~table["key"].str.endswith("multi")]
        assert found["one_step"] == pytest.approx(single["joker"].mean())
        for name, steps in (("two_step", 2), ("three_step", 3)):
            assert found[name] == pytest.approx(table[table["key"] == f"{steps}steps_multi"]["joker"].mean())


def test_a_problem_with_a_missing_question_counts_in_no_metric_of_problems():
    task = WeMath()
    whole = [judged(task, "B", "B", f"p-{step}", "p", key=f"2steps_{step}") for step in (1, 2, "multi")]
    part = [judged(task, "C", "B", f"q-{step}", "q", key=f"2steps_{step}") for step in (1, "multi")]
    found = task.metrics([*whole, *part])
    assert (found["score_strict"], found["ik"], found["accuracy"]) == (1.0, 0.0, 0.6)
    assert "score_strict" not in task.metrics(part)


def test_cv_bench_averages_sources_as_its_card():
    draw, task = random.Random(5), CVBench(reader=CHOICE)
    rows, table = [], []
    for number in range(300):
        source, right = draw.choice(("ADE20K", "COCO", "Omni3D")), draw.random() < 0.6
        text = (
            draw.choice(("(B)", "<answer>B</answer>", "The answer is (B) 1.")) if right else draw.choice(("(A)", "?"))
        )
        options = ["3", "1"]
        rows.append(judged(task, text, "(B)", f"q{number}", source=source, options=options))
        table.append({"source": source, "result": right})
    means = pd.DataFrame(table).groupby("source")["result"].mean()
    two = (means["ADE20K"] + means["COCO"]) / 2
    found = task.metrics(rows)
    assert found["accuracy"] == pytest.approx(np.mean([row["result"] for row in table]))
    assert (found["accuracy_2d"], found["accuracy_3d"]) == pytest.approx((two, means["Omni3D"]))
    assert found["combined"] == pytest.approx((two + means["Omni3D"]) / 2)
    three = [row for row, each in zip(rows, table, strict=True) if each["source"] == "Omni3D"]
    assert "combined" not in task.metrics(three)
    assert "accuracy_2d" not in task.metrics(three)


def test_sat_counts_a_question_that_is_right_in_every_turn():
    draw, task = random.Random(6), SAT(reader=CHOICE)
    rows, rights = [], defaultdict(list)
    for question in range(80):
        for turned in range(draw.randint(2, 4)):
            right = draw.random() < 0.8
            text = "left" if right else draw.choice(("right", "neither", ""))
            sample = (f"q{question}#{turned}", f"q{question}")
            rows.append(judged(task, text, "left", *sample, options=["left", "right", "up"]))
            rights[question].append(right)
    draw.shuffle(rows)
    found = task.metrics(rows)
    assert found["accuracy"] == pytest.approx(np.mean([right for each in rights.values() for right in each]))
    assert found["circular"] == pytest.approx(np.mean([all(each) for each in rights.values()]))


LABELS = ("anger", "fear", "sadness", "surprise")


class Half:
    """A judge of reasoning that rates only long thoughts."""

    def __call__(self, sample, completion):
        return 0.5 if len(completion.text) > 60 else None


def test_mme_emotion_rates_as_its_metrics():
    """Recognition is C / K; answers that the judge does not rate count in no reasoning score."""
    draw, task = random.Random(8), MMEEmotion(reasoning=Half())
    rows, recognized, judged_ones = [], [], 0
    for number in range(120):
        truth, named = draw.sample(LABELS, draw.randint(1, 3)), draw.sample(LABELS, draw.randint(1, 4))
        text = draw.choice((", ".join(named), ", ".join(named), "", "hungry"))
        thought = draw.choice(("short", "The brows are lowered and the voice is loud and fast."))
        rows.append(
            judged(
                task,
                f"<think>{thought}</think><answer>{text}</answer>",
                ",".join(truth),
                f"q{number}",
                label_set=list(LABELS),
            )
        )
        is_list = len(truth) > 1 or len(named) == 1
        said = set(named) if text not in ("", "hungry") and is_list else set()
        recognized.append(len(said & set(truth)) / len(truth))
        judged_ones += len(rows[-1].text) > 60
    found = task.metrics(rows)
    assert found["accuracy"] == pytest.approx(np.mean(recognized))
    assert 0 < judged_ones < len(rows)
    assert (found["reasoning"], found["cot"]) == pytest.approx((0.5, (found["accuracy"] + 0.5) / 2))
    without = MMEEmotion()
    assert "cot" not in without.metrics([judged(without, "anger", "anger", label_set=list(LABELS))])


def test_mathverse_answers_that_match_exactly_are_right_under_the_mixed_judge():
    """MathVerse's quick match compares texts; the task `mixed` also accepts other ways to write them."""
    reward = MixedAnswer(reading="tag_or_boxed")
    for solution in ("A", "D", "7", "2\\sqrt{3}", "60^\\circ", "-0.5", "\\frac{3}{4}"):
        sample = Sample(id="v", messages=ASKED, solution=solution)
        for text, right in ((solution, 1.0), ("E", 0.0), ("1000", 0.0)):
            completion = Completion(text=f"<answer>{text}</answer>", num_tokens=1, truncated=False)
            assert reward(sample, completion) == right, (solution, text)


def test_values_are_finite_numbers_and_hostile_texts_take_no_time():
    task = MathVision()
    for text in ("9^9^9^9", "\\sqrt{" * 300, "1" * 5000, "oxed{" * 20000, "(" * 20000, "__import__('os')", "1/0"):
        assert judged(task, text, "7").scores["accuracy"] == 0
    assert not math.isnan(task.metrics([judged(task, "7", "7")])["accuracy"])
