"""Reports of benchmarks: statistics, the machine they ran on, and the table for docs/benchmarks.md."""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "transformers", "lightning", "trl")
GIB = 2**30


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, quartiles and the values themselves.

    >>> spread([1.0, 2.0, 3.0])["median"]
    2.0
    """
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else 3 * list(values)
    return {"median": middle, "q1": low, "q3": high, "all": list(values)}


def ratio(slow: Sequence[Mapping[str, Any]], fast: Sequence[Mapping[str, Any]], key: str = "seconds") -> dict[str, Any]:
    """Spread of the quotients, round by round: what disturbs a round disturbs both of its sides."""
    return spread([a[key] / b[key] for a, b in zip(slow, fast, strict=True)])


def machine() -> dict[str, Any]:
    """Everything that the figures depend on; never a name that tells which machine it was."""
    cpu = "unknown"
    if (info := Path("/proc/cpuinfo")).exists():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    python = ".".join(map(str, sys.version_info[:3]))
    return {"cpu": cpu, "cores": _num_cores(), "memory_gib": round(memory, 1), "python": python}


def _num_cores() -> int:
    return len(os.sched_getaffinity(0))


def busy_cores(seconds: float = 1.0) -> float:
    """How many cores others keep busy, while this process sleeps."""

    def ticks() -> tuple[int, int]:
        values = [int(value) for value in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
        return sum(values), values[3] + values[4]

    total, idle = ticks()
    time.sleep(seconds)
    total_after, idle_after = ticks()
    elapsed = max(1, total_after - total)
    return round(_num_cores() * (1 - (idle_after - idle) / elapsed), 2)


def versions() -> dict[str, str]:
    """Versions of what is compared."""
    return {name: version(name) for name in PACKAGES}


def commit() -> str:
    """The checkout's commit, with a + if files of the package differ from it; "unknown" outside a checkout."""
    head = _git("rev-parse", "--short", "HEAD")
    if head is None:
        return "unknown"
    return head + ("+" if _git("status", "--porcelain", "--", "lightning_mmrl", "tools") else "")


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column of the table of variants: its heading, and its text for one variant's record (empty: nothing to say)."""

    heading: str
    text: Callable[[Mapping[str, Any]], str]


def counter(heading: str, name: str) -> Column:
    """A column for one counter."""
    return Column(heading=heading, text=lambda record: _grouped(record["counters"].get(name)))


def note(heading: str, name: str) -> Column:
    """A column for one note."""
    return Column(
        heading=heading, text=lambda record: f"{record['notes'][name]:.3g}" if name in record["notes"] else ""
    )


def phase_columns(names: Sequence[str]) -> list[Column]:
    """Median seconds of each phase."""
    return [Column(heading=f"{name} s", text=lambda record, name=name: _phase(record, name)) for name in names]


COMMON_COLUMNS = (
    Column(heading="seconds [IQR]", text=lambda record: seconds_text(record["seconds"])),
    # Of all threads: what a busy machine disturbs least.
    Column(heading="CPU s", text=lambda record: _digits(record["cpu_seconds"]["median"])),
    Column(heading="peak GiB", text=lambda record: f"{record['peak_bytes'] / GIB:.2f}"),
)


def markdown(report: Mapping[str, Any], columns: Sequence[Column]) -> str:
    """The table of all variants of all cases, and below it the ratios and the machine."""
    rows = [(key, name, record) for key, case in report["cases"].items() for name, record in case["variants"].items()]
    used = [column for column in columns if any(column.text(record) for _, _, record in rows)]
    lines = [["case", "variant", *(column.heading for column in used)], ["---"] * (2 + len(used))]
    lines += [[key, name, *(column.text(record) or "-" for column in used)] for key, name, record in rows]
    table = ["| " + " | ".join(line) + " |" for line in lines]
    memory = [
        f"- {key}: {names}: {value:.2f}"
        for key, case in report["cases"].items()
        for names, value in case["memory"].items()
    ]
    parity = [f"- {key}: {brief(case['parity'])}" for key, case in report["cases"].items() if "parity" in case]
    parts = [table]
    for heading, lines in (
        ("Ratios of seconds, median [IQR]:", _ratio_lines(report, "ratios")),
        ("Ratios of CPU seconds, median [IQR]:", _ratio_lines(report, "cpu_ratios")),
        ("Ratios of peak memory:", memory),
        ("Largest differences found by the parity gate:", parity),
    ):
        parts += [[heading, "", *lines]] if lines else []
    parts.append([_footer(report)])
    return "\n\n".join("\n".join(part) for part in parts)


def _ratio_lines(report: Mapping[str, Any], key: str) -> list[str]:
    return [
        f"- {case}: {names}: {value['median']:.3g} [{value['q1']:.3g}, {value['q3']:.3g}]"
        for case, record in report["cases"].items()
        for names, value in record[key].items()
    ]


def _footer(report: Mapping[str, Any]) -> str:
    facts, cases = report["machine"], report["cases"].values()
    packages = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    threads, commits = ({str(case[key]) for case in cases} for key in ("threads", "commit"))
    device = f"{facts['device']}, " if "device" in facts else ""
    busy = max((case["busy_cores_before"] for case in cases), default=0.0)
    return (
        f"{device}{facts['cpu']}, {facts['cores']} cores (up to {busy} of them busy with other work before a case), "
        f"{facts['memory_gib']} GiB, torch threads {', '.join(sorted(threads))}, Python {facts['python']}, {packages}; "
        f"commit {', '.join(sorted(commits))}."
    )


def seconds_text(values: Mapping[str, Any]) -> str:
    """Median and quartiles with three digits that count.

    >>> seconds_text({"median": 1.5, "q1": 1.0, "q3": 12.0})
    '1.50 [1.00, 12.0]'
    """
    return f"{_digits(values['median'])} [{_digits(values['q1'])}, {_digits(values['q3'])}]"


def _digits(value: float) -> str:
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def _phase(record: Mapping[str, Any], name: str) -> str:
    return _digits(record["phases"][name]) if name in record["phases"] else ""


def _grouped(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def brief(values: Mapping[str, Any]) -> str:
    """Names and values in one line."""
    return ", ".join(
        f"{name.replace('_', ' ')} {value:.2g}" if isinstance(value, float) else f"{name.replace('_', ' ')} {value}"
        for name, value in values.items()
    )
