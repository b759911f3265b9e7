"""The normalization and the grammar of statements that all judges share."""

import time

import pytest

from lightning_mmrl.prompts.answers import bare, doubts, readings, typeset, without_latex


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("\u22125", "-5"),
        ("\u20135", "-5"),
        ("\uff15\uff16", "56"),
        ("5\u3002", "5."),
        ("5\uff0e", "5."),
        ("\u0964", "."),
        ("\u201cB\u201d", '"B"'),
        ("\u300cB\u300d", "'B'"),
        ("\u3010B\u3011", "[B]"),
        ("it\u2019s", "it's"),
        ("**B**", "B"),
        ("***B***", "B"),
        ("__B__ and *C*", "B and C"),
        ("`B`", "B"),
        ("<b>B</b>", "B"),
        ("### B", "B"),
        ("B \u2705", "B"),
        ("\u2705 B", "B"),
        ("B \U0001f44d\U0001f3fd", "B"),
        ("m\u00b2", "m^2"),
        ("10\u207b\u00b3", "10^{-3}"),
        ("\u00bd", "1/2"),
        ("2\u00bd", "2 1/2"),
        (" a \n\t b ", "a b"),
    ],
)
def test_typography_never_matters(text, plain):
    assert typeset(text) == plain


@pytest.mark.parametrize(
    "text",
    ["2*3*4", "2**3", "a_1 b_2", "~~B~~", "B \u274c", "B \U0001f44e", "\u200bB", "B\u2060", "\u0412", "\U0001f600",
     "a < b > c", ".*B.*", "\u2764"],
)  # fmt: skip
def test_what_changes_the_meaning_stays(text):
    assert typeset(text) == text


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("$B$", "B"),
        ("$$B$$", "B"),
        (r"\(B\)", "B"),
        (r"\[B\]", "B"),
        (r"\boxed{B}", "B"),
        (r"\boxed{\text{B}}", "B"),
        (r"$\textbf{(B)}\ \frac{1}{2}$", r"(B) \frac{1}{2}"),
        (r"\boxed{5}\boxed{7}", "5 7"),
        (r"\boxed{B", r"\boxed{B"),
        (r"B}\boxed{", r"B}\boxed{"),
        (r"\neg B", r"\neg B"),
        ("$5 or $10", "$5 or $10"),
        ("$5", "$5"),
    ],
)
def test_wrappers_of_latex_go_and_formulas_stay(text, plain):
    assert without_latex(text) == plain


@pytest.mark.parametrize(
    ("answer", "rest"),
    [
        ("The answer is B.", "B"),
        ("**Answer:** B", "B"),
        ("Final answer: B", "B"),
        ("So the final answer is $\\boxed{B}$.", "B"),
        ("The emotion expressed by the speaker is B", "B"),
        ("I choose B.", "B"),
        ("It's B", "B"),
        ("Without doubt, the answer is B.", "B"),
        ("B is the correct answer.", "B"),
        ("Answer\n\nB", "B"),
        ("\u7b54\u6848\u662fB\u3002", "B"),
        ("La respuesta es B.", "B"),
        ("Die Antwort ist B.", "B"),
        ("\u041e\u0442\u0432\u0435\u0442: B", "B"),
        ('{"final_answer": "B"}', "B"),
        ("- B", "B"),
    ],
)
def test_a_bare_statement_leads_to_what_it_names(answer, rest):
    assert rest in [text for lead, text in readings(answer) if not lead]


@pytest.mark.parametrize(
    "answer",
    ["not B", "The answer is not B", "Is it B", "is B", "The wrong answer is B", "maybe B", "All but B", "B or C", "B?",
     "\u4e0d\u662fB", '{"not": "B"}', '{"answer": "B", "other": "C"}', '{"answer": true}', "[B] [C]",
     "If red, it is B"],
)  # fmt: skip
def test_a_word_outside_of_the_grammar_is_never_skipped(answer):
    assert "B" not in [text for _, text in readings(answer)]


def test_a_lead_in_comes_with_its_text():
    assert ("Looking at B", "C") in list(readings("Looking at B, the answer is C."))
    assert all(not lead for lead, _ in readings("If in doubt, the answer is C."))
    assert all(not lead for lead, _ in readings("Based on a guess, the answer is C."))


def test_a_sign_at_a_number_is_no_bullet():
    assert (bare("- B"), bare("- 3"), bare("> 3"), bare(".5")) == ("B", "- 3", "> 3", ".5")


@pytest.mark.parametrize(
    "text", ["not", "isn't", "Perhaps", "or", "x?", "\u00ac x", r"\neq 3", "\u53ef\u80fd", "~~x~~", "x \u274c"]
)
def test_doubts_are_found(text):
    assert doubts(text)


@pytest.mark.parametrize("text", ["nothing", "certain", "red", "note", "ordinary", "the other door"])
def test_other_words_are_no_doubts(text):
    assert not doubts(text)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "unit",
    ["`", "*", "_", "$", "\\boxed{", "<b>", "the ", "\u2705", "- ", '"', "*a ", "{", "~", "\u00bd", "\u00b2", "x is "],
)
def test_the_time_is_linear_in_the_text(unit):
    def seconds(length):
        text = unit * (length // len(unit))
        started = time.thread_time()
        without_latex(typeset(text))
        bare(text)
        return time.thread_time() - started

    assert seconds(50_000) < 2.0
