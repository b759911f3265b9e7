"""Finds parts of this package by reading their files without importing them, so that a new file needs no entry.

A family is a file in models/families with a backbone and an encoder: classes whose body sets `declaration`, as in

    class LlamaEncoder(TextEncoder):
        declaration = FAMILY

The encoder is the one whose name ends in `Encoder`. A constant of the file whose name starts with `build_tiny_` builds
a tiny model of the family.

A reward, an advantage or a loss is a class in the folder of its kind whose `__call__` is as `CALLED` says. A tracker is
a class in tracking/ with the methods `open_run` and `close`. MLflow's tracker and the one that keeps nothing are left
out, since `tracking.uri` chooses between them.
"""

import ast
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

PACKAGE = "lightning_mmrl"
FAMILIES, TRACKING = "models.families", "tracking"
BY_URI = ("mlflow", "null")
CALLED: Mapping[str, tuple[str, tuple[str, ...], str]] = {
    "reward": ("rewards", ("sample", "completion"), "float | None"),
    "advantage": ("algorithms.advantages", ("rewards", "valid"), "Float[Tensor, 'B G']"),
    "loss": ("algorithms.losses", ("inputs",), "LossOutput"),
    "target loss": ("algorithms.losses", ("logprobs",), "Float[Tensor, 'N C']"),
}
"""By kind, the folder of its classes, and the parameters and the result of their `__call__`."""
DECLARATION, ENCODER, BUILDER = "declaration", "Encoder", "build_tiny_"


def find_families() -> dict[str, tuple[str, str]]:
    """Maps the name of each family, which is the name of its file, to the targets of its backbone and its encoder."""
    found = {}
    for name, tree in _files(FAMILIES, DECLARATION).items():
        classes = [node.name for node in tree if isinstance(node, ast.ClassDef) and DECLARATION in _assigned(node.body)]
        pair = sorted(classes, key=lambda each: each.endswith(ENCODER))
        if [each.endswith(ENCODER) for each in pair] == [False, True]:
            found[name] = tuple(f"{PACKAGE}.{FAMILIES}.{name}.{each}.from_checkpoint" for each in pair)
    return found


def find_builders() -> tuple[str, ...]:
    """Returns the targets that build tiny models, from the files of all families."""
    return tuple(
        f"{PACKAGE}.{FAMILIES}.{name}.{each}"
        for name, tree in _files(FAMILIES, DECLARATION).items()
        for each in _assigned(tree)
        if each.startswith(BUILDER)
    )


def find_called(kind: str) -> tuple[str, ...]:
    """Returns the targets of all classes of a kind of `CALLED`; a class that returns `float` is a reward too."""
    room, parameters, result = CALLED[kind]
    found = []
    for name, tree in _files(room, "def __call__(").items():
        for node in (each for each in tree if isinstance(each, ast.ClassDef)):
            call = _methods(node).get("__call__")
            if call is None or call.returns is None:
                continue
            fits = ast.unparse(call.returns) in (result, result.partition(" | ")[0])
            if fits and [each.arg for each in call.args.args[1:]] == list(parameters):
                found.append(f"{PACKAGE}.{room}.{name}.{node.name}")
    return tuple(found)


def find_trackers() -> tuple[str, ...]:
    """Returns the targets of all trackers except the two that `tracking.uri` chooses between."""
    return tuple(
        f"{PACKAGE}.{TRACKING}.{name}.{node.name}"
        for name, tree in _files(TRACKING, "def open_run(").items()
        for node in tree
        if isinstance(node, ast.ClassDef) and {"open_run", "close"} <= set(_methods(node))
    )


@cache
def _files(room: str, text: str) -> Mapping[str, Sequence[ast.stmt]]:
    """Maps each file that contains `text` to its statements; parsing all files of the folder would take a while."""
    folder = Path(__file__).resolve().parents[1].joinpath(*room.split("."))
    paths = [path for path in sorted(folder.glob("*.py")) if path.stem not in BY_URI]
    return {path.stem: ast.parse(path.read_bytes()).body for path in paths if text.encode() in path.read_bytes()}


def _assigned(body: Sequence[ast.stmt]) -> Iterator[str]:
    """Yields the names that are assigned at the top level of a body."""
    for statement in body:
        if isinstance(statement, ast.Assign):
            yield from (target.id for target in statement.targets if isinstance(target, ast.Name))


def _methods(node: ast.ClassDef) -> dict[str, ast.FunctionDef]:
    return {each.name: each for each in node.body if isinstance(each, ast.FunctionDef)}
