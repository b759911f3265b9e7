"""A slice of the campaign on damaged media, and proof that it notices what goes wrong."""

from collections import Counter

import media_mutations
import mutated_media
import pytest
import torch
import words

NUMBERS = range(20)


class WindowlessEncoder(words.WordEncoder):
    """Takes sounds of any length."""

    def encode_audio(self, audio):
        return {"sound": torch.full((1, 1, 2), audio.duration_s)}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder, limits = tmp_path_factory.mktemp("mutated"), mutated_media.Guard(workers=1)
    return mutated_media.run_group(folder / "group", NUMBERS, 3, WindowlessEncoder(), limits)


def test_each_of_twenty_damaged_files_is_read_or_left_out_with_a_sentence(found):
    assert found["faults"] == []
    assert found["files"] == found["read"] + found["left_out"] == len(NUMBERS)
    assert found["good_left_out"] == 0
    assert found["read"] > 3
    assert found["left_out"] > 3


def test_a_seed_and_a_number_say_which_file_it_is():
    contents = {"mp4": bytes(range(256)) * 40, "wav": b"RIFF" + bytes(5000)}
    first = [media_mutations.mutated(contents, 3, number) for number in range(60)]
    assert first == [media_mutations.mutated(contents, 3, number) for number in range(60)]
    assert first != [media_mutations.mutated(contents, 4, number) for number in range(60)]
    assert {kind for _, each, _ in first for kind in each.split("+")} == set(media_mutations.MUTATIONS)


@pytest.mark.parametrize("size", [0, 1, 5, 300, 10_000])
def test_mutations_take_files_of_any_size(size):
    contents = {"mp4": b"x" * size, "wav": b"y" * size}
    for number in range(100):
        assert len(media_mutations.mutated(contents, 0, number)[2]) <= 4 * size + 10_000


NAMES = {"a", "b", "c"}


@pytest.mark.parametrize(
    ("used", "left_out", "delivered", "heard", "words_"),
    [
        ({"a", "b", "c"}, {"c": "no"}, {"a", "b", "c"}, {"c": "no"}, "c: decided on twice"),
        ({"a"}, {"c": "no"}, {"a"}, {"c": "no"}, "b: not decided on"),
        ({"a", "b", "d"}, {"c": "no"}, {"a", "b", "d"}, {"c": "no"}, "d: unknown"),
        ({"a", "b"}, {"c": "no"}, {"a", "b", "c"}, {"c": "no"}, "c: in a batch and not used"),
        ({"a", "b"}, {"c": "no"}, {"a"}, {"c": "no"}, "b: used and in no batch"),
        ({"a", "b"}, {"c": "no"}, {"a", "b"}, {}, "the console counts 0 samples left out, the file 1"),
    ],
)
def test_an_account_that_does_not_add_up_is_a_fault(used, left_out, delivered, heard, words_):
    monitor = mutated_media.Monitor()
    monitor.left_out, monitor.num_left_out = heard, len(heard)
    found = mutated_media.accounting_faults(NAMES, used, left_out, Counter(delivered), monitor)
    assert words_ in found
    monitor.left_out, monitor.num_left_out = {"c": "no"}, 1
    assert mutated_media.accounting_faults(NAMES, {"a", "b"}, {"c": "no"}, Counter("ab"), monitor) == []


@pytest.mark.parametrize(
    ("reason", "word"),
    [
        ("{path}: worker died (signal 11)", "a worker died or hung"),
        ("{path}: deadline of 30 s exceeded", "a worker died or hung"),
        ("it cannot be decoded", "does not name its file"),
        ("{path}: {path}: it cannot be decoded", "does not name its file"),
        ("{path}: it cannot\nbe decoded", "is no sentence"),
        ("{path}: AttributeError: 'NoneType' object has no attribute 'x'", "names an exception"),
    ],
)
def test_a_reason_that_says_nothing_clear_is_a_fault(reason, word, tmp_path):
    [wrong] = mutated_media.sentence_faults("a.mp4", reason.format(path=tmp_path / "a.mp4"), tmp_path)
    assert word in wrong
    clear = f"{tmp_path / 'a.mp4'}: video cannot be decoded ([Errno 1094995529] Invalid data found); re-encode it"
    assert mutated_media.sentence_faults("a.mp4", clear, tmp_path) == []


def test_a_sample_that_is_judged_otherwise_alone_is_a_fault():
    assert mutated_media.alone_faults("a", None, {"b": "no"}) == []
    assert mutated_media.alone_faults("b", "no", {"b": "no"}) == []
    for alone, left_out in ((None, {"a": "no"}), ("no", {}), ("no", {"a": "never"})):
        assert len(mutated_media.alone_faults("a", alone, left_out)) == 1


def test_a_decoding_that_has_no_end_or_takes_too_long_is_a_fault():
    times = [("a", None), ("b", None), ("b", 0.2), ("a", None), ("a", 0.1), ("c", None), ("c", 31.0)]
    assert mutated_media.time_faults(times, 30.0) == ["a: 1 times its decoding had no end", "c: took 31.0 s"]
    assert mutated_media.time_faults(times[1:], 30.0) == ["c: took 31.0 s"]
