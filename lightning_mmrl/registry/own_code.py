"""Code of the user's own that a configuration may name: only what `--allow-targets` opens on the command line."""

import importlib.metadata
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path

from lightning_mmrl.errors import ConfigError
from lightning_mmrl.workers.own_packages import find_own_packages, own_packages

FLAG = "--allow-targets"
KEYS = frozenset({"allow_targets", "allow-targets"})
"""Spellings of the flag as a key of a configuration; such a key opens nothing."""
NO_KEY = f"no key and no file opens code; give {FLAG} PREFIX on the command line"
VARIABLES = ("MMRL_ALLOW_TARGETS", "ALLOW_TARGETS")
"""Spellings of the flag as an environment variable; such a variable opens nothing."""
OPENED_KINDS = frozenset(
    {
        "reward", "loss", "ratio", "advantage", "aggregation", "correction", "selection", "resampling",
        "generator", "generator setting", "data module", "backbone", "encoder", "model builder", "stage module",
        "optimizer", "schedule", "task", "tracker",
    }
)  # fmt: skip
"""Kinds that a user's own code can provide: all but engines and their parts."""
DISTRIBUTION = "lightning-mmrl"
INSTALLERS = ("pip", "setuptools", "wheel", "uv")

_opened: ContextVar[tuple[str, ...]] = ContextVar("opened", default=())


@contextmanager
def opened(prefixes: Sequence[str]) -> Iterator[None]:
    """Lets configurations name code at or below the prefixes, in this process and while the block runs.

    A user reaches this function by the flag alone: no file and no variable opens anything. A package or module that is
    found nowhere else is taken from the current folder while the block runs; nothing else in that folder is importable.

    Args:
        prefixes: Dotted names of packages or modules, and paths that end with `.py`.

    Raises:
        ConfigError: A prefix has the wrong form, belongs to Python or to a dependency, or does not exist.
    """
    for name in VARIABLES:
        if os.environ.get(name):
            raise ConfigError(f"{name} is set, and opens nothing; unset it, and give {FLAG} on the command line")
    token, before = _opened.set(_opened.get()), own_packages()
    try:
        _opened.set((*_opened.get(), *map(_checked, prefixes)))
        yield
    finally:
        _opened.reset(token)
        find_own_packages(before)


def opened_now() -> tuple[str, ...]:
    """The prefixes that are open in this process: dotted names, and absolute paths of files."""
    return _opened.get()


def is_opened(name: str) -> bool:
    """Whether a dotted name is an opened one or is below an opened one: `my` does not open `my_package`."""
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in _opened.get())


def is_function_opened(function: str) -> bool:
    """Whether `path/to/file.py:name` or `package.module:name` is in an opened file or package."""
    place = function.rpartition(":")[0]
    return str(Path(place).resolve()) in _opened.get() if place.endswith(".py") else is_opened(place)


def how_to_open(name: str) -> str:
    """Returns the end of a sentence with the flag that would open a target or a function's place; empty if none would.

    >>> how_to_open("os.system")
    ''
    """
    place = name if name.endswith(".py") else name.partition(".")[0]
    if not name.endswith(".py") and (not place.isidentifier() or _belongs_to(place) is not None):
        return ""
    return f"; if it is code of your own that you trust, add {FLAG} {place}"


def split_prefixes(values: Sequence[str]) -> list[str]:
    """Returns the prefixes of a flag that is given several times, or with commas.

    >>> split_prefixes(["mine,my_rewards.py", "other.losses"])
    ['mine', 'my_rewards.py', 'other.losses']
    """
    return [prefix.strip() for value in values for prefix in value.split(",")]


def _checked(prefix: str) -> str:
    """Checks a prefix, and returns it in the form that targets are compared with."""
    if prefix.endswith(".py"):
        if not Path(prefix).is_file():
            raise ConfigError(f"{FLAG} {prefix}: there is no such file; correct the path")
        return str(Path(prefix).resolve())
    parts = prefix.split(".")
    if not all(part.isidentifier() for part in parts):
        raise ConfigError(
            f"{FLAG} {prefix!r} is no package, module or file; name your own, such as my_package, "
            "my_package.rewards or my_rewards.py"
        )
    owner = _belongs_to(parts[0])
    if owner is not None:
        raise ConfigError(f"{FLAG} {prefix}: {parts[0]} belongs to {owner}, and only code of your own can be opened")
    if not _is_found(parts[0]):
        raise ConfigError(f"{FLAG} {prefix}: there is no package {parts[0]} here; install it, or go to its folder")
    return prefix


def _is_found(name: str) -> bool:
    """Whether a top-level package or module exists; if it is in the current folder, it alone becomes importable."""
    # Not `importlib.util.find_spec`: it also finds modules that an earlier block loaded, which workers may not find.
    if any(finder.find_spec(name, None) is not None for finder in sys.meta_path):
        return True
    here = Path.cwd()
    if not (here / f"{name}.py").is_file() and not (here / name).is_dir():
        return False
    # The folder is not put on Python's path: installed packages try to import optional ones, and would run files with
    # such names from this folder.
    find_own_packages({**own_packages(), name: str(here)})
    return True


def _belongs_to(name: str) -> str | None:
    """The owner of a top-level package; None if the package is the user's own."""
    if name in sys.stdlib_module_names:
        return "Python"
    if name == "lightning_mmrl":
        return "this package, whose registry says what a configuration may build"
    return _foreign_packages().get(name)


@cache
def _foreign_packages() -> Mapping[str, str]:
    """Maps top-level packages to their distributions, for everything that lightning_mmrl needs and for installers.

    If lightning_mmrl itself is not installed, its needs are unknown, so every installed package counts.
    """
    is_known = bool(_requirements(DISTRIBUTION))
    needed, rest = {DISTRIBUTION, *INSTALLERS}, [DISTRIBUTION]
    while rest:
        name = rest.pop()
        for requirement in _requirements(name):
            if requirement not in needed:
                needed.add(requirement)
                rest.append(requirement)
    owners = importlib.metadata.packages_distributions().items()
    return {
        package: owned[0]
        for package, distributions in owners
        if (owned := [each for each in distributions if not is_known or _normalized(each) in needed])
    }


def _requirements(name: str) -> list[str]:
    """Returns what a distribution requires, by normalized names (extras only for ours); empty if not installed."""
    try:
        lines = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    own = [line for line in lines if name == DISTRIBUTION or "extra ==" not in line]
    return [_normalized(re.split(r"[\s<>=!~;\[(]", line, maxsplit=1)[0]) for line in own]


def _normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
