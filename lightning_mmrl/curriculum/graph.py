"""The graph of a curriculum: stages in a checked order, the artifacts they make, and the artifacts they read."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from lightning_mmrl.errors import ConfigError
from lightning_mmrl.protocols.plain import StageKind
from lightning_mmrl.settings.stage import BASE, PREVIOUS, NodeSettings
from lightning_mmrl.suggestions import did_you_mean
from lightning_mmrl.types.records import HANDOFF, WEIGHTS, ArtifactType, Edge, StageSpec

SOURCES = "data.sources."
"""Beginning of the name of an input that is a source of a stage's data."""
_IN_WORDS: Mapping[ArtifactType, str] = {"weights": "weights", "table": "tables", "manifest": "data"}

Kinds = Callable[[NodeSettings, str], StageKind]
"""Returns the kind of a stage; its second argument is the key of the stage, for messages."""


def plan_stages(order: Sequence[str], stages: Mapping[str, NodeSettings], kinds: Kinds) -> list[StageSpec]:
    """Returns the stages of a curriculum in order, with their inputs and outputs.

    Args:
        order: Stage names; each at most once.
        stages: Maps names to stages; `start_from` is "base", "previous" or the name of an earlier stage in the order,
            and a source of data may name an artifact of an earlier stage.
        kinds: Gives the kind of a stage.

    Returns:
        Specifications whose content, digests and seed are not set yet.

    Raises:
        ConfigError: The order is empty, repeats a stage or names an unknown one; or a stage reads from a stage that
            does not come earlier, or an artifact that its stage does not make.
    """
    if not order:
        raise ConfigError("order is empty; name at least one stage, for example order=[cold_start,reason]")
    specs: list[StageSpec] = []
    for index, name in enumerate(order):
        if name not in stages:
            raise ConfigError(f"order[{index}]: unknown stage {name!r}; stages defines {', '.join(sorted(stages))}")
        if name in (BASE, PREVIOUS):
            raise ConfigError(f"order[{index}]: {name!r} is a reserved name; call the stage something else")
        if name in order[:index]:
            raise ConfigError(f"order[{index}]: stage {name!r} appears twice; define it again under another name")
        path, settings = f"stages.{name}", stages[name]
        kind = kinds(settings, path)
        inputs = {key: _resolved(edge, specs) for key, edge in kind.inputs(settings).items()}
        outputs, reads_weights = kind.outputs(settings), WEIGHTS in inputs
        spec = StageSpec(
            name=name, index=index, settings=settings, outputs=outputs, inputs=inputs, reads_weights=reads_weights
        )
        _check_inputs(path, spec, specs, partial(_why_not, spec.name, order, stages, kinds))
        specs.append(replace(spec, inputs={key: edge for key, edge in inputs.items() if edge.stage != BASE}))
    return specs


def usual_inputs(settings: NodeSettings) -> dict[str, Edge]:
    """The inputs that any kind may have: the weights of `start_from`, and sources of data that other stages make."""
    start = BASE if settings.checkpoint else settings.start_from
    return {WEIGHTS: Edge(start, HANDOFF, "weights"), **data_inputs(settings)}


def data_inputs(settings: NodeSettings) -> dict[str, Edge]:
    """Returns the sources of data that other stages make."""
    sources = settings.data.sources.items()
    return {f"{SOURCES}{name}": Edge(each.stage, each.artifact or "") for name, each in sources if each.stage}


def place_among_trained(spec: StageSpec, specs: Iterable[StageSpec]) -> int | None:
    """Returns the number of trained stages before a stage; None for a stage that trains nothing.

    The stage's seed follows from this number, so inserting or removing a data stage changes no other stage's seed.
    """
    return sum(each.trains for each in specs if each.index < spec.index) if spec.trains else None


def with_ancestors(names: Iterable[str], specs: Sequence[StageSpec]) -> set[str]:
    """Returns the named stages and all stages that they build on."""
    kept = set(names)
    for spec in reversed(specs):
        if spec.name in kept:
            kept |= {edge.stage for edge in spec.inputs.values()}
    return kept


def with_descendants(name: str, specs: Sequence[StageSpec]) -> set[str]:
    """Returns the named stage and all stages that build on it."""
    building = {name}
    for spec in specs:
        if any(edge.stage in building for edge in spec.inputs.values()):
            building.add(spec.name)
    return building


def _resolved(edge: Edge, earlier: Sequence[StageSpec]) -> Edge:
    """Replaces `previous` as the source of weights by the last trained stage before, or by the base model."""
    if (edge.stage, edge.artifact) != (PREVIOUS, HANDOFF):
        return edge
    makers = [spec.name for spec in earlier if spec.trains]
    return replace(edge, stage=makers[-1] if makers else BASE)


def _check_inputs(path: str, spec: StageSpec, earlier: Sequence[StageSpec], why_not: Callable[[str], str]) -> None:
    """Refuses inputs that no earlier stage makes; `why_not` says why a stage is none of the earlier ones."""
    made, settings = {each.name: each.outputs for each in earlier}, spec.settings
    for name, value, unset in (
        ("start_from", settings.start_from, PREVIOUS),
        ("checkpoint", settings.checkpoint, None),
    ):
        if not spec.reads_weights and value != unset:
            raise ConfigError(
                f"{path}.{name} is {value!r}, and stages of kind {settings.kind} read no weights; drop it"
            )
    for key, edge in spec.inputs.items():
        if key == WEIGHTS and edge.stage != BASE:
            choices = [BASE, PREVIOUS, *(name for name, outputs in made.items() if HANDOFF in outputs)]
            if edge.stage not in made or HANDOFF not in made[edge.stage]:
                reason = ", which makes no weights" if edge.stage in made else why_not(edge.stage)
                raise ConfigError(f"{path}.start_from is {edge.stage!r}{reason}; choose one of {', '.join(choices)}")
        elif key != WEIGHTS:
            _check_data(f"{path}.{key}", edge, made, why_not)


def _why_not(name: str, order: Sequence[str], stages: Mapping[str, NodeSettings], kinds: Kinds, wanted: str) -> str:
    """Says why stage `name` cannot read from stage `wanted`, which is none of the stages before it."""
    if wanted == name:
        return ", the stage itself"
    if wanted not in order:
        return ", which is no stage of the order"
    reached, new = {wanted}, {wanted}
    while new:
        known = [each for each in new if each in stages]
        read = [kinds(stages[each], f"stages.{each}").inputs(stages[each]).values() for each in known]
        new = {edge.stage for edges in read for edge in edges} - reached
        reached |= new
    return f", which itself builds on {name}" if name in reached else ", which comes later in the order"


def _check_data(
    path: str, edge: Edge, made: Mapping[str, Mapping[str, ArtifactType]], why_not: Callable[[str], str]
) -> None:
    if edge.stage not in made:
        makers = [name for name, outputs in made.items() if edge.type in outputs.values()]
        hint = f"put a stage that makes {_IN_WORDS[edge.type]} before it in the order"
        hint = f"choose one of {', '.join(makers)}" if makers else hint
        raise ConfigError(f"{path}.stage is {edge.stage!r}{why_not(edge.stage)}; {hint}")
    kind = made[edge.stage].get(edge.artifact)
    if kind == edge.type:
        return
    names = [name for name, each in made[edge.stage].items() if each == edge.type]
    if names and not edge.artifact:
        raise ConfigError(f"{path} has a stage and no artifact; set {path}.artifact={' or '.join(names)}")
    found = f", which is no {edge.type} but {kind}" if kind else f", which stage {edge.stage} does not make"
    hint = did_you_mean(edge.artifact, names) if names else f"; stage {edge.stage} makes no {_IN_WORDS[edge.type]}"
    raise ConfigError(f"{path}.artifact is {edge.artifact!r}{found}{hint}")
