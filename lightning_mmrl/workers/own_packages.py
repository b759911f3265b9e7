"""Imports the user's own packages from given folders that are not on Python's path, here and in worker processes."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import invalidate_caches
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType


@dataclass(eq=False)
class _Finder:
    """Finds the given packages, and nothing else in their folders."""

    folders: Mapping[str, str] = field(default_factory=dict)

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Locates a top-level package for Python's import system.

        The import system then finds submodules through the package's `__path__`.
        """
        folder = self.folders.get(name)
        return None if folder is None or path is not None else PathFinder.find_spec(name, [folder], target)


_finder = _Finder()


def own_packages() -> dict[str, str]:
    """Returns the packages that this process finds in given folders, with the folder of each."""
    return dict(_finder.folders)


def find_own_packages(folders: Mapping[str, str]) -> None:
    """Makes packages importable, each from its folder. The given folders replace the folders of an earlier call.

    The packages are looked up last, so any other package of the same name wins. A child process does not inherit this:
    it must call this function before it unpickles objects of these packages.
    """
    _finder.folders = dict(folders)
    if _finder not in sys.meta_path:
        sys.meta_path.append(_finder)
    invalidate_caches()
