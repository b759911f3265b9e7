"""Samples that are read when they are asked for equal those of a plain reading, and nothing old is taken for known."""

import hashlib
import json
import os
import pickle
import random
import signal
import subprocess
import sys
from collections import Counter
from itertools import islice
from multiprocessing import get_context

import mutate_manifests
import numpy as np
import pytest

from lightning_mmrl.cli import cache as cache_command
from lightning_mmrl.data import manifest as manifests
from lightning_mmrl.data import row_index, row_scan, schema
from lightning_mmrl.data.manifest import Indexing
from lightning_mmrl.data.media.cache_folder import stored_files
from lightning_mmrl.data.samples import KIND_BITS, ListedSamples, RowCheck, content_digest, first_medium
from lightning_mmrl.data.schema import Problem, load_manifest, read_manifest, scan_manifest
from lightning_mmrl.data.sources import num_rows, source_digest
from lightning_mmrl.errors import DataError

NUM = 40


def row(number, **columns):
    turns = [{"role": "user", "content": "<audio>Which?" if number % 3 == 0 else f"Which {number}?"}]
    media = {"audios": [f"sounds/{number % 2}.wav"]} if number % 3 == 0 else {}
    label = {} if number % 5 == 4 else {"solution": ("sad", "glad", "angry")[number % 7 % 3]}
    return {"id": f"s{number}", "messages": turns, **media, **label, **columns}


def write(root, rows):
    """A manifest with blank lines, a line without an id, and a last line without an end."""
    lines = [json.dumps(each, ensure_ascii=False).encode() for each in rows]
    lines[3:3] = [b"", b" \t"]
    (root / "train.jsonl").write_bytes(b"\n".join(lines))
    return root / "train.jsonl"


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "set"
    (folder / "sounds").mkdir(parents=True)
    for name in "01":
        (folder / "sounds" / f"{name}.wav").write_bytes(b"x")
    rows = [row(number) for number in range(NUM)]
    del rows[6]["id"]
    rows[9]["id"] = "\u00e4\U0001f600 s"
    write(folder, rows)
    return folder


@pytest.fixture
def small(monkeypatch):
    """Every manifest is kept, in many pieces, and no state of a file is too recent."""
    monkeypatch.setattr(manifests, "KEPT_BYTES", 0)
    monkeypatch.setattr(manifests, "RACY_S", 0.0)
    monkeypatch.setattr(manifests, "_ROWS_AT_ONCE", 7)
    monkeypatch.setattr(row_scan, "PIECE_BYTES", 300)


@pytest.fixture
def load(root, small, tmp_path, monkeypatch):
    """Opens the manifest as a new process would; `load.scans` counts pieces that were read."""
    scans = []
    scan = row_scan.Scan.__call__
    monkeypatch.setattr(row_scan.Scan, "__call__", lambda self, piece: scans.append(piece) or scan(self, piece))

    def load(*checks, **more):
        schema._opened.clear()
        scans.clear()
        indexing = Indexing(folder=tmp_path / "cache", **more)
        return load_manifest(root / "train.jsonl", root, indexing, checks)

    load.scans = scans
    return load


def plainly(path, root):
    """All samples by the reader of reports, or the first problem."""
    items = list(scan_manifest(path, root))
    problem = next((item for item in items if isinstance(item, Problem)), None)
    return [item.sample for item in items] if problem is None else str(problem)


def strictly(path, root):
    try:
        return read_manifest(path, root)
    except DataError as error:
        return str(error)


def test_samples_and_columns_are_those_of_a_plain_reading(root, load):
    loaded, plain = load(), plainly(root / "train.jsonl", root)
    samples = loaded.samples
    assert list(samples) == plain
    assert len(load.scans) > 10
    assert loaded.digest == hashlib.sha256((root / "train.jsonl").read_bytes()).hexdigest()
    for view, items in ((samples, plain), (samples[:7], plain[:7]), (samples[5:30:4], plain[5:30:4])):
        assert list(view) == items
        assert list(view.ids()) == [each.id for each in items]
        assert view.kinds().tolist() == [sum({KIND_BITS[ref.kind] for ref in each.media}) for each in items]
        found = view.solutions()
        assert [found.texts.get(code) for code in found.codes.tolist()] == [each.solution for each in items]
        counts = Counter(each.solution for each in items if each.solution is not None)
        assert list(found.counts().items()) == list(counts.items())
        assert [view.content(place) for place in range(len(view))] == [content_digest(each) for each in items]
        asked = ["nobody", *(each.id for each in reversed(plain))]
        assert list(view.rows_of(asked).items()) == [(each.id, place) for place, each in enumerate(items)]
        assert first_medium(view, {"audio"}) == first_medium(items, {"audio"})
        assert first_medium(view, {"audio"})[1] == "audio"
        assert first_medium(view, {"video"}) is None
    assert samples[-1] == plain[-1]
    with pytest.raises(IndexError):
        samples[NUM]


def test_listed_samples_have_the_same_columns(root, load):
    listed, samples = ListedSamples(plainly(root / "train.jsonl", root)), load().samples
    assert listed.kinds().tolist() == samples.kinds().tolist()
    assert listed.solutions().counts() == samples.solutions().counts()
    assert listed.rows_of(["s8", "s2", "x"]) == samples.rows_of(["s8", "s2", "x"]) == {"s2": 2, "s8": 8}
    assert [listed.content(place) for place in range(NUM)] == [samples.content(place) for place in range(NUM)]


def test_mutated_lines_are_read_or_refused_as_in_a_plain_reading(tmp_path, monkeypatch):
    """Files of one to five mutated lines, cut into pieces of 64 bytes."""
    monkeypatch.setattr(row_scan, "PIECE_BYTES", 64)
    (tmp_path / "a.mp4").write_bytes(b"x")
    lines = [line for _, line in islice(mutate_manifests.mutated_lines(7), 600) if len(line) < 5000]
    rng, outcomes, path = random.Random(0), Counter(), tmp_path / "m.jsonl"
    for _ in range(150):
        some = [*rng.choices(lines, k=rng.randint(0, 4)), *rng.choices([b"", b"{}", mutate_manifests.SENTINEL], k=2)]
        path.write_bytes(b"\n".join([b'{"query": "Q"}', *rng.sample(some, len(some))]) + rng.choice([b"", b"\n"]))
        found = strictly(path, tmp_path)
        assert found == plainly(path, tmp_path)
        outcomes[type(found)] += 1
    assert min(outcomes[list], outcomes[str]) > 10, outcomes


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({20: {"id": "s7"}}, ":23: id 's7' was used on line 10; make ids unique"),
        ({20: {"id": "s7"}, 30: {"id": "s8"}}, ":23: id 's7' was used on line 10"),
        ({20: {"id": "s7"}, 30: {"messages": []}}, ":23: id 's7' was used on line 10"),
        ({20: {"id": "s7"}, 18: {"messages": []}}, ":21: 'messages' is []"),
        ({21: {"audios": ["sounds/2.wav"]}}, ":24: media file 'sounds/2.wav' does not exist"),
        ({0: {"id": "train-000009"}}, ":9: id 'train-000009' was used on line 1"),
    ],
)
def test_the_first_fault_is_named_across_pieces(root, load, changes, says):
    rows = [row(number, **changes.get(number, {})) for number in range(NUM)]
    del rows[6]["id"]
    path = write(root, rows)
    with pytest.raises(DataError) as refused:
        load()
    assert str(refused.value) == plainly(path, root)
    assert str(refused.value).startswith(f"{path}{says}")
    assert not stored_files(root.parent / "cache")


def test_workers_find_the_same(root, load):
    plain = list(load().samples)
    for file in stored_files(root.parent / "cache"):
        file.path.unlink()
    seen = []
    loaded = load(IS_SHORT, workers=2, on_progress=lambda what, done, total: seen.append((what, done, total)))
    assert not load.scans, "the pieces were read in this process"
    assert list(loaded.samples) == plain
    assert seen[-1] == ("checking train.jsonl", NUM + 2, NUM + 2)
    with pytest.raises(DataError, match=r"^m: sample 's8' is long"):
        is_short(8)("m", loaded.samples)
    write(root, [row(number, **({"messages": 3} if number in (11, 25) else {})) for number in range(NUM)])
    with pytest.raises(DataError, match=r"train.jsonl:14: 'messages' is 3"):
        load(workers=2)


class Short:
    """A test of samples that can be sent to another process."""

    def __init__(self, most):
        self.most = most
        self.calls = 0

    def __call__(self, sample):
        self.calls += 1
        if sample.id.startswith("s") and int(sample.id[1:]) >= self.most:
            raise DataError(f"sample {sample.id!r} is long")


def is_short(most):
    return RowCheck(test=Short(most), inputs={"check": "short", "most": most})


IS_SHORT = is_short(99)


def test_a_second_start_reads_no_line(root, load):
    first = load(is_short(99))
    assert load.scans
    check = is_short(99)
    second = load(check)
    assert (load.scans, check.test.calls) == ([], 0)
    assert list(second.samples) == list(first.samples)
    assert second.digest == first.digest
    check("m", second.samples)
    assert (load.scans, check.test.calls) == ([], 0)


@pytest.mark.parametrize("what", ["content", "time", "code", "medium", "index", "facts", "cut index"])
def test_anything_that_changed_is_read_anew(root, load, what, monkeypatch, caplog):
    load(is_short(99))
    path, cached = root / "train.jsonl", {file.path.suffix: file.path for file in stored_files(root.parent / "cache")}
    if what == "content":
        path.write_bytes(path.read_bytes().replace(b"Which 1?", b"Which 2?"))
    elif what == "time":
        os.utime(path)
    elif what == "code":
        monkeypatch.setattr(manifests, "code_digest", lambda: "another version")
    elif what == "medium":
        (root / "sounds" / "1.wav").unlink()
        with pytest.raises(DataError, match=r"train.jsonl:6: media file 'sounds/1.wav' does not exist"):
            load()
        assert load.scans
        return
    elif what == "facts":
        for file in stored_files(root.parent / "cache"):
            file.path.unlink() if file.path.suffix == ".checked" else None
    elif what == "cut index":
        os.truncate(cached[".rows"], 1000)
    else:
        content = bytearray(cached[".rows"].read_bytes())
        content[len(content) // 3] ^= 255
        cached[".rows"].write_bytes(content)
    found = load()
    assert load.scans
    assert list(found.samples) == plainly(path, root)
    assert ("cannot be used" in caplog.text) == ("index" in what)
    load()
    assert not load.scans


def test_a_check_is_made_again_when_its_inputs_change(load):
    calls = []
    for most in (99, 98, 99, 98):
        check = is_short(most)
        check("m", load(check).samples)
        calls.append(check.test.calls)
    assert calls == [NUM, NUM, 0, 0]


def test_a_check_names_the_first_sample_that_fails_within_the_limit(root, load):
    for start in (is_short(12), is_short(99)):
        samples = load(start).samples
        check = is_short(12)
        check("m", samples[:12])
        for limit in (13, 30, None, 12):
            if limit == 12:
                check("m", samples[:limit])
                continue
            with pytest.raises(DataError) as refused:
                check("m", samples[:limit])
            assert str(refused.value) == "m: sample 's12' is long"
        with pytest.raises(DataError, match="'s20' is long"):
            check("m", samples[20:22])
        with pytest.raises(DataError, match="'s12' is long"):
            check("m", list(samples))


def test_only_the_samples_of_a_limit_are_checked(load):
    samples = load().samples
    check = is_short(99)
    check("m", samples[:10])
    assert check.test.calls == 10
    check("m", samples[:25])
    assert check.test.calls == 25
    again = is_short(99)
    again("m", load().samples[:25])
    assert again.test.calls == 0


def test_facts_are_those_of_the_file(root, load):
    path, kept = root / "train.jsonl", root.parent / "cache"
    before = source_digest(path), num_rows(path)
    load()
    assert (source_digest(path, kept=kept), num_rows(path, kept=kept)) == before
    path.write_bytes(path.read_bytes() + b"\n{}")
    assert source_digest(path, kept=kept) == hashlib.sha256(path.read_bytes()).hexdigest() != before[0]
    assert num_rows(path, kept=kept) == before[1] + 1


@pytest.mark.parametrize("held", [0, 20_000])
def test_a_file_that_changes_in_use_gives_an_error_and_one_that_is_replaced_does_not(root, load, held, monkeypatch):
    monkeypatch.setattr(manifests, "MOST_HELD", held)
    path, samples = root / "train.jsonl", load().samples
    plain, content = plainly(path, root), path.read_bytes()
    (root / "other").write_bytes(content.replace(b"Which", b"Whose"))
    os.replace(root / "other", path)
    assert list(samples) == plain
    schema._opened.clear()
    samples = load().samples
    assert samples[0].messages[0].content == "<audio>Whose?"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"train.jsonl was changed while it was in use; leave it as it is"):
        samples[1]
    os.truncate(path, 100)
    with pytest.raises(DataError, match="was changed while it was in use"):
        samples[30]


def test_a_file_that_changes_while_it_is_checked_gives_an_error(root, load):
    path = root / "train.jsonl"
    with pytest.raises(DataError, match="was changed while it was in use"):
        load(on_progress=lambda what, done, total: path.write_bytes(b"{}\n" * 1000))
    assert not stored_files(root.parent / "cache")


def test_a_recent_file_is_not_kept(root, load, monkeypatch):
    monkeypatch.setattr(manifests, "RACY_S", 3600.0)
    monkeypatch.setattr(manifests.time, "sleep", lambda seconds: None)
    load(is_short(99))
    assert not stored_files(root.parent / "cache")
    assert not load_manifest(root / "train.jsonl", root).samples.manifest.settled


def test_a_small_manifest_leaves_nothing_in_the_cache(root, load, monkeypatch):
    monkeypatch.setattr(manifests, "KEPT_BYTES", 2**20)
    load(is_short(99))
    assert not stored_files(root.parent / "cache")


def test_samples_can_be_sent_to_another_process(root, load):
    samples = load().samples[3:9]
    sent = pickle.dumps(samples)
    assert list(pickle.loads(sent)) == list(samples)
    os.utime(root / "train.jsonl")
    with pytest.raises(DataError, match="was changed"):
        pickle.loads(sent)


KILLED = """
import os, signal, sys
from pathlib import Path
from lightning_mmrl.data import manifest, row_scan
from lightning_mmrl.data.schema import load_manifest
manifest.KEPT_BYTES, manifest.RACY_S = 0, 0.0
replace, left = os.replace, [int(sys.argv[2])]
def replace_or_die(*paths):
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    left[0] -= 1
    replace(*paths)
os.replace = replace_or_die
root = Path(sys.argv[1])
load_manifest(root / "train.jsonl", root, manifest.Indexing(folder=root.parent / "cache"))
"""


@pytest.mark.parametrize("num_written", [0, 1, 2])
def test_a_start_that_is_killed_leaves_nothing_half_written(root, load, num_written):
    command = [sys.executable, "-c", KILLED, str(root), str(num_written)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == (0 if num_written == 2 else -signal.SIGKILL), done.stderr
    found = stored_files(root.parent / "cache")
    assert sum(file.is_entry for file in found) == num_written
    assert sum(not file.is_entry for file in found) == (num_written < 2)
    assert list(load().samples) == plainly(root / "train.jsonl", root)
    assert bool(load.scans) == (num_written < 2)
    load()
    assert not load.scans


def _ids_in_another_process(root):
    manifests.KEPT_BYTES, manifests.RACY_S = 0, 0.0
    found = load_manifest(root / "train.jsonl", root, Indexing(folder=root.parent / "cache"))
    return found.digest, list(found.samples.ids())


def test_processes_may_start_at_once(root, load):
    with get_context("spawn").Pool(3) as pool:
        found = pool.map(_ids_in_another_process, [root] * 3, chunksize=1)
    plain = plainly(root / "train.jsonl", root)
    digest = hashlib.sha256((root / "train.jsonl").read_bytes()).hexdigest()
    assert found == [(digest, [each.id for each in plain])] * 3
    assert [file.path.suffix for file in stored_files(root.parent / "cache")].count(".rows") == 1
    assert list(load().samples) == plain
    assert not load.scans


@pytest.mark.parametrize("seed", range(5))
def test_solutions_are_numbered_by_their_first_places(seed):
    rng = random.Random(seed)
    texts = [rng.choice([None, "a", "b", "c", "d"]) for _ in range(rng.randint(1, 60))]
    halves = [bytes(16) if each is None else hashlib.blake2b(each.encode(), digest_size=16).digest() for each in texts]
    # Hashes that differ in one half only are other solutions.
    halves = [half[:8] + bytes(8) if place % 3 == 0 else half for place, half in enumerate(halves)]
    numbers, firsts, expected = {bytes(16): -1}, [], []
    for place, half in enumerate(halves):
        if half not in numbers:
            numbers[half] = len(firsts)
            firsts.append(place)
        expected.append(numbers[half])
    codes, found = row_index.numbered(np.frombuffer(b"".join(halves), np.uint64).reshape(-1, 2))
    assert codes.tolist() == expected
    assert found.tolist() == firsts


def test_ids_of_one_hash_are_told_apart(root, load, monkeypatch):
    monkeypatch.setattr(row_scan, "id_hash", len)
    monkeypatch.setattr(manifests, "id_hash", len)
    plain = plainly(root / "train.jsonl", root)
    samples = load().samples
    assert list(samples.ids()) == [each.id for each in plain]
    assert samples.rows_of(["s8", "s21", "s99"]) == {"s8": 8, "s21": 21}
    write(root, [row(number, **({"id": "s30"} if number == 33 else {})) for number in range(NUM)])
    with pytest.raises(DataError, match=r"train.jsonl:36: id 's30' was used on line 33"):
        load()


def test_the_cache_command_counts_and_prunes_indexes(load, root, capsys):
    load(is_short(99))
    folder = str(root.parent / "cache")
    assert cache_command.run(["stats", folder]) == 0
    out = capsys.readouterr().out
    assert "entries      0, 0.000 GB" in out
    assert "manifests    3, 0.000 GB" in out
    assert cache_command.run(["prune", folder, "--limit-gb", "0"]) == 0
    assert not stored_files(root.parent / "cache")
    load()
    assert load.scans
