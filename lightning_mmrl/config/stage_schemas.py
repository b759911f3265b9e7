"""Looks up the keys that a stage may have: the fields of the settings class of its kind."""

from collections.abc import Mapping
from typing import Any

from lightning_mmrl.registry.kinds import kind_named
from lightning_mmrl.settings.run import RunSettings
from lightning_mmrl.settings.stage import NodeSettings, StageSettings
from lightning_mmrl.suggestions import annotation_of


def stage_settings(node: Any, path: str) -> type[NodeSettings]:
    """Returns the settings class of a composed stage; a stage without a kind counts as one that trains.

    Raises:
        ConfigError: There is no such kind.
    """
    kind = node.get("kind") if isinstance(node, Mapping) else None
    return kind_named(kind, f"{path}.kind").settings if isinstance(kind, str) and kind != "???" else StageSettings


def run_schema(tree: Mapping[Any, Any]) -> type:
    """Returns the type in which keys of a composed tree are looked up: `RunSettings` with a key for each stage.

    Raises:
        ConfigError: A stage has an unknown kind.
    """
    stages = tree.get("stages")
    named = stages if isinstance(stages, Mapping) else {}
    kinds = {str(name): stage_settings(node, f"stages.{name}") for name, node in named.items()}
    inner = type("Stages", (), {"__annotations__": kinds, "__dataclass_fields__": {}})
    return type("Run", (RunSettings,), {"__annotations__": {"stages": inner}})


def key_type(key: str, tree: Mapping[Any, Any]) -> Any:
    """Returns the annotation of a dotted key in a composed tree; None below a `_target_` or outside the schema.

    Raises:
        ConfigError: A stage has an unknown kind.
    """
    is_in_stage = key.startswith("stages.") and key.count(".") > 1
    return annotation_of(key, run_schema(tree) if is_in_stage else RunSettings)
