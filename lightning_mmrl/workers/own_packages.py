"""Packages of the user's own that Python's path does not lead to: each is found in one folder, here and in workers."""

import sys
from collections.abc import Mapping, Sequence
from importlib import invalidate_caches
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType


class _Finder:
    """Finds the packages that it is given and nothing that lies beside them."""

    def __init__(self) -> None:
        self.folders: Mapping[str, str] = {}

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Where a top-level package is, for Python's import; what lies below it is found by its own path."""
        folder = self.folders.get(name)
        return None if folder is None or path is not None else PathFinder.find_spec(name, [folder], target)


_finder = _Finder()


def own_packages() -> dict[str, str]:
    """The packages that are found so in this process, with the folder of each."""
    return dict(_finder.folders)


def find_own_packages(folders: Mapping[str, str]) -> None:
    """Makes packages importable, after all others, each from its folder; what was importable so before is no more.

    A process that this one starts knows nothing of it and calls this itself, before it unpickles what names them.
    """
    _finder.folders = dict(folders)
    if _finder not in sys.meta_path:
        sys.meta_path.append(_finder)
    invalidate_caches()
