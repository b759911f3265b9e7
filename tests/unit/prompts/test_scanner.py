import pytest

from lightning_mmrl.prompts.scanner import scan

GOOD = "<think>Knitted brows, fast speech.</think><answer>angry</answer>"


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        "  \n" + GOOD + "\n",
        "<think>Knitted brows,\nfast speech.</think>\n\n<answer>\nangry\n</answer>",
        "<think>a < b and <b>bold</b> </thinking></think><answer>angry</answer>",
        "<think>\u7709</think>\u3000<answer>\u6012</answer>",
    ],
)
def test_valid_texts_have_no_problem(text):
    scanned = scan(text)
    assert scanned.valid
    assert scanned.problem is None
    assert scanned.think
    assert scanned.answer


def test_contents_lose_their_outer_whitespace_only():
    scanned = scan("<think> two\n lines </think><answer>\n very  angry </answer>")
    assert (scanned.think, scanned.answer) == ("two\n lines", "very  angry")


@pytest.mark.parametrize(
    ("text", "problem", "answer"),
    [
        ("", "missing <think>", None),
        ("angry", "missing <think>", None),
        ("<answer>angry</answer>", "missing <think>", "angry"),
        ("<think>a <answer>angry</answer>", "missing </think>", "angry"),
        ("a</think><answer>angry</answer>", "missing <think>", "angry"),
        ("<think>a</think>angry", "missing <answer>", None),
        ("<think>a</think><answer>angry", "missing </answer>", None),
        ("<Think>a</Think><answer>angry</answer>", "missing <think>", "angry"),
        ("<think >a</think><answer>angry</answer>", "missing <think>", "angry"),
        ("<think><think>a</think><answer>angry</answer>", "duplicate tag <think>", "angry"),
        ("<think>a</think></think><answer>angry</answer>", "duplicate tag </think>", "angry"),
        (GOOD + "<answer>sad</answer>", "duplicate tag <answer>", None),
        (GOOD + "</answer>", "duplicate tag </answer>", None),
        (GOOD + GOOD, "duplicate tag <think>", None),
        ("<answer>angry</answer><think>a</think>", "wrong order", "angry"),
        ("</think>a<think><answer>angry</answer>", "wrong order", "angry"),
        ("<answer>a</think>b<think>c</answer>", "wrong order", None),
        ("<think>a</think></answer>angry<answer>", "wrong order", None),
        ("<think>a<answer>angry</answer></think>", "nested", None),
        ("<think>a<answer></think>angry</answer>", "nested", None),
        ("<answer><think>a</think>angry</answer>", "nested", None),
        ("It is. " + GOOD, "text outside tags", "angry"),
        (GOOD + " The end.", "text outside tags", "angry"),
        ("<think>a</think>so<answer>angry</answer>", "text outside tags", "angry"),
        ("<think> \n</think><answer>angry</answer>", "empty thought", "angry"),
        ("<think>\u200b\ufeff</think><answer>angry</answer>", "empty thought", "angry"),
        ("<think>a</think><answer></answer>", "empty answer", ""),
        ("<think>a</think><answer> \t</answer>", "empty answer", ""),
        ("<think>I would say <answer>sad</answer> first</think>", "nested", None),
        ("<think><answer>sad</answer></think><think>b</think>", "duplicate tag <think>", None),
        ("<answer>angry</answer><think>a</think></think>", "duplicate tag </think>", "angry"),
    ],
)
def test_broken_texts_name_their_problem(text, problem, answer):
    scanned = scan(text)
    assert not scanned.valid
    assert scanned.problem == problem
    assert scanned.answer == answer


@pytest.mark.parametrize(
    ("thought", "expected"),
    [("<think>a</think>", "a"), ("<think>a", None), ("</think>a<think>", None), ("<think>a</think></think>", None)],
)
def test_the_thought_is_filled_if_its_pair_is_unambiguous(thought, expected):
    assert scan(thought + "<answer>angry</answer> and more").think == expected


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "unit", ["<think>", "</answer>", "<think></think><answer>", "<think></think>", "<", "<think", " \n", "\u200b"]
)
def test_a_million_hostile_characters_are_scanned(unit):
    """The usual lazy pattern needs 18 s for 21 600 characters of the third unit, cubic in their number."""
    flood = unit * (1_000_000 // len(unit))
    assert not scan(flood).valid
    assert not scan(f"<think>a</think><answer>{flood}").valid
    inside = scan(f"<think>a{flood}</think><answer>angry</answer>")
    assert inside.valid == (not any(tag in unit for tag in ("<think>", "</think>", "<answer>", "</answer>")))
