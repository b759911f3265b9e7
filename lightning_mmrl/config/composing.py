"""Composes configurations with Hydra, and runs nothing else of it: no callback, launcher, sweeper, logging or plugin.

Config files may come from anyone. They are read as data: nothing that they name is imported, and they cannot read
variables of the environment.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn, cast

from hydra import initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.resolvers import oc

from lightning_mmrl.config.folders import configs_dir
from lightning_mmrl.config.hydra_errors import explained
from lightning_mmrl.config.scales import scaled
from lightning_mmrl.errors import ConfigError
from lightning_mmrl.suggestions import shown

SETTABLE = "hydra.sweeper.params"
"""The only key of Hydra that a user may set: the values that `--multirun` goes through."""
FILLED_IN = (
    "hydra.runtime", "hydra.overrides", "hydra.searchpath", "hydra.job.name", "hydra.job.num", "hydra.job.id",
    "hydra.job.override_dirname", "hydra.job.config_name",
)  # fmt: skip
"""Keys that Hydra or this module fills in and overwrites."""
SEARCH = "hydra.searchpath=[]"
"""Override that keeps Hydra from searching further folders and packages that a config file names."""
PLUGINS = "hydra_plugins"

_sealed: ContextVar[bool] = ContextVar("sealed", default=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Composer:
    """Composes configs of one folder and, if there is one, of a user's own folder.

    Attributes:
        hydra: Hydra, which knows the folders.
        own: The user's folder.
        references: Versions of Hydra's own node that are allowed.
    """

    hydra: Hydra
    own: Path | None
    references: Sequence[Mapping[str, Any]]

    def compose(self, overrides: Sequence[str], config_name: str | None, mode: RunMode = RunMode.RUN) -> DictConfig:
        """Composes a tree, in which Hydra's own node is kept.

        Raises:
            ConfigError: The composition is refused, or an override or a file sets what Hydra would run.
        """
        attempt = partial(self._attempt, config_name, mode)
        overrides = scaled(overrides, self.own)
        try:
            tree = attempt(overrides)
        except PermissionError:
            raise  # no override is at fault
        except Exception as error:
            # Only Hydra runs in there, so an error of any class, not just of Hydra's own, is about the overrides.
            raise explained(error, overrides, attempt, self.own) from error
        _check_node(tree, self.references)
        return tree

    def jobs(self, overrides: Sequence[str], config_name: str, *, sweep: bool) -> list[DictConfig]:
        """Composes one tree for each job, in which Hydra's own node is kept; see `without_hydra`.

        Args:
            overrides: The user's overrides.
            config_name: Primary config.
            sweep: True to make one job for each combination of values in overrides and files.
        """
        if not sweep:
            return [self.compose(overrides, config_name)]
        whole = self.compose(overrides, config_name, RunMode.MULTIRUN)
        params = [f"{key}={value}" for key, value in (whole.hydra.sweeper.params or {}).items()]
        parser = OverridesParser.create(config_loader=self.hydra.config_loader)
        parsed = parser.parse_overrides([*params, *whole.hydra.overrides.task])
        # Hydra's own code combines the values; the sweeper, which a file could choose, is never built.
        jobs = chain.from_iterable(BasicSweeper.split_arguments(parsed, None))
        return [self.compose(job, config_name) for job in jobs]

    def _attempt(self, config_name: str | None, mode: RunMode, overrides: Sequence[str]) -> DictConfig:
        for override in OverridesParser.create().parse_overrides(list(overrides)):
            for place in (override.key_or_group, override.package or ""):
                key = place.replace("/", ".")
                if key.partition(".")[0] == "hydra" and not _is_below(key, [SETTABLE]):
                    raise _refusal(place)
        return self.hydra.compose_config(config_name, [SEARCH, *overrides], run_mode=mode)


@contextmanager
def composing(root: Path, own: Path | None = None) -> Iterator[Composer]:
    """Sets Hydra up to compose configs of a folder, and of a user's own folder.

    Raises:
        ConfigError: The user's own folder does not exist.
    """
    if own is not None and not own.is_dir():
        raise ConfigError(
            f"--config-dir {shown(own)}: is no folder; name the folder that holds your experiment/, stage/ or data/"
        )
    references = _references()
    with sealed(), _hydra(root, own) as hydra:
        yield Composer(hydra=hydra, own=own, references=references)


def without_hydra(tree: DictConfig) -> DictConfig:
    """Removes Hydra's own node from a tree; `${hydra:...}` in the tree still resolves to values of that node."""
    HydraConfig.instance().set_config(tree)
    with open_dict(tree):
        del tree["hydra"]
    return tree


@contextmanager
def sealed() -> Iterator[None]:
    """Refuses `${oc.env:NAME}` while configurations are composed and resolved.

    A file of somebody else could ask for a password, which would go to config.yaml, to MLflow and into prompts.
    """
    if _sealed.get():
        yield
        return
    token = _sealed.set(True)
    OmegaConf.register_new_resolver("oc.env", _refuse_environment, replace=True)
    try:
        yield
    finally:
        OmegaConf.register_new_resolver("oc.env", oc.env, replace=True)
        _sealed.reset(token)


def _refuse_environment(name: str, *default: Any) -> NoReturn:
    raise ConfigError(
        f"${{oc.env:{name}}} is refused, no configuration reads the environment; give the value on the command line, "
        f'KEY="${name}"'
    )


@contextmanager
def _hydra(root: Path, own: Path | None = None) -> Iterator[Hydra]:
    """Starts Hydra without plugins, which Hydra would find by name alone, even in the current folder, and run."""
    hidden = PLUGINS not in sys.modules
    if hidden:
        sys.modules[PLUGINS] = cast(Any, None)  # importing the plugins fails, as if there were none
    try:
        with initialize_config_dir(config_dir=str(root.resolve()), version_base="1.3"):
            folders = create_config_search_path(str(root.resolve()))
            if own is not None:
                folders.prepend("own", f"file://{own.resolve()}", anchor=SearchPathQuery(provider="schema"))
            GlobalHydra.instance().clear()
            yield Hydra.create_main_hydra2("app", folders)
    finally:
        if hidden:
            del sys.modules[PLUGINS]


def _check_node(tree: DictConfig, references: Sequence[Mapping[str, Any]]) -> None:
    """Refuses values in Hydra's node that neither the shipped configs nor Hydra's defaults have."""
    for key, value in _leaves(OmegaConf.to_container(tree.hydra, resolve=False), "hydra"):
        usual = any(key in reference and reference[key] == value for reference in references)
        if not usual and not _is_below(key, [SETTABLE, *FILLED_IN]):
            raise _refusal(key)


@cache
def _references() -> tuple[Mapping[str, Any], ...]:
    """The values of Hydra's node: once composed with the shipped configs, and once without configs."""
    found = []
    with _hydra(configs_dir()) as hydra:
        for name in ("train", None):
            tree = hydra.compose_config(name, [], run_mode=RunMode.RUN)
            found.append(dict(_leaves(OmegaConf.to_container(tree.hydra, resolve=False), "hydra")))
    return tuple(found)


def _refusal(key: str) -> ConfigError:
    return ConfigError(
        f"{shown(key)}: is refused; of Hydra's own keys {SETTABLE} alone can be set, since nothing of Hydra runs but "
        "the composition: output_dir and run_name say where a run goes, and --multirun makes a sweep"
    )


def _is_below(key: str, places: Sequence[str]) -> bool:
    return any(key == place or key.startswith(f"{place}.") for place in places)


def _leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _leaves(inner, f"{key}.{name}")
    else:
        yield key, value
