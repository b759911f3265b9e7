"""`mmrl doctor` on the machine: disks, locks, memory, cores and variables, each with its failures."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

import lightning_mmrl
from lightning_mmrl.cli import doctor_machine
from lightning_mmrl.cli.doctor_findings import ok

GIB = 2**30


def only(findings):
    [finding] = findings
    return finding


@pytest.mark.parametrize(("free_gib", "status"), [(0.5, "problem"), (10, "warning"), (30, "ok")])
def test_a_small_disk_is_found(free_gib, status, tmp_path, monkeypatch):
    stat = SimpleNamespace(f_bavail=free_gib * GIB / 4096, f_frsize=4096)
    monkeypatch.setattr(os, "statvfs", lambda _: stat)
    found = only(doctor_machine.check_disk("output_dir", tmp_path, "output_dir=/another/folder"))
    assert found.status == status
    assert f"{free_gib:.1f} GiB are free" in found.detail
    assert status == "ok" or "output_dir=/another/folder" in found.fix


def test_a_disk_is_tried_where_the_folder_will_be_and_left_clean(tmp_path):
    found = only(doctor_machine.check_disk("cache", tmp_path / "a" / "b", "data.media.cache_dir=/x"))
    assert found.detail.startswith(f"{tmp_path / 'a' / 'b'} (to be made in {tmp_path}) is writable")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_a_problem(tmp_path):
    taken = tmp_path / "file"
    taken.touch()
    for folder in (Path("/proc/mmrl"), taken):
        found = only(doctor_machine.check_disk("output_dir", folder, "output_dir=/another/folder"))
        assert (found.status, found.fix) == ("problem", "output_dir=/another/folder")
        assert "cannot be written (" in found.detail


def test_a_disk_that_loses_what_is_written_is_a_problem(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "read_bytes", lambda _: b"")
    found = only(doctor_machine.check_disk("output_dir", tmp_path, "output_dir=/x"))
    assert "holds other bytes than were written" in found.detail
    assert list(tmp_path.iterdir()) == []


class NoLock:
    """A lock that any number of holders get."""

    def __init__(self, path, timeout):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def test_locks_that_do_not_lock_are_a_problem(tmp_path, monkeypatch):
    assert only(doctor_machine.check_locks(tmp_path / "runs")).status == "ok"
    monkeypatch.setattr(doctor_machine, "FileLock", NoLock)
    found = only(doctor_machine.check_locks(tmp_path))
    assert found.status == "problem"
    assert found.fix == "put output_dir on a local disk, or track on a server: tracking.uri=http://HOST:5000"
    assert list(tmp_path.iterdir()) == []


def test_locks_where_nothing_can_be_written_are_a_problem():
    found = only(doctor_machine.check_locks(Path("/proc/mmrl")))
    assert (found.status, found.fix.startswith("put output_dir on a local disk")) == ("problem", True)
    assert found.detail.startswith("cannot be taken in /proc (")


def test_media_roots_are_looked_at(tmp_path):
    def checked(folder):
        return only(doctor_machine.check_media_root(folder))

    assert checked(tmp_path).status == "warning"
    (tmp_path / "clip.mp4").touch()
    assert checked(tmp_path).status == "ok"
    for wrong, words in ((tmp_path / "clip.mp4", "is no folder"), (tmp_path / "none", "does not exist")):
        found = checked(wrong)
        assert (found.status, found.fix) == ("problem", "data.root=DIR with the folder of your manifests")
        assert words in found.detail


@pytest.fixture
def cgroup(tmp_path, monkeypatch):
    """Files of control groups in a folder."""

    def build(membership, files):
        for name, text in files.items():
            path = tmp_path / "cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        (tmp_path / "membership").write_text(membership)
        monkeypatch.setattr(doctor_machine, "CGROUPS", tmp_path / "cgroup")
        monkeypatch.setattr(doctor_machine, "MEMBERSHIP", tmp_path / "membership")

    (tmp_path / "meminfo").write_text("MemTotal: 33554432 kB\nMemAvailable: 16777216 kB\n")
    monkeypatch.setattr(doctor_machine, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    return build


VERSION_2 = {
    "job/cpu.max": "max 100000\n",
    "cpu.max": "250000 100000\n",
    "job/memory.max": f"{8 * GIB}\n",
    "job/memory.current": f"{7 * GIB}\n",
    "job/memory.stat": f"anon 5\ninactive_file {2 * GIB}\n",
}
VERSION_1 = {
    "cpu,cpuacct/job/cpu.cfs_quota_us": "250000\n",
    "cpu,cpuacct/job/cpu.cfs_period_us": "100000\n",
    "cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
    "cpu,cpuacct/cpu.cfs_period_us": "100000\n",
    "memory/job/memory.limit_in_bytes": f"{8 * GIB}\n",
    "memory/job/memory.usage_in_bytes": f"{7 * GIB}\n",
    "memory/job/memory.stat": f"cache 5\ntotal_inactive_file {2 * GIB}\n",
    "memory/memory.limit_in_bytes": f"{2**63 - 4096}\n",
}


@pytest.mark.parametrize(
    ("membership", "files"),
    [("0::/job\n", VERSION_2), ("4:memory:/job\n3:cpu,cpuacct:/job\n0::/\n", VERSION_1)],
)
def test_limits_of_the_control_group_count(membership, files, cgroup):
    cgroup(membership, files)
    cpu = only(doctor_machine.check_cpu())
    assert cpu.detail == "8 cores are visible, but the control group grants the time of 2.5"
    assert (cpu.status, cpu.fix) == ("warning", "trainer.num_threads=2")
    memory = only(doctor_machine.check_memory())
    assert memory.status == "warning"
    assert memory.detail == "3.0 of 8.0 GiB are free (control group)"


def test_without_limits_the_machine_counts(cgroup):
    cgroup("0::/\n", {"cpu.max": "max 100000\n", "memory.max": "max\n"})
    assert only(doctor_machine.check_cpu()) == ok("cpu", "8 cores")
    assert only(doctor_machine.check_memory()) == ok("memory", "16.0 of 32.0 GiB are free")


def test_telemetry_that_was_switched_on_is_named(monkeypatch):
    for name, value in lightning_mmrl.TELEMETRY_OFF.items():
        monkeypatch.setenv(name, value)
    assert only(doctor_machine.check_telemetry()).status == "ok"
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "false")
    found = only(doctor_machine.check_telemetry())
    assert (found.status, found.fix) == ("warning", "unset MLFLOW_DISABLE_TELEMETRY")
