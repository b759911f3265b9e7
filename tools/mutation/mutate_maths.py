"""Makes every small mistake in the formulas, one at a time, and counts those that no test notices.

    python tools/mutation/mutate_maths.py                                    all of ops/ and algorithms/
    python tools/mutation/mutate_maths.py lightning_mmrl/ops/kl.py --list    what would be changed, and nothing run

A mutant is one edit of the syntax tree: an operator or a comparison exchanged, a sign flipped, one side of a mask left
out, a constant off by one, a truth value inverted, a reduction exchanged (sum, mean, min, max, std, var), branches of
`where` or bounds of `clamp` swapped. Tests are collected and run once with the formulas as they are. Then a forked
process exchanges the code of the one function that is changed and runs the tests that call it, the fastest first. An
edit of what runs on import is written into a copy of the checkout and imported anew. The first failure kills a mutant,
and is named. Edits that change nothing anyone can see are named in `EQUIVALENT`, each with the reason. Exits with 1 if
a mutant survives. Killed ones are kept in --work by their source: the same command goes on with the others.
"""

import argparse
import gc
import importlib
import os
import shutil
import signal
import sys
import tempfile
import time
import types
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from maths_mutations import Mutant, mutants_of

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("lightning_mmrl/ops", "lightning_mmrl/algorithms")
KEPT = ("lightning_mmrl", "tests", "tools", "configs", "pyproject.toml", "README.md")
GUARDS = (
    *PACKAGES,  # their doctests
    "tests/unit/ops",
    "tests/unit/algorithms",
    "tests/properties/test_ops_gae.py",
    "tests/properties/test_algorithms_advantages.py",
    "tests/properties/test_algorithms_losses.py",
    "tests/properties/test_algorithms_selection.py",
    "tests/oracles/test_ops_numpy.py",
    "tests/oracles/test_algorithms_numpy.py",
    "tests/oracles/test_algorithms_trl.py",
    "tests/oracles/test_dft.py",
    "tests/oracles/test_ppo.py",
    "tests/oracles/test_presets.py",
)
LEAST_LIMIT_S = 20.0
"""Of the tests of one mutant; five times what they take without it, if that is more. To loop is not to be killed."""
IMPORT_LIMIT_S = 900.0
"""Of all tests, with what they import."""

EQUIVALENT: dict[tuple[str, str, str], str] = {
    ("lightning_mmrl/ops/decode_attention.py", "attend_padded", "if query.device.type != 'cpu':"): (
        "both branches are the same function; which one runs is a matter of speed, and CUDA has the second alone"
    ),
    (
        "lightning_mmrl/ops/logprobs.py",
        "token_logprobs",
        "return (chosen, -(table.exp() * table.masked_fill(table == -torch.inf, 1.0)).sum(-1))",
    ): "what is filled in is multiplied by exp(-inf), which is zero, and has no gradient: any finite number does",
    (
        "lightning_mmrl/ops/tiled_attention.py",
        "_CpuFlash.backward",
        "return run(*_upcast(grad, query, key, value, output), total, 1.0, causal, scale=scale)",
    ): "torch's CPU kernel has no dropout: forward it refuses any, and backward it does not read the number",
    ("lightning_mmrl/algorithms/schedules.py", "WarmupConstant", "warmup_steps: int = 1"): (
        "the first of one step of warm-up already has the full rate, (0 + 1) / 1, as it has without a warm-up"
    ),
}
"""(file, function or class, changed line) to why it changes nothing."""

Judged = Callable[[Mutant, str], None]


def main() -> int:
    """Runs the mutants and returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", default=list(PACKAGES), help="files or folders (default: all formulas)")
    parser.add_argument("--list", action="store_true", help="say what would be changed")
    parser.add_argument("--work", type=Path, default=Path("runs/mutants"), help="verdicts (default: runs/mutants)")
    options = parser.parse_args()
    files = [file for path in options.paths for file in _files(ROOT / path)]
    mutants = [mutant for file in files for mutant in mutants_of(file.relative_to(ROOT).as_posix(), file.read_text())]
    if options.list:
        print("\n".join(mutant.name for mutant in mutants))
        return 0
    effective = _effective(mutants)
    with tempfile.TemporaryDirectory() as folder:
        num_killed = _run(effective, Path(folder).resolve(), options.work.resolve())
    num_survivors = len(effective) - num_killed
    print(
        f"{len(mutants)} mutants: {num_killed} killed, {len(mutants) - len(effective)} without effect, "
        f"{num_survivors} survive"
    )
    return 1 if num_survivors else 0


def _files(path: Path) -> list[Path]:
    found = [path] if path.is_file() else sorted(path.rglob("*.py"))
    return [file for file in found if file.name != "__init__.py"]


def _effective(mutants: Sequence[Mutant]) -> list[Mutant]:
    """All mutants but the ones in `EQUIVALENT`; each entry there must name one mutant of its file."""
    matched = Counter(mutant.key for mutant in mutants)
    paths = {mutant.path for mutant in mutants}
    if unclear := [key for key in EQUIVALENT if key[0] in paths and matched[key] != 1]:
        raise SystemExit(f"EQUIVALENT does not name one mutant each: {unclear}")
    return [mutant for mutant in mutants if mutant.key not in EQUIVALENT]


def _run(mutants: Sequence[Mutant], folder: Path, work: Path) -> int:
    """Judges what is not known to be killed, and returns how many are."""
    work.mkdir(parents=True, exist_ok=True)
    killed = work / "killed.txt"
    known = set(killed.read_text().split()) if killed.exists() else set()
    left = [mutant for mutant in mutants if mutant.digest not in known]
    print(f"{len(mutants) - len(left)} of {len(mutants)} are known to be killed", flush=True)
    if not left:
        return len(mutants)
    out, start, verdicts = os.fdopen(os.dup(1), "w", buffering=1), time.monotonic(), []

    def judged(mutant: Mutant, verdict: str) -> None:
        verdicts.append(verdict)
        if not verdict.startswith("SURVIVES"):
            with killed.open("a") as lines:
                lines.write(f"{mutant.digest}\n")
        minutes = (time.monotonic() - start) / len(verdicts) * (len(left) - len(verdicts)) / 60
        print(f"{len(verdicts)}/{len(left)}  ETA {minutes:.0f} min  {mutant.name}  {verdict}", file=out)

    for name in KEPT:
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / name)
    _load(folder)
    _judge_on_import([mutant for mutant in left if mutant.on_import], folder, judged)
    plugin = _InMemory([mutant for mutant in left if not mutant.on_import], folder, judged)
    _pytest(GUARDS, [plugin])
    if plugin.problem:
        raise SystemExit(plugin.problem)
    return len(mutants) - sum(verdict.startswith("SURVIVES") for verdict in verdicts)


def _load(folder: Path) -> None:
    """Imports modules once for all forks of this process, but none that pytest would rewrite."""
    for name in ("lightning", "transformers"):
        importlib.import_module(name)
    import torch

    torch.set_num_threads(1)
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(folder))
    os.chdir(folder)
    os.environ["CI"] = "true"  # hypothesis draws the same examples each time


def _pytest(guards: Sequence[str], plugins: Sequence[object] = ()) -> int:
    """Quietly, with doctests."""
    import pytest

    printed, sink = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 1)
    options = ["-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", "--capture=sys", "--doctest-modules"]
    options += ["-m", "not slow", "-W", "ignore::pytest.PytestAssertRewriteWarning"]  # what is loaded already
    code = int(pytest.main([*options, *guards], plugins=plugins))
    os.dup2(printed, 1)
    return code


def _judge_on_import(mutants: Sequence[Mutant], folder: Path, judged: Judged) -> None:
    """Each in a process that has not imported the package: the file's own tests first, they are few."""
    for mutant in mutants:
        path = folder / mutant.path
        before = path.read_text()
        path.write_text(mutant.source)
        own = f"tests/unit/{Path(mutant.path).parts[1]}/test_{Path(mutant.path).stem}.py"
        rest = [mutant.path, *GUARDS[len(PACKAGES) :]]
        stages = [[mutant.path, own] if (folder / own).exists() else [mutant.path], rest]
        verdicts = (_in_a_fork(partial(_import_and_test, guards), IMPORT_LIMIT_S) for guards in stages)
        judged(mutant, next((verdict for verdict in verdicts if verdict != "SURVIVES"), "SURVIVES"))
        path.write_text(before)


def _import_and_test(guards: Sequence[str], tell: Callable[[str], object]) -> int:
    first = _FirstFailure()
    code = _pytest(guards, [first])
    tell(first.name)
    return code


class _FirstFailure:
    """A plugin of pytest that keeps the name of the first test that fails."""

    name = ""

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed and not self.name:
            self.name = report.nodeid


def _in_a_fork(run: Callable[[Callable[[str], object]], int], limit_s: float) -> str:
    """The verdict on a mutant by a process that ends with 0 unless a test fails; `run` may tell the test's name."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        code = 4
        try:
            code = run(lambda name: os.write(write, name.encode()[:4096]))
        finally:
            os._exit(code)
    os.close(write)
    until = time.monotonic() + limit_s
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            with os.fdopen(read) as told:
                test = told.read()
            code = os.waitstatus_to_exitcode(status)
            if code not in (0, 1, 2, 3):  # 2 and 3: the mutant does not even load
                raise _UnfitError(f"the tests of a mutant end with {code} {test}")
            return "SURVIVES" if code == 0 else f"killed by {test or 'what it raises on import'}"
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(read)
    return f"SURVIVES {limit_s:.0f} s without a failed test: it loops, or the machine is too busy"


class _UnfitError(Exception):
    """The tests cannot judge mutants."""


class _InMemory(_FirstFailure):
    """A plugin of pytest that, in place of one run of the tests, forks a process for each mutant."""

    def __init__(self, mutants: Sequence[Mutant], folder: Path, judged: Judged) -> None:
        self._mutants, self._judged = mutants, judged
        self._start = f"{folder}/"
        self.problem = "pytest did not come to the mutants"
        self._seconds: dict[Any, float] = {}
        self._callers: dict[tuple[str, str], list[Any]] = defaultdict(list)
        self._functions: dict[str, list[types.FunctionType]] = defaultdict(list)

    def pytest_runtestloop(self, session: Any) -> bool:
        try:
            self._judge(session.items)
            self.problem = ""
        except _UnfitError as error:  # pytest would not let it pass
            self.problem = str(error)
        return True

    def _judge(self, items: Sequence[Any]) -> None:
        for item, following in _with_next(items):
            self._profile(item, following)
        if self.name:
            raise _UnfitError(f"{self.name} fails while the sources are unchanged; mend it first")
        gc.unfreeze()  # tests/conftest.py freezes what is collected, and gc does not list that
        for function in gc.get_objects():
            # isinstance would ask some of them for a class that they only pretend to have.
            if type(function) is types.FunctionType and "<locals>" not in function.__code__.co_qualname:
                self._functions[function.__code__.co_filename.removeprefix(self._start)].append(function)
        self._check_the_exchange()
        for mutant in self._mutants:
            self._judged(mutant, self._verdict(mutant, self._callers[mutant.path, mutant.scope]))

    def _profile(self, item: Any, following: Any) -> None:
        """Runs a test, and notes its time and which functions it calls."""
        called = set()

        def note(frame: types.FrameType, event: str, value: object) -> None:  # None asks for no events within
            code = frame.f_code
            if code.co_filename.startswith(self._start):
                called.add((code.co_filename.removeprefix(self._start), code.co_qualname.split(".<locals>")[0]))

        doctest = getattr(item, "dtest", None)
        names = dict(doctest.globs) if doctest else {}
        start = time.monotonic()
        sys.settrace(note)
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        sys.settrace(None)
        if doctest:  # doctest clears them after a run
            doctest.globs.update(names)
        self._seconds[item] = time.monotonic() - start
        for function in called:
            self._callers[function].append(item)

    def _check_the_exchange(self) -> None:
        """Control: functions exchanged for themselves fail no test, and the tests may run in another order too."""
        paths = sorted({mutant.path for mutant in self._mutants})
        same = [
            Mutant(path=path, line=0, scope="", on_import=True, before="", after="", source=Path(path).read_text())
            for path in paths
        ]
        callers = {item for function, items in self._callers.items() if function[0] in paths for item in items}
        verdict = self._verdict(same, list(callers))
        if verdict != "SURVIVES":
            raise _UnfitError(f"unchanged functions: {verdict}")

    def _verdict(self, mutants: Mutant | Sequence[Mutant], items: Sequence[Any]) -> str:
        mutants = [mutants] if isinstance(mutants, Mutant) else mutants
        items = sorted(items, key=self._seconds.__getitem__)

        def run(tell: Callable[[str], object]) -> int:
            for mutant in mutants:
                self._exchange(mutant)
            for item, following in _with_next(items):
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
                if self.name:
                    tell(self.name)
                    return 1
            return 0

        return _in_a_fork(run, max(LEAST_LIMIT_S, 5 * sum(self._seconds[item] for item in items)))

    def _exchange(self, mutant: Mutant) -> None:
        """Gives the functions of a loaded file the code that they have in the mutant."""
        codes = {code.co_qualname: code for code in _codes(compile(mutant.source, mutant.path, "exec"))}
        names = set()
        for function in self._functions[mutant.path]:
            function.__code__ = codes[function.__code__.co_qualname]
            names.add(function.__code__.co_qualname)
        if not (mutant.on_import or mutant.scope in names):
            raise _UnfitError(f"{mutant.path} is loaded without {mutant.scope}, or from elsewhere")


def _with_next(items: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    return zip(items, [*items[1:], None], strict=True)


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield constant
            yield from _codes(constant)


if __name__ == "__main__":
    sys.exit(main())
