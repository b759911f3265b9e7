"""Model families of this package, found by reading the files of models/families without importing them.

A family is a file there with a backbone and an encoder: classes whose body sets `declaration`, as in

    class LlamaEncoder(TextEncoder):
        declaration = FAMILY

The encoder is the one whose name ends in `Encoder`. A constant of the file whose name starts with `build_tiny_` builds
a tiny model of the family.
"""

import ast
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

MODULES = "lightning_mmrl.models.families"
DECLARATION, ENCODER, BUILDER = "declaration", "Encoder", "build_tiny_"


def find_families() -> dict[str, tuple[str, str]]:
    """Maps the name of each family, which is its file's, to the targets of its backbone and its encoder."""
    found = {}
    for name, tree in _files().items():
        classes = [node.name for node in tree if isinstance(node, ast.ClassDef) and DECLARATION in _assigned(node.body)]
        pair = sorted(classes, key=lambda each: each.endswith(ENCODER))
        if [each.endswith(ENCODER) for each in pair] == [False, True]:
            found[name] = tuple(f"{MODULES}.{name}.{each}.from_checkpoint" for each in pair)
    return found


def find_builders() -> tuple[str, ...]:
    """The targets that build tiny models, of all families that have one in their file."""
    return tuple(
        f"{MODULES}.{name}.{each}"
        for name, tree in _files().items()
        for each in _assigned(tree)
        if each.startswith(BUILDER)
    )


@cache
def _files() -> Mapping[str, Sequence[ast.stmt]]:
    """The statements of each file, by the file's name."""
    folder = Path(__file__).resolve().parents[1] / "models" / "families"
    return {path.stem: ast.parse(path.read_bytes()).body for path in sorted(folder.glob("*.py"))}


def _assigned(body: Sequence[ast.stmt]) -> Iterator[str]:
    """Names that are assigned at the top of a body."""
    for statement in body:
        if isinstance(statement, ast.Assign):
            yield from (target.id for target in statement.targets if isinstance(target, ast.Name))
