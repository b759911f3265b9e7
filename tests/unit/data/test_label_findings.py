"""Labels that look like a mistake are named, and labels that only look close are left alone."""

import pytest

from lightning_mmrl.data.label_findings import label_findings


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ({"happy": 20}, "all 20 samples have the label 'happy'"),
        ({"nan": 2, "sad": 3}, "label 'nan' (2 samples) looks like a missing value"),
        ({"N/A": 1, "sad": 3}, "label 'N/A' (1 sample) looks like a missing value"),
        ({" None ": 1, "sad": 3}, "looks like a missing value"),
        ({"#N/A": 1, "sad": 3}, "looks like a missing value"),
        ({"--": 1, "sad": 3}, "looks like a missing value"),
        ({"?": 1, "sad": 3}, "looks like a missing value"),
        ({"happy": 9, "hapy": 1}, "'happy' (9 samples) and 'hapy' (1 sample) differ in one letter"),
        ({"surprise": 9, "surprised": 9}, "differ in one letter"),
        ({"neutral": 9, "nuetral": 1}, "differ in one letter"),
        ({"disgust": 9, "discust": 1}, "differ in one letter"),
        ({"Sad": 9, "sad.": 1}, "differ only in case"),
        ({"enerv\u00e9": 9, "enerve": 1}, "differ only in case, accents"),
        ({"very sad": 9, "very_sad": 1}, "differ only in case, accents, spaces or punctuation"),
        ({"sad": 9, "sad\u200b": 1}, "differ only in case"),
        ({"class 1": 9, "class1": 9}, "differ only in case, accents, spaces"),
        ({"sad": 9, "s\u0430d": 1}, "mixes Cyrillic and Latin letters"),
    ],
)
def test_a_label_that_looks_like_a_mistake_is_named(labels: dict[str, int], words: str) -> None:
    (finding,) = label_findings(labels)
    assert words in finding


@pytest.mark.parametrize(
    "labels",
    [
        {},
        {"angry": 1},
        {"happy": 3, "sad": 3, "neutral": 3, "angry": 3, "surprise": 3, "disgust": 3, "fear": 3},
        {"sad": 3, "mad": 3, "bad": 3},
        {"class 1": 3, "class 2": 3, "class 11": 3},
        {"3": 1, "-3": 1, "3.5": 1, "35": 1},
        {"C": 1, "C++": 1},
        {"C": 1, "+": 1, "<3": 1},
        {"typical": 1, "atypical": 1},
        {"\u9ad8\u5174": 2, "\u9ad8\u5927": 2},
        {"\u304b\u304d": 2, "\u304c\u304d": 2},
        {"male": 3, "female": 3},
        {str(number) + "apples": 1 for number in range(300)},
        {f"answer{chr(97 + number // 26)}{chr(97 + number % 26)}": 1 for number in range(300)},
    ],
)
def test_labels_that_differ_are_left_alone(labels: dict[str, int]) -> None:
    assert label_findings(labels) == []


def test_labels_of_punctuation_alone_are_missing_values_and_no_spellings_of_one_word() -> None:
    findings = label_findings({"[/]": 1, "?": 1, "sadness": 1})
    assert [finding.split(" looks")[0] for finding in findings] == ["label '[/]' (1 sample)", "label '?' (1 sample)"]


def test_long_labels_are_shortened() -> None:
    one_class, long = label_findings({"x" * 10_000: 2})
    assert len(one_class) < 300
    assert len(long) < 300
