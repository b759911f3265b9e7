"""The checks of `mmrl doctor` on the machine: cores, memory, disks, file locks, environment variables."""

import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

import lightning_mmrl
from lightning_mmrl.cli.doctor_findings import Finding, ok, problem, warning

GIB = 2**30
MEMORY_WARNING = 4 * GIB
DISK_PROBLEM = 1 * GIB
DISK_WARNING = 20 * GIB
"""Free space below which there is a warning: a handoff of a 3B model takes 10 GiB, and two may exist for a moment."""

CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
MEMINFO = Path("/proc/meminfo")


def check_cpu() -> list[Finding]:
    """Checks that the control group grants enough processor time for the cores that this process may use."""
    cores, quota = len(os.sched_getaffinity(0)), cpu_quota()
    if quota is None or quota >= cores:
        return [ok("cpu", f"{cores} cores")]
    threads = max(1, math.floor(quota))
    detail = f"{cores} cores are visible, but the control group grants the time of {quota:g}"
    return [warning("cpu", detail, f"trainer.num_threads={threads}")]


def check_memory() -> list[Finding]:
    """Checks the free memory of the machine, or of the control group if it grants less."""
    info = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in MEMINFO.read_text().splitlines()}
    limit, used = memory_limit(), memory_used()
    total = info["MemTotal"] if limit is None else min(limit, info["MemTotal"])
    free = info["MemAvailable"] if limit is None else min(info["MemAvailable"], limit - used)
    detail = f"{free / GIB:.1f} of {total / GIB:.1f} GiB are free{' (control group)' if total == limit else ''}"
    if free >= MEMORY_WARNING:
        return [ok("memory", detail)]
    return [
        warning("memory", detail, "end other programs, or set evaluation.batch_size=8 and a smaller data.batch_size")
    ]


def check_disk(name: str, folder: Path, fix: str) -> list[Finding]:
    """Checks the free space of a folder or of its nearest existing parent, and that a file can be written there."""
    place = nearest_folder(folder)
    where = str(folder) if place == folder else f"{folder} (to be made in {place})"
    try:
        stat = os.statvfs(place)
        write_and_delete(place)
    except OSError as error:
        return [problem(name, f"{where} cannot be written ({error.strerror or error})", fix)]
    free = stat.f_bavail * stat.f_frsize
    detail = f"{where} is writable, {free / GIB:.1f} GiB are free"
    if free < DISK_PROBLEM:
        return [problem(name, detail, f"free some space, or {fix}")]
    if free < DISK_WARNING:
        return [warning(name, detail, f"enough for tiny models only; free some space, or {fix}")]
    return [ok(name, detail)]


def check_locks(folder: Path) -> list[Finding]:
    """Checks that a file lock keeps out a second holder; databases that processes share rely on this."""
    fix = "put output_dir on a local disk, or track on a server: tracking.uri=http://HOST:5000"
    place = nearest_folder(folder)
    try:
        with tempfile.TemporaryDirectory(prefix=".mmrl-doctor-", dir=place) as scratch:
            path = Path(scratch) / "lock"
            with FileLock(path, timeout=1), FileLock(path, timeout=0):
                return [problem("file locks", f"two holders got the same lock in {place}", fix)]
    except Timeout:
        return [ok("file locks", f"work in {place}")]
    except (OSError, NotImplementedError) as error:
        return [problem("file locks", f"cannot be taken in {place} ({error})", fix)]


def check_media_root(folder: Path) -> list[Finding]:
    """Checks that the folder of the clips exists and can be read."""
    fix = "data.root=DIR with the folder of your manifests"
    if not folder.is_dir():
        return [problem("media root", f"{folder} {'is no folder' if folder.exists() else 'does not exist'}", fix)]
    try:
        entries = sum(1 for _ in os.scandir(folder))
    except OSError as error:
        return [problem("media root", f"{folder} cannot be read ({error.strerror or error})", f"chmod u+rx {folder}")]
    if not entries:
        return [warning("media root", f"{folder} is empty", fix)]
    return [ok("media root", f"{folder} holds {entries} entries; mmrl data validate MANIFEST decodes what it lists")]


def check_telemetry() -> list[Finding]:
    """Checks that the variables that turn telemetry off have the values that this package sets by default."""
    found = {name: os.environ.get(name) for name in lightning_mmrl.TELEMETRY_OFF}
    loud = {name: value for name, value in found.items() if value != lightning_mmrl.TELEMETRY_OFF[name]}
    if not loud:
        return [ok("telemetry", f"off: {', '.join(lightning_mmrl.TELEMETRY_OFF)}")]
    shown = ", ".join(f"{name}={value}" for name, value in loud.items())
    return [warning("telemetry", f"{shown}: a library may report its use", f"unset {' '.join(loud)}")]


def nearest_folder(folder: Path) -> Path:
    """The folder, or its nearest existing parent."""
    absolute = folder.absolute()
    return next(each for each in (absolute, *absolute.parents) if each.exists())


def write_and_delete(folder: Path) -> None:
    """Writes, syncs, renames and reads a file as for a checkpoint, then deletes it.

    Raises:
        OSError: A step fails, or the file holds other bytes than were written.
    """
    scratch = Path(tempfile.mkdtemp(prefix=".mmrl-doctor-", dir=folder))
    try:
        partial, final = scratch / "partial", scratch / "final"
        with partial.open("wb") as file:
            file.write(b"mmrl")
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, final)
        if final.read_bytes() != b"mmrl":
            raise OSError(f"{final} holds other bytes than were written")
    finally:
        shutil.rmtree(scratch)


def cpu_quota() -> float | None:
    """Processor time that the control group grants, in cores; None without a limit."""
    limits = []
    for folder in _cgroups("cpu"):
        words = _read(folder / "cpu.max").split() or [
            _read(folder / "cpu.cfs_quota_us").strip(),
            _read(folder / "cpu.cfs_period_us").strip(),
        ]
        if all(word.isdigit() for word in words):
            limits.append(int(words[0]) / int(words[1]))
    return min(limits, default=None)


def memory_limit() -> int | None:
    """Bytes that the control group may use, None without a limit."""
    names = ("memory.max", "memory.limit_in_bytes")
    found = [_read(folder / name).strip() for folder in _cgroups("memory") for name in names]
    # Version 1 of control groups writes a number near 2**63 for no limit.
    limits = [int(text) for text in found if text.isdigit() and int(text) < 2**60]
    return min(limits, default=None)


def memory_used() -> int:
    """Bytes that the control group uses, without reclaimable file pages; 0 if it reports none."""
    for folder in _cgroups("memory"):
        for name, reclaimable in (
            ("memory.current", "inactive_file"),
            ("memory.usage_in_bytes", "total_inactive_file"),
        ):
            used = _read(folder / name).strip()
            if used.isdigit():
                stat = dict(line.split() for line in _read(folder / "memory.stat").splitlines())
                return int(used) - int(stat.get(reclaimable, 0))
    return 0


def _cgroups(controller: str) -> Iterator[Path]:
    """Yields the folders of this process's control group and of its parents, for version 1 or 2 of control groups."""
    for line in _read(MEMBERSHIP).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        base = CGROUPS / controllers if controllers else CGROUPS
        inner = base / path.lstrip("/")
        yield from (each for each in (inner, *inner.parents) if each.is_relative_to(base))


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # there is no such controller, or no such file in this version
        return ""
