"""Where configs are found: in the shipped folder, and in a user's own."""

from pathlib import Path

from lightning_mmrl.errors import ConfigError

CONFIGS = "configs"
COMPARE = "compare"
"""Folder of comparisons beside the groups: its files are no options, since `mmrl compare` alone reads them."""


def configs_dir() -> Path:
    """Returns the folder of the shipped configs: inside the package in a wheel, next to it in a checkout.

    Raises:
        ConfigError: Neither exists.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / CONFIGS, package.parent / CONFIGS):
        if (folder / "train.yaml").is_file():
            return folder
    raise ConfigError(f"no configs folder in {package} or {package.parent}; install the package again")


def groups(own: Path | None = None) -> list[str]:
    """Names of the groups that an option can be chosen from."""
    found = {folder.name for root in _roots(own) for folder in root.iterdir() if folder.is_dir()}
    return sorted(found - {COMPARE})


def options(group: str, own: Path | None = None) -> list[str]:
    """Returns the options of a group; an option in a subfolder is named `folder/name`."""
    found = {
        path.relative_to(root / group).with_suffix("").as_posix()
        for root in _roots(own)
        for path in (root / group).rglob("*.yaml")
    }
    return sorted(found)


def _roots(own: Path | None) -> list[Path]:
    return [configs_dir(), *([own] if own is not None and own.is_dir() else [])]
