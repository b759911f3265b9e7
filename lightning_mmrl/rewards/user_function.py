"""Uses any Python function of the user as a reward, by its path."""

import difflib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any

from lightning_mmrl.errors import FOREIGN_FAILURES, ConfigError, MmrlError, RewardError
from lightning_mmrl.protocols.plain import RewardFn
from lightning_mmrl.types.records import Completion, Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class UserFunction:
    """Calls `function(sample, completion)`, which returns a number, or None if it does not apply.

    `function` is `path/to/file.py:name` or `package.module:name`. The name must be defined in that module, or in a
    module below that package; a name that the module merely imports is refused. It may also be a `partial` of such a
    function, or an instance of a class from that module or from this package.

    **This runs the file's code**, here and in every reward process, with all permissions of the run, so name only files
    that you trust. A configuration may only name modules that `--allow-targets` permits on the command line. A file is
    loaded once per process, and it cannot import other files of its folder. Rewards that may hang or crash need
    processes: set `rewards.num_workers` to at least 1.

    Raises:
        ConfigError: The file, module or function does not exist, loading it fails, or it cannot be called with a sample
            and a completion.

    >>> longest = UserFunction(function="lightning_mmrl.rewards.token_length:TokenLength.__call__")
    Traceback (most recent call last):
    ...
    lightning_mmrl.errors.ConfigError: lightning_mmrl.rewards.token_length has no function 'TokenLength.__call__'; ...
    """

    function: str
    _loaded: RewardFn = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        place, separator, name = self.function.rpartition(":")
        if not separator or not place or not name:
            raise ConfigError(f"function is {self.function!r}; write path/to/file.py:name or package.module:name")
        if place.endswith(".py"):
            place = str(Path(place).absolute())  # a worker may have another working directory
            object.__setattr__(self, "function", f"{place}:{name}")
        object.__setattr__(self, "_loaded", _function(_module(place), name, place))

    def __reduce__(self) -> tuple[Callable[[], "UserFunction"], tuple[()]]:
        return partial(UserFunction, function=self.function), ()

    def __call__(self, sample: Sample, completion: Completion) -> float | None:
        """Scores one completion.

        Raises:
            RewardError: The function raised or called `sys.exit`; the message has its name, file and line.
        """
        try:
            return self._loaded(sample, completion)
        except MmrlError:
            raise
        except FOREIGN_FAILURES as error:  # a failing function must not end the run
            line = traceback.extract_tb(error.__traceback__)[-1]
            raise RewardError(
                f"{self.function} raised {type(error).__name__}: {error} ({line.filename} line {line.lineno})"
            ) from error


def _module(place: str) -> ModuleType:
    try:
        return _module_of_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except FOREIGN_FAILURES as error:  # the code of the user runs here
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"function: {place} cannot be loaded: {type(error).__name__}: {error}") from error


def _module_of_file(path: Path) -> ModuleType:
    """Loads a file as a module; a unique name in `sys.modules` lets its classes be pickled and loads it only once."""
    name = f"mmrl_reward_{sha256(str(path).encode()).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    if not path.is_file():
        raise ConfigError(f"function: there is no file {path}; correct the path")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _function(module: ModuleType, name: str, place: str) -> Any:
    found = getattr(module, name, None)
    if not callable(found):
        functions = [each for each, value in vars(module).items() if inspect.isfunction(value)]
        known = [each for each in functions if _is_defined_in(module, getattr(module, each))]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known) or 'none'}"
        raise ConfigError(f"{place} has no function {name!r}; {hint}")
    if not _is_defined_in(module, found):
        raise ConfigError(
            f"{place} does not define {name!r} but has it from {_home(found) or 'elsewhere'}; name it where it is "
            f"defined, or define a function in {place} that calls it"
        )
    try:
        inspect.signature(found).bind(None, None)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{place}:{name} cannot be called with (sample, completion): {error}; "
            f"write def {name}(sample, completion) -> float"
        ) from error
    return found


def _is_defined_in(module: ModuleType, found: Any) -> bool:
    """Whether the module, or a module below it, defines an object; a configuration may not name what it imports."""
    home = _home(found)
    if home == module.__name__ or home.startswith(f"{module.__name__}."):
        return True
    is_instance = not isinstance(found, type | partial) and not inspect.isroutine(found)
    return is_instance and type(found).__module__.startswith("lightning_mmrl.")  # such as a reward with settings


def _home(found: Any) -> str:
    """Name of the module that defines a function or class, the function of a partial, or the class of an instance."""
    if isinstance(found, partial):
        return _home(found.func)
    return str(getattr(found, "__module__", None) or "")
