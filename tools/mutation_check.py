"""Shows that the test suite goes red for the mistakes that RL code is known for.

Each mutant is one edit of the source, applied in a copy of the checkout; the tests that guard it must fail there. The
unchanged copy must pass first.

    python tools/mutation_check.py            all mutants
    python tools/mutation_check.py sign gather

Prints one line per mutant and exits with 1 if any survives.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
GUARDS = ("tests/unit/algorithms", "tests/oracles", "tests/unit/stages", "tests/equivalence", "tests/unit/rollout")
KEPT = ("lightning_mmrl", "tests", "configs", "pyproject.toml", "README.md")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """One edit: `old` occurs exactly once in `path` and becomes `new`."""

    path: str
    old: str
    new: str


MUTANTS = {
    "sign": Mutant(
        path="lightning_mmrl/algorithms/advantages/group_normalized.py",
        old="advantages = rewards - group_mean(rewards, valid).unsqueeze(-1)",
        new="advantages = group_mean(rewards, valid).unsqueeze(-1) - rewards",
    ),
    "mask": Mutant(
        path="lightning_mmrl/stages/optimize.py",
        old="    return experience.rollout.completion_mask[chosen] & experience",
        new="    return torch.ones_like(experience.rollout.completion_mask[chosen]) & experience",
    ),
    "gather": Mutant(
        path="lightning_mmrl/models/policy.py",
        old="width + torch.arange(tail, device=device) - 1",
        new="width + torch.arange(tail, device=device)",
    ),
    "sft-mask": Mutant(
        path="lightning_mmrl/stages/sft.py",
        old="loss = -masked_mean(output.logprobs, batch.completion_mask)",
        new="loss = -output.logprobs.mean()",
    ),
    "sibling-leak": Mutant(
        path="lightning_mmrl/models/policy.py",
        old="(owner[:, None] == owner[None, :]) & (step",
        new="(owner[:, None] >= owner[None, :]) & (step",
    ),
    "temperature": Mutant(
        path="lightning_mmrl/models/policy.py",
        old="torch.promote_types(logits.dtype, torch.float32)) / self.temperature",
        new="torch.promote_types(logits.dtype, torch.float32))",
    ),
}


def main() -> int:
    """Runs the chosen mutants and returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*MUTANTS, []], help="mutants to try (default: all)")
    names = parser.parse_args().names or list(MUTANTS)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in KEPT:
            source = ROOT / name
            (shutil.copytree if source.is_dir() else shutil.copy)(source, copy / name)
        if (first := _failing_test(copy)) is not None:
            print(f"unchanged source: {first} fails; mend it first")
            return 1
        survivors = [name for name in names if not _killed(copy, name)]
    print(f"{len(names) - len(survivors)} of {len(names)} mutants killed")
    return 1 if survivors else 0


def _killed(copy: Path, name: str) -> bool:
    mutant = MUTANTS[name]
    path = copy / mutant.path
    source = path.read_text(encoding="utf-8")
    if source.count(mutant.old) != 1:
        raise SystemExit(f"mutant {name}: {mutant.old!r} occurs {source.count(mutant.old)} times in {mutant.path}")
    path.write_text(source.replace(mutant.old, mutant.new), encoding="utf-8")
    try:
        test = _failing_test(copy)
    finally:
        path.write_text(source, encoding="utf-8")
    print(f"{name}: " + (f"killed by {test}" if test else "SURVIVED"), flush=True)
    return test is not None


def _failing_test(copy: Path) -> str | None:
    """The first test that fails, None if all pass."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "not slow", *GUARDS]
    done = subprocess.run(command, cwd=copy, env=_environment(copy), capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        raise SystemExit(f"pytest ended with {done.returncode}:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    failed = [line.split()[1] for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return (failed or ["a test"])[0] if done.returncode else None


def _environment(copy: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}


if __name__ == "__main__":
    sys.exit(main())
