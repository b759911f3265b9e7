"""Fills disks and makes them read-only at all places where the product writes, and continues with the same commands.

    python tools/campaigns/disk_campaign.py --work runs/disk                  every place, full and read-only
    python tools/campaigns/disk_campaign.py --work runs/disk --only state     the places whose name has that word

Every disk is a tmpfs of its own, mounted in a namespace of the tool (Linux; root, or a system that allows user
namespaces). A small curriculum, SFT and GRPO on the tiny model with a state after each step, is trained until the
product is at a place; then that disk has no space left, or is read-only, until the command ends. The command may end as
if nothing had been or in one sentence with exit code 2, never in a traceback, and no state and no handoff that was
whole may be damaged. Then the disk is as before, and the same command must come to the metrics and weights of the run
that was left alone, bit for bit, with nothing half-written left over. Results of cases are kept below --work.
"""

import argparse
import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers")]
os.environ.update({"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"})

import disk_cases  # noqa: E402
from disk_cases import DISK, PLACES, Place, Trap  # noqa: E402

VOLUMES = ("out", "data", "cache", "features", "models", "track", "tmp")
SIZE = "size=256m"
_READ_ONLY, _REMOUNT, _BIND, _DETACH = 1, 32, 4096, 2
_INSIDE = "MMRL_DISK_CAMPAIGN_INSIDE"


def main() -> int:
    """Runs what is missing and returns the exit code: 1 if anything went wrong."""
    options = _options()
    if not os.environ.get(_INSIDE):
        namespace = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-rm"]
        return subprocess.run(
            [*namespace, sys.executable, __file__, *sys.argv[1:]], env={**os.environ, _INSIDE: "1"}, check=False
        ).returncode
    work = options.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    chosen = [name for name in PLACES if not options.only or any(word in name for word in options.only)]
    cases = [(name, how) for name in chosen for how in DISK]
    missing = [case for case in cases if not _path(work, *case).exists()]
    if missing:
        _run_missing(work, missing)
    rows = [json.loads(_path(work, *case).read_text()) for case in cases]
    print("| place | disk | exit code | said | wrong |")
    print("|---|---|---|---|---|")
    for row in rows:
        print(f"| {row['place']} | {row['disk']} | {row['code']} | {row['said']} | {'; '.join(row['wrong']) or '-'} |")
    wrong = sum(bool(row["wrong"]) for row in rows)
    tracebacks = sum("traceback" in " ".join(row["wrong"]) for row in rows)
    went_on = sum(row["code"] == 0 for row in rows)
    print(
        f"{len(rows) - wrong} of {len(rows)} cases as they must be; {went_on} went on, "
        f"{len(rows) - went_on} ended early, {tracebacks} in a traceback; {sum(row['seconds'] for row in rows):.0f} s"
    )
    return 1 if wrong else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/disk"), help="what is made once, logs and results")
    parser.add_argument("--only", nargs="*", help="places whose name has one of these words in it")
    return parser.parse_args()


def _path(work: Path, name: str, how: str) -> Path:
    return work / (re.sub("[^a-z]+", "-", f"{name} {how}".lower()) + ".json")


def _run_missing(work: Path, missing: Sequence[tuple[str, str]]) -> None:
    disks = work / "disks"
    disks.mkdir(exist_ok=True)
    _mount("tmpfs", disks, "tmpfs", 0, SIZE)
    for volume in VOLUMES:
        (disks / volume).mkdir()
        _mount("tmpfs", disks / volume, "tmpfs", 0, SIZE)
    os.environ["TMPDIR"] = str(disks / "tmp")
    reference = _reference(work, disks)
    for name, how in missing:
        row = _case(name, how, work, disks, reference)
        _path(work, name, how).write_text(json.dumps(row, indent=1))
        print(f"{name}, {how}: exit code {row['code']}; {'; '.join(row['wrong']) or 'as it must be'}", file=sys.stderr)


def _reference(work: Path, disks: Path) -> dict[str, object]:
    """The outcome of the run that was left alone, which makes everything that the cases share."""
    from lightning_mmrl.cli.main import main as mmrl

    template, log = work / "template", work / "reference.log"
    _clean(disks)
    if template.exists():
        _copy(template, disks, ("out",))
    # In this process, which all others are forked from: they find loaded what a run loads.
    if mmrl(disk_cases.commands(disks)["train"]) != 0:
        raise SystemExit("the run that is left alone failed")
    if not template.exists():
        clip = sorted((disks / "data").rglob("cold_start/*.mp4"))[3]
        clip.write_bytes(clip.read_bytes()[:100])  # a sample that every run leaves out
        for folder in ("out", "cache"):
            _clean(disks / folder)
        if _forked(disk_cases.commands(disks)["train"], log) != 0:
            raise SystemExit(f"the run that is left alone failed; see {log}")
        partial = template.with_name("template.partial")
        shutil.rmtree(partial, ignore_errors=True)
        for volume in VOLUMES:
            shutil.copytree(disks / volume, partial / volume, symlinks=True)
        partial.rename(template)
    return disk_cases.outcome(template / "out" / "run")


def _case(name: str, how: str, work: Path, disks: Path, reference: dict[str, object]) -> dict[str, Any]:
    place, start, log = PLACES[name], time.monotonic(), _path(work, name, how).with_suffix(".log")
    log.unlink(missing_ok=True)
    _prepare(place, work / "template", disks)
    command = disk_cases.commands(disks)[place.command]
    trap, marks = Trap(), work / "sprung"
    marks.unlink(missing_ok=True)

    def strike(path: str) -> None:
        marks.write_text(path)
        _strike(place, how, Path(path), disks)

    # Mounts belong to the namespace, so they outlive the forked process.
    code = _forked(command, log, before=lambda: trap.set(place, disks, strike))
    first = log.read_text(errors="replace")
    wrong = [] if marks.exists() else ["the place was not reached"]
    wrong += _wrong_ending(place, code, first)
    struck = Path(marks.read_text()) if marks.exists() else disks
    _heal(place, how, struck, disks)
    wrong += _damaged(disks / "out" / "run")
    if how == "full" and marks.exists():
        wrong += [f"left over: {each}" for each in disk_cases.left_over(disks)]
    again = _forked(command, log)
    second = log.read_text(errors="replace")[len(first) :]
    if again != 0 and not (code == 0 and place.command in ("export", "reward-test")):
        wrong.append(f"the same command ended with {again}")
    wrong += ["a traceback when it continued"] if "Traceback" in second else []
    wrong += ["a state was passed over"] if "is passed over" in second else []
    wrong += [f"left over at the end: {each}" for each in disk_cases.left_over(disks)]
    if place.command.startswith("train") and again == 0:
        found = disk_cases.outcome(disks / "out" / "run")
        gaps = code == 0 and "lines of metrics.jsonl are missing" in first  # and nothing was left to continue
        wrong += [f"another {each}" for each in disk_cases.differences(found, reference, gaps=gaps)]
    said = next((line for line in reversed(first.splitlines()) if line.startswith("mmrl ")), "").strip()
    about = {"place": name, "disk": how, "code": code, "said": said, "wrong": wrong}
    return {**about, "seconds": time.monotonic() - start}


def _prepare(place: Place, template: Path, disks: Path) -> None:
    _clean(disks)
    empty = {"train decoding": ("out", "cache"), "train building": ("out", "models")}.get(place.command, ("out",))
    _copy(template, disks, empty)
    if not place.command.startswith("train"):
        shutil.copytree(template / "out" / "run", disks / "finished")
    if place.command == "data from-csv":
        clips = sorted((disks / "data").rglob("*.mp4"))[8:14]
        rows = [f"{clip.relative_to(disks)},{('happy', 'sad')[i % 2]}\n" for i, clip in enumerate(clips)]
        (disks / "clips.csv").write_text("path,label\n" + "".join(rows))
    if place.volume == "rollouts":
        folder = disks / disk_cases.RL / "rollouts"
        folder.mkdir(parents=True)
        _mount("tmpfs", folder, "tmpfs", 0, SIZE)


def _copy(template: Path, disks: Path, without: Sequence[str]) -> None:
    for volume in VOLUMES:
        if volume not in (*without, "tmp", "features"):
            shutil.copytree(template / volume, disks / volume, dirs_exist_ok=True)


def _clean(folder: Path) -> None:
    """Empties a folder; disks that are mounted below it stay."""
    for path in folder.iterdir():
        if path.is_mount():
            _clean(path)
        elif path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _strike(place: Place, how: str, path: Path, disks: Path) -> None:
    if place.volume == "file":
        path.touch()
        _mount(Path("/dev/full") if how == "full" else path, path, None, _BIND)
        if how == "read-only":
            _mount("none", path, None, _REMOUNT | _BIND | _READ_ONLY)
        return
    volume = disks / disk_cases.RL / "rollouts" if place.volume == "rollouts" else disks / place.volume
    if how == "full":
        about = os.statvfs(volume)
        _mount("none", volume, None, _REMOUNT, f"size={(about.f_blocks - about.f_bfree) * about.f_frsize or 4096}")
    else:
        _mount(volume, volume, None, _BIND)
        _mount("none", volume, None, _REMOUNT | _BIND | _READ_ONLY)


def _heal(place: Place, how: str, struck: Path, disks: Path) -> None:
    if struck == disks:
        return
    volume = disks / disk_cases.RL / "rollouts" if place.volume == "rollouts" else disks / place.volume
    if place.volume == "file":
        _unmount(struck)
    elif how == "full":
        _mount("none", volume, None, _REMOUNT, SIZE)
    else:
        _unmount(volume)
    if place.volume == "rollouts":
        kept = volume.with_name("rollouts-kept")
        shutil.copytree(volume, kept)
        _unmount(volume)
        shutil.rmtree(volume)
        kept.rename(volume)


def _wrong_ending(place: Place, code: int, log: str) -> list[str]:
    wrong = ["traceback"] if "Traceback" in log else []
    if code not in (0, 2):
        wrong.append(f"exit code {code}")
    if code == 2 and not any(line.startswith(f"mmrl {place.command.split()[0]}") for line in log.splitlines()):
        wrong.append("no sentence")
    if place.goes_on and code != 0:
        wrong.append("it did not go on")
    return wrong


def _damaged(run: Path) -> list[str]:
    """States and handoffs that are there and not whole."""
    from lightning_mmrl.curriculum.handoff import check_handoff
    from lightning_mmrl.errors import MmrlError
    from lightning_mmrl.training.state_store import _verified

    wrong = []
    for stage in sorted(run.glob("stages/*")):
        for state in stage.glob("state/step-????????"):
            with _noting(wrong, f"state {state.name} of {stage.name}", OSError, ValueError, KeyError):
                _verified(state)
        if (stage / "handoff").exists():
            with _noting(wrong, f"handoff of {stage.name}", OSError, ValueError, MmrlError):
                check_handoff(stage / "handoff")
    return wrong


@contextmanager
def _noting(wrong: list[str], what: str, *kinds: type[BaseException]) -> Iterator[None]:
    try:
        yield
    except kinds as error:
        wrong.append(f"{what} is damaged: {error}")


def _forked(arguments: Sequence[str], log: Path, *, before: Callable[[], None] = lambda: None) -> int:
    """The exit code of a command, run in a process of its own that has all imports already."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    code = 70
    try:
        with log.open("a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        from lightning_mmrl.cli.main import main as mmrl

        before()
        code = mmrl(list(arguments))
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _mount(source: object, target: Path, kind: str | None, flags: int, data: str | None = None) -> None:
    encoded = [None if each is None else os.fsencode(str(each)) for each in (source, target, kind, data)]
    if _LIBC.mount(*encoded[:3], flags, encoded[3]) != 0:
        raise OSError(ctypes.get_errno(), f"mount {source}: {os.strerror(ctypes.get_errno())}", str(target))


def _unmount(target: Path) -> None:
    if _LIBC.umount2(os.fsencode(str(target)), _DETACH) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(target))


_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]


if __name__ == "__main__":
    sys.exit(main())
