"""Formats, choices, emotion sets, lengths and repetition, each against its definition."""

import math
from dataclasses import replace

import pytest

from lightning_mmrl.errors import ConfigError, DataError, RewardError
from lightning_mmrl.prompts.template import PromptTemplate
from lightning_mmrl.protocols.plain import RewardFn
from lightning_mmrl.rewards.choice_answer import ChoiceAnswer
from lightning_mmrl.rewards.compose import WeightedReward
from lightning_mmrl.rewards.efficient_length import EfficientLength
from lightning_mmrl.rewards.emotion_set import EmotionSet
from lightning_mmrl.rewards.hard_format_result import HardFormatResult
from lightning_mmrl.rewards.label_answer import LabelAnswer
from lightning_mmrl.rewards.lenient_format import LenientFormat
from lightning_mmrl.rewards.math_answer import MathAnswer
from lightning_mmrl.rewards.repetition import Repetition
from lightning_mmrl.rewards.soft_overlong import SoftOverlong
from lightning_mmrl.rewards.think_answer_format import ThinkAnswerFormat
from lightning_mmrl.rewards.token_length import TokenLength
from lightning_mmrl.settings.algorithm import RewardSettings
from lightning_mmrl.settings.data import PromptSettings
from lightning_mmrl.types.records import Completion, Message, Sample

LABELS = ("angry", "fear", "sad", "happy")


def posed(solution):
    return Sample(id="clip-7", messages=(), solution=solution)


def completion(text, num_tokens=9):
    return Completion(text=text, num_tokens=num_tokens, truncated=False)


def answered(answer):
    return completion(f"<think>Knitted brows.</think><answer>{answer}</answer>")


def long(num_tokens):
    return completion("", num_tokens)


def constant(value):
    return lambda sample, completion: value


@pytest.mark.parametrize(
    "reward",
    [
        *(LenientFormat(), ChoiceAnswer(), EmotionSet(), Repetition(), TokenLength()),
        *(EfficientLength(budget=9), SoftOverlong(max_tokens=9, cache=3)),
        HardFormatResult(format=LenientFormat(), result=ChoiceAnswer()),
    ],
    ids=lambda reward: type(reward).__name__,
)
def test_they_meet_the_protocol(reward):
    assert isinstance(reward, RewardFn)


@pytest.mark.parametrize(
    ("format_holds", "result_holds", "value"), [(1.0, 1.0, 1.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 0.0)]
)
def test_hard_format_result_truth_table(format_holds, result_holds, value):
    reward = HardFormatResult(format=constant(format_holds), result=constant(result_holds))
    assert reward(posed("sad"), answered("sad")) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("<think>Tears.</think><answer>sad</answer>", 1.0),
        ("<think>Tears.</think><answer>angry</answer>", 0.0),
        ("<answer>sad</answer>", 0.0),
        ("angry", 0.0),
    ],
)
def test_hard_format_result_of_real_rewards(text, value):
    reward = HardFormatResult(format=ThinkAnswerFormat(), result=LabelAnswer(labels=LABELS))
    assert reward(posed("sad"), completion(text)) == value


def test_hard_format_result_needs_full_credit_and_both_to_apply():
    assert HardFormatResult(format=constant(1.0), result=constant(0.5))(posed("sad"), answered("sad")) == 0.0
    for pair in ((None, 1.0), (1.0, None), (None, 0.0)):
        assert HardFormatResult(format=constant(pair[0]), result=constant(pair[1]))(posed("a"), answered("a")) is None


def test_hard_format_result_hides_neither_a_broken_solution_nor_nan():
    """Also where the format is broken: a zero would be a silent one."""
    reward = HardFormatResult(format=ThinkAnswerFormat(), result=LabelAnswer(labels=LABELS))
    with pytest.raises(DataError, match="clip-7"):
        reward(posed("calm"), completion("no format"))
    with pytest.raises(RewardError, match="nan, not a finite number"):
        HardFormatResult(format=constant(math.nan), result=constant(1.0))(posed("sad"), answered("sad"))


@pytest.mark.parametrize(
    ("part", "solution"), [(MathAnswer(), "seven"), (LabelAnswer(labels=LABELS), "calm"), (ChoiceAnswer(), "red car")]
)
@pytest.mark.parametrize("answer", ["seven", "calm", "red car"])
def test_a_solution_that_cannot_be_read_is_counted_under_the_rewards_name_and_pays_nothing(part, solution, answer):
    """MM-EUREKA and LMM-R1 pay 1.0 there."""
    score = WeightedReward(components={"right": part}, settings=RewardSettings(weights={"right": 1.0})).score(
        posed(solution), answered(answer)
    )
    assert (score.valid, score.total, score.failed, score.components) == (False, 0.0, "right", {})
    assert score.reason.startswith("right: sample 'clip-7' has the solution")


def test_a_prefilled_tag_belongs_to_the_completion():
    """VisualThinker-R1-Zero's base-model template ends with <think>, which the model then does not write again."""
    template = PromptTemplate(PromptSettings(prefill="<think>"))
    sampled = "Lowered brows.</think><answer>sad</answer>"
    assert ThinkAnswerFormat()(posed("sad"), completion(template.complete(sampled))) == 1.0
    assert LenientFormat()(posed("sad"), completion(template.complete(sampled))) == 1.0
    assert ThinkAnswerFormat()(posed("sad"), completion(sampled)) == 0.0  # what a forgotten prefill costs
    assert ThinkAnswerFormat()(posed("sad"), completion(template.complete("<think>" + sampled))) == 0.0


def test_a_thought_may_need_a_length():
    thought = "x" * 300
    text = completion(f"<think>{thought}</think><answer>sad</answer>")
    assert ThinkAnswerFormat(min_think_characters=300)(posed("sad"), text) == 1.0
    assert ThinkAnswerFormat(min_think_characters=301)(posed("sad"), text) == 0.0


@pytest.mark.parametrize(
    "thought",
    [
        "...",
        "\u200b",
        "\u3164",
        "\u0301",
        "?!",
        "+",
        "$",
        "=",
        "\u2192",
        "\u2713",
        "\U0001f622",
        "~ \u00b0 |",
        "\u20ac",
    ],
)
def test_a_thought_says_something(thought):
    assert ThinkAnswerFormat()(posed("sad"), completion(f"<think>{thought}</think><answer>sad</answer>")) == 0.0


@pytest.mark.parametrize("answer", ["7", "\u221e", "\U0001f622", "\u60b2"])
def test_numbers_symbols_and_any_script_are_answers(answer):
    assert ThinkAnswerFormat()(posed("sad"), answered(answer)) == 1.0


def test_partial_credit_for_a_label_of_the_same_group():
    groups = {"tense": ["angry", "fear"], "low": ["sad"]}
    reward = LabelAnswer(labels=LABELS, groups=groups, partial_credit=0.25)
    values = [reward(posed("angry"), answered(answer)) for answer in ("angry", "fear", "sad", "happy", "fear, angry")]
    assert values == [1.0, 0.25, 0.0, 0.0, 0.0]
    assert reward(posed("happy"), answered("sad")) == 0.0  # happy has no group
    assert LabelAnswer(labels=LABELS, groups=groups)(posed("angry"), answered("fear")) == 0.0


def test_a_group_that_is_called_like_a_label_is_another_thing():
    reward = LabelAnswer(labels=LABELS, groups={"happy": ["sad"]}, partial_credit=0.5)
    assert reward(posed("happy"), answered("sad")) == 0.0


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"partial_credit": 0.5}, "partial_credit is 0.5 without groups"),
        ({"groups": {"a": ["sad"]}, "partial_credit": 1.0}, "partial_credit is 1.0; it must be from 0 to below 1"),
        ({"groups": {"a": ["sad"]}, "partial_credit": math.nan}, "partial_credit is nan"),
        ({"groups": {"a": ["sda"]}}, r"groups.a has 'sda', which is not one of the labels"),
        ({"groups": {"a": ["sad"], "b": ["sad"]}}, "groups.b has 'sad', which groups.a has as well"),
    ],
)
def test_wrong_groups_are_refused(settings, sentence):
    with pytest.raises(ConfigError, match=sentence):
        LabelAnswer(labels=LABELS, **settings)


@pytest.mark.parametrize(
    "answer",
    ["B", "b", " B. ", "(B)", "[B]", "B)", "B:", "**B**", "`B`", "$B$", "\uff22", r"\boxed{B}", r"$\boxed{\text{B}}$",
     r"\boxed{(B)}", "B) a red car", "(B) A dog and a cat", "B. it's red", "B: the second one", "B) I see a car",
     "The answer is B", "Option B", "B is correct.", "\u9009\u9879B", "B\u3002", "\u201cB\u201d", "B \u2705"],
)  # fmt: skip
def test_a_letter_is_read(answer):
    assert ChoiceAnswer().read(answer) == "B"
    assert ChoiceAnswer()(posed("(B)"), answered(answer)) == 1.0
    assert ChoiceAnswer()(posed("C"), answered(answer)) == 0.0


@pytest.mark.parametrize(
    "answer",
    [
        "B) or C)",
        "A or B",
        "B, C",
        "not B",
        "The answer is not B",
        "B is wrong",
        "B) is wrong",
        "B: wrong",
        "B?",
        "B \u274c",
        "B) C",
        "B" * 300,
        "",
    ],
)
def test_no_or_several_letters_are_none(answer):
    assert ChoiceAnswer().read(answer) is None


REJECTED = ("no", "nope", "Not this one", "not this", "eliminated", "ruled out", "It is ruled out", "not correct")


def test_a_remark_that_rejects_the_letter_does_not_pay_and_an_option_of_the_question_does():
    for text in REJECTED:
        listing = Message(role="user", content=f"Which is it? A) a dog\nB) {text}\nC) a cat")
        asked = replace(posed("B"), messages=(listing,))
        assert [ChoiceAnswer()(sample, answered(f"B) {text}")) for sample in (posed("B"), asked)] == [0.0, 1.0], text
        assert ChoiceAnswer()(posed(f"B) {text}"), answered("B")) == 1.0
    other = Message(role="user", content="A) no\nB) yes")
    assert ChoiceAnswer()(replace(posed("B"), messages=(other,)), answered("B) no")) == 0.0


@pytest.mark.parametrize("text", ["No.", "Eliminated", "False", "None of the above", "none of the above", "no one"])
def test_a_negative_text_of_an_option_pays_with_its_letter(text):
    assert ChoiceAnswer()(posed("B"), answered(f"B) {text}")) == 1.0


@pytest.mark.parametrize("choices", ["", "AB1", "AA", "ab", "\u0410"])
def test_choices_are_capital_letters(choices):
    with pytest.raises(ConfigError, match="choices is"):
        ChoiceAnswer(choices=choices)


def test_a_letter_beyond_the_choices_is_none():
    assert (ChoiceAnswer(choices="AB").read("C"), ChoiceAnswer(choices="ABC").read("C")) == (None, "C")


@pytest.mark.parametrize(
    ("solution", "answer", "value"),
    [
        ("happy", "happy", 1.0),
        ("happy", "joyful", 1.0),
        ("happy", "sad", 0.0),
        ("happy, sad", "glad and unhappy", 1.0),
        ("happy, sad", "glad", 2 / 3),
        ("happy", "happy, sad", 2 / 3 - 0.25),
        ("happy", "happy, glad", 1.0),
        ("happy, glad", "happy, sad", 2 / 3 - 0.25),
        ("happy", "happy, flummoxed", 2 / 3 - 0.25),
        ("happy, flummoxed", "happy", 1.0),
        ("happy", "happy, sad, angry, scared", 0.0),
        ("happy", "", 0.0),
    ],
)
def test_emotion_sets(solution, answer, value):
    assert EmotionSet()(posed(solution), answered(answer)) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize("solution", [None, "", "flummoxed"])
def test_a_solution_without_a_word_of_the_wheel_is_an_error(solution):
    with pytest.raises(RewardError, match=r"clip-7.*add its words to the wheel"):
        EmotionSet()(posed(solution), answered("happy"))


def test_an_emotion_set_takes_the_users_wheel(tmp_path):
    path = tmp_path / "wheel.yaml"
    path.write_text("ecstatic: joy\nbittersweet: [joy, sadness]\n")
    reward = EmotionSet(wheel=str(path))
    assert reward(posed("ecstatic"), answered("bittersweet")) == pytest.approx(2 / 3)
    assert reward(posed("bittersweet"), answered("ecstatic")) == pytest.approx(2 / 3)


def test_efficient_length_is_clipped_at_both_ends():
    reward = EfficientLength(budget=1000)
    assert [reward(posed("a"), long(count)) for count in (0, 900, 1000, 1050, 1100, 9000)] == pytest.approx(
        [1.0, 1.0, 0.5, 0.25, 0.0, 0.0]
    )
    text = EfficientLength(budget=1000, alpha=0.001, delta=0.95)
    assert text(posed("a"), long(1500)) == pytest.approx(0.45)


def test_soft_overlong_falls_linearly_over_the_cache():
    reward = SoftOverlong(max_tokens=20_480, cache=4096)  # DAPO's own numbers
    lengths = (0, 16_384, 18_432, 20_480, 30_000)
    assert [reward(posed("a"), long(count)) for count in lengths] == [0.0, 0.0, -0.5, -1.0, -1.0]


def test_token_length_pays_for_nonsense():
    assert TokenLength()(posed("a"), completion("la " * 2000, 2000)) == 2.0


@pytest.mark.parametrize(
    ("text", "value"),
    [("", 0.0), ("one two three", 0.0), ("a b a b a b", -3 / 5), ("a b c d", 0.0), ("A b a B", -1 / 3)],
)
def test_repetition_counts_bigrams(text, value):
    assert Repetition(n=2)(posed("a"), completion(text)) == pytest.approx(value)


def test_repetition_weighs_and_needs_no_spaces():
    assert Repetition(max_penalty=0.5)(posed("a"), completion("la " * 1000)) == pytest.approx(-0.5, abs=1e-3)
    assert Repetition()(posed("a"), completion("abc" * 3000)) < -0.9


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: EfficientLength(budget=0), "budget is 0"),
        (lambda: EfficientLength(budget=5, alpha=0), "alpha is 0"),
        (lambda: SoftOverlong(max_tokens=5, cache=0), "cache is 0"),
        (lambda: SoftOverlong(max_tokens=5, cache=6), "cache is 6; it must be above 0 and at most max_tokens 5"),
        (lambda: Repetition(n=0), "n is 0"),
        (lambda: Repetition(max_penalty=0), "max_penalty is 0"),
        (lambda: EmotionSet(extra_penalty=2), "extra_penalty is 2"),
    ],
)
def test_numbers_out_of_range_are_refused(build, sentence):
    with pytest.raises(ConfigError, match=sentence):
        build()
