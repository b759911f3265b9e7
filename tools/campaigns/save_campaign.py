"""Kills a process again and again while it saves, and counts the checkpoints that cannot be read afterwards.

    python tools/campaigns/save_campaign.py                                 60 kills of each case
    python tools/campaigns/save_campaign.py --other /dev/shm --kills 10     another filesystem for temporary files

One case is this package's store of states, the other Lightning's own save of one file (`TorchCheckpointIO`), each with
the system's folder for temporary files on the same filesystem as the checkpoint and on another one. A process saves one
state after another; a SIGKILL comes at a random moment after the first save, and what is left must be readable.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

from lightning_mmrl.settings.run import StateSettings

CASES = ("states", "lightning")


def main() -> int:
    """Runs the campaign and returns the exit code: 1 if a state of ours could not be read."""
    options = _options()
    if options.save is not None:
        return _save_forever(options.save, options.work, options.megabytes)
    options.work.mkdir(parents=True, exist_ok=True)
    places = {"same filesystem": options.work / "tmp", "another filesystem": options.other}
    if options.work.stat().st_dev == options.other.stat().st_dev:
        raise SystemExit(f"{options.other} is on the filesystem of {options.work}; name another one with --other")
    print("| case | temporary files on | kills | inside a save | unreadable | nothing but an older one |")
    print("|---|---|---|---|---|---|")
    unreadable = 0
    for case in CASES:
        for where, temporary in places.items():
            result = _campaign(options, case, where, temporary)
            print(f"| {case} | {where} | {' | '.join(str(value) for value in result.values())} |", flush=True)
            unreadable += result["unreadable"] if case == "states" else 0
    return 1 if unreadable else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=60, help="of each case (default: 60)")
    parser.add_argument("--megabytes", type=int, default=200, help="size of a state (default: 200)")
    parser.add_argument("--other", type=Path, default=Path("/dev/shm"), help="another filesystem (default: /dev/shm)")
    parser.add_argument("--work", type=Path, default=Path("runs/save-campaign"), help="states and results")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    parser.add_argument("--save", choices=CASES, help=argparse.SUPPRESS)
    return parser.parse_args()


def _campaign(options: argparse.Namespace, case: str, where: str, temporary: Path) -> dict[str, int]:
    """One case; results of an earlier call are kept."""
    path = options.work / f"{case}-{where.replace(' ', '-')}-{options.kills}.json"
    if path.exists():
        return json.loads(path.read_text())
    generator = random.Random(f"{options.seed}/{case}/{where}")
    result = {"kills": 0, "inside": 0, "unreadable": 0, "older": 0}
    folder = options.work / "state"
    for number in range(options.kills):
        print(f"{case}, {where}: {number + 1} of {options.kills}", file=sys.stderr, flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.mkdir(parents=True, exist_ok=True)
        saved, inside = _kill_while_saving(options, case, folder, temporary, generator)
        found = _readable(case, folder)
        result["kills"] += 1
        result["inside"] += inside
        result["unreadable"] += found is None
        result["older"] += found is not None and found < saved
    path.write_text(json.dumps(result))
    return result


def _kill_while_saving(
    options: argparse.Namespace, case: str, folder: Path, temporary: Path, generator: random.Random
) -> tuple[int, bool]:
    """Returns the last save that had returned, and whether another one had begun."""
    arguments = ["--save", case, "--work", str(folder), "--megabytes", str(options.megabytes)]
    environment = {**os.environ, "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    start = 0.0
    for line in process.stdout:
        if line.split() == ["begin", "1"]:
            start = time.monotonic()
        if line.split() == ["end", "1"]:
            break
    # Anywhere within the next two saves, as long as the first one took.
    time.sleep(generator.uniform(0, 2 * (time.monotonic() - start)))
    process.kill()
    told = [line.split() for line in process.stdout.read().splitlines() if len(line.split()) == 2]
    process.wait()
    _remove_left_over(temporary)
    saved = max([int(number) for word, number in told if word == "end"], default=1)
    return saved, any(word == "begin" and int(number) > saved for word, number in told)


def _remove_left_over(temporary: Path) -> None:
    for path in temporary.glob("tmp*"):
        if path.is_file() and path.stat().st_uid == os.getuid():
            path.unlink()


def _save_forever(case: str, folder: Path, megabytes: int) -> int:
    """The process that is killed."""
    import torch
    from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

    from lightning_mmrl.training.state_store import StateStore

    folder.mkdir(parents=True, exist_ok=True)
    store, stock = StateStore(folder, settings=StateSettings(keep=1)), TorchCheckpointIO()
    for number in range(1, 1000):
        checkpoint = {"number": number, "weights": torch.full((megabytes * 2**18,), float(number))}
        print("begin", number, flush=True)
        if case == "states":
            torch.save(checkpoint, store.begin(number) / "checkpoint")
            store.commit(number, {})
        else:
            stock.save_checkpoint(checkpoint, folder / "last.ckpt")
        print("end", number, flush=True)
    return 0


def _readable(case: str, folder: Path) -> int | None:
    """The number of what can be loaded; None if nothing can."""
    from lightning_mmrl.errors import StageError
    from lightning_mmrl.training.state_store import StateStore

    path: Path | None = folder / "last.ckpt"
    if case == "states":
        try:
            found = StateStore(folder).latest()
        except StageError:
            return None
        path = None if found is None else found.folder / "checkpoint"
    return None if path is None else _loaded(path)


def _loaded(path: Path) -> int | None:
    import torch

    try:
        checkpoint = torch.load(path, weights_only=True)
    except (OSError, RuntimeError, EOFError):
        return None
    whole = bool((checkpoint["weights"] == checkpoint["number"]).all())
    return checkpoint["number"] if whole else None


if __name__ == "__main__":
    sys.exit(main())
