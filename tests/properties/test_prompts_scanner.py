"""The scanner against a slow reading of its contract, on texts made of tag pieces."""

from hypothesis import given
from hypothesis import strategies as st

from lightning_mmrl.prompts.labels import DFEW7, LabelMatcher
from lightning_mmrl.prompts.scanner import TAGS, scan

PIECES = [*TAGS, "<Think>", "<", ">", "think", "/", " ", "\n", "happy", "a b", "\u200b"]
texts = st.lists(st.sampled_from(PIECES), max_size=12).map("".join)


def tokens(text):
    """Splits a text into tags and single characters, left to right."""
    found = []
    while text:
        tag = next((tag for tag in TAGS if text.startswith(tag)), text[0])
        found.append(tag)
        text = text[len(tag) :]
    return found


def visible(characters):
    return any(character.isprintable() and not character.isspace() for character in characters)


def thinks(characters):
    return any(map(str.isalnum, characters))


def naively_valid(text):
    parts, current = [], []
    for token in tokens(text):
        if token in TAGS:
            parts += [current, token]
            current = []
        else:
            current.append(token)
    parts.append(current)
    if tuple(parts[1::2]) != TAGS:
        return False
    before, thought, between, answer, after = parts[0::2]
    return not "".join(before + between + after).strip() and thinks(thought) and visible(answer)


@given(texts)
def test_validity_agrees_with_the_naive_reading(text):
    assert scan(text).valid == naively_valid(text)


@given(st.tuples(*[st.sampled_from(["", " ", "x", "<", "\n", "\u200b"])] * 5), st.permutations(TAGS))
def test_validity_agrees_with_four_tags_in_any_order(filling, tags):
    text = filling[0] + "".join(tag + between for tag, between in zip(tags, filling[1:], strict=True))
    assert scan(text).valid == naively_valid(text)


@given(texts | st.text())
def test_a_scan_is_consistent_in_itself(text):
    scanned = scan(text)
    assert scanned.valid == (scanned.problem is None)
    if scanned.valid:
        assert scanned.think
        assert scanned.answer
    if scanned.answer is not None:
        assert text.count("<answer>") == text.count("</answer>") == 1
        assert scanned.answer in text
        assert not any(tag in scanned.answer for tag in TAGS)


@given(
    st.text(alphabet=st.characters(exclude_characters="<>")), st.text(alphabet=st.characters(exclude_characters="<>"))
)
def test_contents_come_back(thought, answer):
    scanned = scan(f"<think>{thought}</think><answer>{answer}</answer>")
    assert (scanned.think, scanned.answer) == (thought.strip(), answer.strip())


@given(st.lists(st.sampled_from(DFEW7), min_size=2, max_size=5), st.sampled_from([" ", ", ", "/", " or ", "\n", ""]))
def test_several_labels_are_never_one(labels, separator):
    assert LabelMatcher(labels=DFEW7).match(separator.join(labels)) is None


@given(st.sampled_from(DFEW7), st.text(alphabet=" .,\"'()\n\t", max_size=20), st.text(alphabet=" .,!\n", max_size=20))
def test_punctuation_around_a_label_changes_nothing(label, before, after):
    assert LabelMatcher(labels=DFEW7).match(before + label.title() + after) == label


@given(
    st.sampled_from(DFEW7),
    st.sampled_from(["!", "?", "\u00bf", "~", "\u00ac", "not ", "\u274c "]),
    st.text(" .,", max_size=9),
)
def test_a_sign_of_doubt_at_the_front_changes_everything(label, sign, before):
    assert LabelMatcher(labels=DFEW7).match(before + sign + label.title()) is None


@given(
    st.sampled_from(DFEW7), st.sampled_from(["?", "(?)", "?!", "~", " \u274c", " or not"]), st.text(" .,", max_size=9)
)
def test_a_sign_of_doubt_at_the_end_changes_everything(label, sign, after):
    assert LabelMatcher(labels=DFEW7).match(label.title() + sign + after) is None
