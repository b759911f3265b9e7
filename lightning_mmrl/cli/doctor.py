"""`mmrl doctor`: checks this machine and this installation and prints the fix of each complaint."""

import argparse
import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path

from rich.text import Text

from lightning_mmrl.cli.doctor_findings import Finding, isolated
from lightning_mmrl.training.console import PlainConsole
from lightning_mmrl.types.text import printable

EXIT_PROBLEM = 1
COLORS = {"ok": "green", "warning": "yellow", "problem": "red"}

EXAMPLES = """\
Each line is ok, a warning (works, but not for everything) or a problem. The line below a complaint has the fix: a
command, or a key of `mmrl train`. Checks that may hang run in a process with a deadline. No file stays on the disk.
The exit code is 0 without a problem, 1 with one.

examples:
  mmrl doctor
  mmrl doctor --output-dir /scratch/runs --media-root /data/clips
  mmrl doctor --tracking-uri http://127.0.0.1:5000
  mmrl doctor --json | jq '.findings[] | select(.status != "ok")'
"""


def run(arguments: Sequence[str]) -> int:
    """Runs the command and returns its exit code."""
    options = _parser().parse_args(arguments)
    uri = options.tracking_uri or f"sqlite:///{options.output_dir / 'mlflow.db'}"
    findings: list[Finding] = []
    with ThreadPoolExecutor(max_workers=max(2, len(os.sched_getaffinity(0)))) as threads:
        checks = plan_checks(options.output_dir, options.media_root, uri)
        running = [threads.submit(isolated, name, check) for name, check in checks.items()]
        for future in running:
            found = future.result()
            findings += found
            for finding in found if not options.json else ():
                console = PlainConsole()
                status = (f"{finding.status:<9}", COLORS[finding.status])
                console.print(Text.assemble(status, f"{finding.name:<14}{printable(finding.detail)}"), soft_wrap=True)
                if finding.fix is not None:
                    console.print(f"{'':<9}fix: {finding.fix}", soft_wrap=True)
    counts = {status: sum(each.status == status for each in findings) for status in COLORS}
    if options.json:
        print(json.dumps({"counts": counts, "findings": [asdict(each) for each in findings]}, indent=2))
    else:
        print(f"{counts['ok']} ok, {counts['warning']} warnings, {counts['problem']} problems")
    return EXIT_PROBLEM if counts["problem"] else 0


def plan_checks(output_dir: Path, media_root: Path | None, uri: str) -> Mapping[str, Callable[[], Sequence[Finding]]]:
    """The checks by name, in the order of the report."""
    # Imported here, since `--help` needs none of these modules.
    from huggingface_hub import constants

    from lightning_mmrl.cli import doctor_machine as machine
    from lightning_mmrl.cli import doctor_packages as packages
    from lightning_mmrl.cli import doctor_probes as probes

    hub = Path(constants.HF_HUB_CACHE)
    checks: dict[str, Callable[[], Sequence[Finding]]] = {
        "python": packages.check_python,
        "installation": packages.check_installation,
        "packages": packages.check_packages,
        "torch": probes.check_torch,
        "vllm": packages.check_vllm,
        "math-verify": probes.check_math_verify,
        "decoders": probes.check_decoders,
        "cpu": machine.check_cpu,
        "memory": machine.check_memory,
        "output_dir": partial(machine.check_disk, "output_dir", output_dir, "output_dir=/another/folder"),
        "cache": partial(machine.check_disk, "cache", output_dir / "cache", "data.media.cache_dir=/another/folder"),
        "hub cache": partial(machine.check_disk, "hub cache", hub, "export HF_HOME=/another/folder"),
        "file locks": partial(machine.check_locks, output_dir),
        "tracking": partial(probes.check_tracking, uri),
        "telemetry": machine.check_telemetry,
        "hub": partial(probes.check_hub, hub, constants.HF_HUB_OFFLINE),
    }
    if media_root is not None:
        checks["media root"] = partial(machine.check_media_root, media_root)
    return checks


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mmrl doctor",
        description="Check this machine: versions, devices, decoders, disk, tracking.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--output-dir", type=Path, default=Path("runs"), metavar="DIR", help="where runs go (default: runs)"
    )
    parser.add_argument("--media-root", type=Path, metavar="DIR", help="the folder of your clips (data.root)")
    parser.add_argument(
        "--tracking-uri", metavar="URI", help="where runs are tracked (default: sqlite:///OUTPUT_DIR/mlflow.db)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    return parser
