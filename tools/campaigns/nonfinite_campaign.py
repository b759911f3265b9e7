"""Puts NaN or infinity into every place of a stage, and looks that none of it is kept, handed over or gone on from.

    python tools/campaigns/nonfinite_campaign.py --work runs/nonfinite

A small stage of the tiny omni model, SFT and RL (GRPO, and PPO where a critic is concerned), on one process and on two
ranks, replicated and sharded. At its third step of six a number is made not finite in one place, over two ranks on the
second one alone; then the same stage is trained again without that. In every case no state on the disk and no handoff
may hold a number that is not finite, the step is skipped by all ranks with its samples written down or the stage ends
in one sentence, and the second training goes on from the newest good state and hands over good weights. A case that has
its result below --work is not run again.
"""

import argparse
import json
import logging
import os
import sys
import time
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers")]
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import nonfinite_cases  # noqa: E402
import omni  # noqa: E402
import ranks  # noqa: E402
import torch  # noqa: E402

PLACES = ("1 process", "2 ranks, ddp", "2 ranks, fsdp2")
TIMEOUT_S = 300


def cases():
    """Kind, fault and place of every case."""
    return [
        (kind, fault, place) for place in PLACES for kind, faults in nonfinite_cases.FAULTS.items() for fault in faults
    ]


def outcome(kind, fault, place, checkpoint, work):
    """The faults after a case, for each rank."""
    if place == PLACES[0]:
        return [nonfinite_cases.strike(kind, fault, checkpoint, work / "stage")]
    case = {"name": "case", "run": "nonfinite", "kind": kind, "fault": fault, "checkpoint": str(checkpoint)}
    case |= {"folder": str(work / "stage"), "strategy": place.rpartition(" ")[2], "watchdog_s": TIMEOUT_S}
    return ranks.launch([case], work, timeout_s=TIMEOUT_S)["case"]


def result(kind, fault, place, checkpoint, work):
    """The result of a case, from an earlier call or made now."""
    name = "-".join(f"{place} {kind} {fault}".replace(",", "").replace("'", "").split())
    path = work / f"{name}.json"
    if not path.exists():
        start = time.monotonic()
        try:
            found = outcome(kind, fault, place, checkpoint, work / name)
            problems, error = [each for part in found for each in part["problems"]], found[0]["error"]
        except Exception as wrong:  # whatever a case raises is what it came to
            problems, error = [f"{type(wrong).__name__}: {wrong}"], ""
        about = {"problems": problems, "error": error, "seconds": time.monotonic() - start}
        path.write_text(json.dumps(about, indent=1))
        print(f"{name}: {'; '.join(problems) or 'as it must be'}", file=sys.stderr, flush=True)
    return json.loads(path.read_text())


def main():
    """Runs what is missing and returns the exit code: 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="stages and results")
    parser.add_argument("--places", nargs="*", choices=PLACES, default=list(PLACES), help="default: all")
    options = parser.parse_args()
    work = options.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    checkpoint = work / "omni"
    if not checkpoint.exists():
        omni.build(checkpoint)
    table = {}
    for kind, fault, place in cases():
        if place in options.places:
            table[kind, fault, place] = result(kind, fault, place, checkpoint, work)
    print("| place | stage | cases | skipped the step | ended in one sentence | wrong | seconds |")
    print("|---|---|---|---|---|---|---|")
    for place in options.places:
        for kind in nonfinite_cases.FAULTS:
            rows = [row for key, row in table.items() if key[0] == kind and key[2] == place]
            wrong = sum(bool(row["problems"]) for row in rows)
            ended = sum(bool(row["error"]) for row in rows)
            seconds = sum(row["seconds"] for row in rows)
            print(f"| {place} | {kind} | {len(rows)} | {len(rows) - ended} | {ended} | {wrong} | {seconds:.0f} |")
    return 1 if any(row["problems"] for row in table.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
