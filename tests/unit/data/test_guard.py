"""Decode workers that something else kills or stops, in real processes: the same media are read as without."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from clips import tone, write_wav

from lightning_mmrl.data.media import guard
from lightning_mmrl.data.media.examine import Guard
from lightning_mmrl.data.media.guard import DecodeTask, GuardedDecoder
from lightning_mmrl.errors import MediaError
from lightning_mmrl.settings.data import MediaSettings
from lightning_mmrl.types.records import MediaRef
from lightning_mmrl.workers.pool import CallResult, WorkerError
from lightning_mmrl.workers.serving import OVERTIME

HERE = str(Path(__file__).parent)
BROKEN = 5


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """Twelve spans of a sound, three of which begin at a whole second, and a file that no attempt can read."""
    folder = tmp_path_factory.mktemp("sounds")
    write_wav(folder / "tone.wav", tone(440, 4.0, 8000), 8000)
    (folder / "broken.wav").write_bytes(b"RIFF but not for long")
    refs = [MediaRef(kind="audio", path="tone.wav", start_s=index / 4) for index in range(12)]
    refs[BROKEN] = MediaRef(kind="audio", path="broken.wav")
    return [DecodeTask(path=folder / ref.path, ref=ref, settings=MediaSettings()) for ref in refs]


@pytest.fixture
def struck(monkeypatch, tmp_path):
    """Spawned workers get this path too."""
    monkeypatch.syspath_prepend(HERE)
    monkeypatch.setenv("STRUCK_FOLDER", str(tmp_path))
    import struck_decoder

    yield struck_decoder
    assert len(list(tmp_path.iterdir())) == 3
    del sys.modules["struck_decoder"]


@pytest.mark.parametrize(
    "name", ["SIGKILL", *(pytest.param(name, marks=pytest.mark.slow) for name in ("SIGSTOP", "SIGSEGV"))]
)
def test_preparation_reads_what_it_reads_without_kills_and_stops(tasks, struck, monkeypatch, name):
    monkeypatch.setenv("STRUCK_SIGNAL", name)
    monkeypatch.setattr(guard, "decode", struck.decode)
    found = {}
    GuardedDecoder(workers=2, deadline_s=1.5).decode_all(
        tasks, lambda index, outcome: found.setdefault(index, []).append(outcome.error)
    )
    assert sorted(found) == list(range(12))
    assert [index for index, errors in found.items() if errors != [None]] == [BROKEN]
    assert "broken.wav" in found[BROKEN][0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGKILL", "SIGSTOP"])
def test_validation_and_conversion_read_what_they_read_without(tasks, struck, monkeypatch, name):
    monkeypatch.setenv("STRUCK_SIGNAL", name)
    done = []
    examined = Guard(settings=MediaSettings(), num_workers=2, deadline_s=1.5).run(
        struck.examine_struck,
        [(task.path, task.ref) for task in tasks],
        tasks[0].path.parent,
        lambda *step: done.append(step),
    )
    assert [index for index, outcome in enumerate(examined) if outcome.error is not None] == [BROKEN]
    assert done == [(number, 12) for number in range(1, 13)]


def out_of_memory(_):
    raise MemoryError


def test_a_limit_is_named_by_its_key_and_by_its_option(tasks, monkeypatch):
    with pytest.raises(MediaError, match=r"more than data\.media\.decode_memory_mb, or --memory-mb; .*raise that"):
        guard.within_limits(tasks[0], out_of_memory)

    def overtime(_, on_done):
        on_done(0, CallResult(error=OVERTIME))

    pool = SimpleNamespace(map_patiently=overtime, close=lambda: None)
    monkeypatch.setattr(guard, "DeadlinePool", lambda *_, **__: pool)
    outcomes = {}
    GuardedDecoder().decode_all(tasks[:1], outcomes.__setitem__)
    said = outcomes[0].error
    assert said.startswith(
        f"{tasks[0].path}: decoding it takes more processor time than data.media.decode_deadline_s, "
    )
    assert "or --deadline, grants" in said


def test_workers_of_a_session_stay_and_can_be_ended_from_another_thread(tasks):
    with GuardedDecoder(workers=1).session() as session:
        outcomes = {}
        session.decode_all(tasks[:1], outcomes.__setitem__)
        first = session._pool._workers[0].process.pid
        session.decode_all(tasks[:1], outcomes.__setitem__)
        assert session._pool._workers[0].process.pid == first
        assert outcomes[0].error is None
        session.end()
        with pytest.raises(WorkerError, match="ended"):
            session.decode_all(tasks[:1], outcomes.__setitem__)


def test_without_workers_files_are_decoded_here(tasks, monkeypatch):
    monkeypatch.setattr(guard, "DeadlinePool", None)
    outcomes = {}
    GuardedDecoder(workers=0).decode_all(tasks[:1], outcomes.__setitem__)
    assert outcomes[0].error is None
