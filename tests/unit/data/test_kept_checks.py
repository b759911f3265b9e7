"""Outcomes of checks that are kept: of slow ones, of pairs, and of answers written from columns."""

import json

import pytest

from lightning_mmrl.data import manifest as manifests
from lightning_mmrl.data import row_index, schema, sources
from lightning_mmrl.data.answer_columns import RowError
from lightning_mmrl.data.exchanges import turns_check
from lightning_mmrl.data.manifest import Indexing, ManifestSamples
from lightning_mmrl.data.samples import RowCheck
from lightning_mmrl.data.schema import parse_line
from lightning_mmrl.data.sources import load_source
from lightning_mmrl.data.written_targets import WrittenTargets, of_targets, with_targets
from lightning_mmrl.errors import DataError
from lightning_mmrl.prompts.template import PromptTemplate

NUM = 12
ANSWER = "<answer>{solution}</answer>"


class Counting:
    """A test that counts its calls, and refuses one id."""

    def __init__(self, bad=None):
        self.bad, self.calls = bad, 0

    def __call__(self, sample):
        self.calls += 1
        if sample.id == self.bad:
            raise DataError(f"sample {sample.id!r} is bad")


def check(bad=None, *, slow=True, **inputs):
    return RowCheck(test=Counting(bad), inputs={"check": "counting", **inputs}, slow=slow)


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Opens a source as a new process would; states of files are never too recent."""
    monkeypatch.setattr(manifests, "RACY_S", 0.0)
    rows = [
        {"id": f"s{number}", "solution": str(number), "messages": [{"role": "user", "content": f"{number} + 0 = ?"}]}
        for number in range(NUM)
    ]
    pairs = [{**each, "chosen": each["solution"], "rejected": "-1"} for each in rows]
    other = [
        {"id": each["id"], "prompt": each["messages"], "reward_model": {"ground_truth": each["solution"]}}
        for each in rows
    ]
    for name, lines in (("train", rows), ("pairs", pairs), ("verl", other)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))

    def load(name="train", *checks):
        schema._opened.clear()
        sources._read.clear()
        return load_source(
            tmp_path / f"{name}.jsonl", tmp_path, None, Indexing(folder=tmp_path / "cache"), checks
        ).samples

    load.folder = tmp_path
    return load


@pytest.mark.parametrize("name", ["train", "verl"])
def test_a_slow_check_is_made_once_for_stages_and_starts_also_of_small_sources(load, name):
    samples, first = load(name), check()
    first("m", samples[:5])
    assert first.test.calls == 5
    first("m", samples)
    assert first.test.calls == NUM
    for known in (samples, load(name)):  # another stage, and another start
        again = check()
        again("m", known)
        again("m", known[: NUM // 2])
        assert again.test.calls == 0
    other = check(judge="another")
    other("m", load(name))
    assert other.test.calls == NUM
    quick = check(slow=False, quick=True)
    quick("m", load(name))
    quick("m", load(name))
    assert quick.test.calls == 2 * NUM  # a small source is read in a moment


@pytest.mark.parametrize("name", ["train", "verl"])
def test_a_failure_is_named_each_time_and_looked_at_again(load, name):
    for calls in (8, 1):
        failing, samples = check("s7"), load(name)
        for _ in range(2):
            with pytest.raises(DataError, match=r"^m: sample 's7' is bad"):
                failing("m", samples)
        assert failing.test.calls == calls
        failing("m", samples[:7])
    mended = check()
    mended("m", load(name))
    assert mended.test.calls == NUM - 7


@pytest.mark.parametrize("name", ["train", "verl"])
@pytest.mark.parametrize("what", ["content", "code"])
def test_it_is_made_again_once_the_source_or_the_code_has_changed(load, name, what, monkeypatch):
    check()("m", load(name))
    if what == "code":
        for module in (manifests, sources):
            monkeypatch.setattr(module, "code_digest", lambda: "another version")
    else:
        path = load.folder / f"{name}.jsonl"
        path.write_text(path.read_text().replace("3 + 0", "0 + 3"))
    again = check()
    again("m", load(name))
    assert again.test.calls == NUM


@pytest.mark.parametrize("name", ["train", "pairs"])
def test_pairs_and_written_answers_are_read_line_by_line(load, name, monkeypatch):
    """A second start reads no line of them; the first reads each once."""
    monkeypatch.setattr(manifests, "KEPT_BYTES", 0)
    monkeypatch.setattr(manifests, "MOST_HELD", 0)
    lesson, target = ("pair", None) if name == "pairs" else ("turns", ANSWER)
    turns = turns_check(PromptTemplate(), supervised=True, lesson=lesson)
    for start in (1, 2):
        lines = []
        with monkeypatch.context() as patch:
            patch.setattr(schema, "parse_line", lambda *line, lines=lines: lines.append(line) or parse_line(*line))
            samples = with_targets(load(name, of_targets(turns, target)), target)
            turns("m", samples)
            assert len(lines) == (NUM if start == 1 else 0)
            assert isinstance(samples, ManifestSamples if target is None else WrittenTargets)
            assert samples[3].id == "s3"
    if target is not None:
        assert samples[3].messages[-1].content == "<answer>3</answer>"
        assert isinstance(samples[2:5], WrittenTargets)
        assert [each.id for each in samples[2:5]] == list(samples[2:5].ids()) == ["s2", "s3", "s4"]
        with pytest.raises(
            RowError, match=r"^m: sample s0: it has no 'solutoin', which .* did you mean 'solution'"
        ) as bad:
            turns("m", with_targets(load(), "{solutoin}"))
        assert bad.value.sample_id == "s0"


def test_outcomes_without_a_folder_stay_in_the_process():
    found = row_index.Outcomes("key", None, None)
    assert found.first_failure(check(), 3) is None
    found.note(check(), 2, "why")
    assert (found.first_failure(check(), 3), found.first_failure(check(), 2)) == ((2, "why"), None)
