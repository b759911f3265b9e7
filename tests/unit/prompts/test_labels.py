import pickle

import pytest

from lightning_mmrl.errors import ConfigError
from lightning_mmrl.prompts.labels import DFEW7, MAFW11, RAVDESS8, LabelMatcher, emotion_synonyms

MATCHER = LabelMatcher(labels=DFEW7)


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("angry", "angry"),
        ("ANGRY", "angry"),
        (" Angry.\n", "angry"),
        ("**Angry**!", "angry"),
        ('"angry"', "angry"),
        ("\uff21\uff4e\uff47\uff52\uff59", "angry"),
        ("anger", "angry"),
        ("Happiness", "happy"),
        ("joy", "happy"),
        ("sadness", "sad"),
        ("fearful", "fear"),
        ("afraid", "fear"),
        ("scared", "fear"),
        ("surprised", "surprise"),
        ("disgusted", "disgust"),
        ("neutral", "neutral"),
        ("The answer is happy.", "happy"),
        ("answer is happy", "happy"),
        ("`happy`", "happy"),
        ("Angry \U0001f620", "angry"),
        ("\\boxed{angry}", "angry"),
    ],
)
def test_a_label_or_synonym_is_read(answer, label):
    assert MATCHER.match(answer) == label


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "   ",
        "...",
        "angry or sad",
        "angry sad",
        "angry, sad",
        "angry/sad",
        "angry\nsad",
        "angry angry",
        "happy sad neutral angry surprise disgust fear",
        "not angry",
        "un-happy",
        "unhappy",
        "angr",
        "angryy",
        "an angry face",
        "the answer is not happy",
        "is happy",
        "<answer>happy</answer>",
        "{'emotion': 'happy'}",
        "\u0430ngry",
        "an\u200bgry",
        "calm",
        "contempt",
        "happy" + "." * 60,
        "!happy",
        "happy (?)",
        "happy?",
        " " * 65 + "happy",
    ],
)
def test_anything_else_is_unparseable(answer):
    assert MATCHER.match(answer) is None


def test_the_length_cap_counts_characters():
    assert MATCHER.match("happy" + "." * 59) == "happy"
    assert LabelMatcher(labels=("happy",), synonyms={}, max_characters=4).match("happy" + "." * 51) is None


def test_the_length_cap_follows_the_longest_label():
    long = "a person who looks out of the window and waits for a letter that nobody has written"
    matcher = LabelMatcher(labels=(long, "sad"))
    assert [matcher.match(text) for text in (long, f"The answer is {long}.", long + "." * 51)] == [long, long, None]
    assert matcher.match("sad" + "." * 90) == "sad"


def test_calm_is_a_class_of_its_own():
    matcher = LabelMatcher(labels=RAVDESS8)
    assert (matcher.match("calm"), matcher.match("neutral")) == ("calm", "neutral")
    assert LabelMatcher(labels=("neutral",), synonyms={"calm": "neutral"}).match("Calm") == "neutral"


def test_mafw_keeps_anxiety_apart_from_fear():
    matcher = LabelMatcher(labels=MAFW11)
    assert (matcher.match("anxiety"), matcher.match("scared"), matcher.match("contempt")) == (
        "anxious", "fear", "contemptuous",
    )  # fmt: skip
    assert len(matcher.labels) == 11


def test_synonyms_follow_the_names_of_the_labels():
    matcher = LabelMatcher(labels=["fearful", "surprised"])
    assert (matcher.match("fear"), matcher.match("surprise")) == ("fearful", "surprised")


def test_a_word_that_fits_two_labels_is_no_synonym():
    assert emotion_synonyms(["happy", "joy", "sad"]) == {"sadness": "sad"}


def test_given_synonyms_replace_the_usual_ones():
    matcher = LabelMatcher(labels=("angry",), synonyms={"Rage ": "angry"})
    assert (matcher.match("rage"), matcher.match("anger")) == ("angry", None)


@pytest.mark.parametrize(
    ("labels", "synonyms", "sentence"),
    [
        ((), {}, "labels is empty"),
        (("angry", "Angry."), {}, "'Angry.'"),
        (("angry", "!"), {}, "no letter, digit or symbol"),
        (("angry",), {"mad": "crazy"}, "synonyms.mad is 'crazy'"),
        (("angry", "sad"), {"SAD": "angry"}, "'SAD'"),
    ],
)
def test_ambiguous_tables_are_refused(labels, synonyms, sentence):
    with pytest.raises(ConfigError, match=sentence):
        LabelMatcher(labels=labels, synonyms=synonyms)


def test_a_matcher_survives_pickling():
    assert pickle.loads(pickle.dumps(MATCHER)).match("anger") == "angry"


@pytest.mark.timeout(20)
def test_a_long_answer_is_cheap():
    assert MATCHER.match("\ufdfa" * 1_000_000) is None
