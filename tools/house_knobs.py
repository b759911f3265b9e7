"""Which settings a class outside the schema declares again.

A knob is an annotated field of a class in the schema. It is declared again where a class outside of it has a dataclass
field or an `__init__` parameter of the same name with a plain annotation that can hold the same values: numbers, texts,
truth values, and lists and mappings of these. Aliases of `Literal` count as texts or numbers, paths as texts. A field
that holds a built object, or a section of settings, is no copy of the knob.

Some names are the same by chance. `COINCIDENCES` says what they mean instead; they are printed and not counted.
"""

import ast
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

COINCIDENCES: Mapping[str, str] = {
    **dict.fromkeys(
        (
            *(f"Arm.{name}" for name in ("apart", "order", "overrides", "shares")),
            *(f"Plan.{name}" for name in ("all_pairs", "baseline", "exploratory", "folds", "metric", "question")),
            *("Plan.seeds", "Plan.tolerance", "PlannedRun.seed"),
        ),
        "what the file of a finished comparison says it was",
    ),
    **dict.fromkeys(("ArmRun.seed", "Cell.seed", "Contrast.seeds"), "of one run, or of the runs that are compared"),
    **dict.fromkeys(
        ("Ended.seconds", *(f"StageSpent.{name}" for name in ("flops", "seconds", "stage", "steps"))),
        "what a run or a stage took",
    ),
    "Summary.metric": "the metric that was read",
    **dict.fromkeys(
        (
            "CsvSettings.question",
            "Named.question",
            "Originals.question",
            "PrepareSettings.question",
            "Problem.question",
            "Scene.question",
        ),
        "the question of a sample",
    ),
    "Request.overrides": "the arguments of one command",
    "SamplingRequest.seeds": "of the completions of one request",
    "Canary.tolerance": "between log-probabilities",
    **dict.fromkeys(("SamplePlan.seed", "StageSpec.seed"), "a stage's own, which follows from the run's"),
    **dict.fromkeys(
        (
            "EncodingCheck.media_root",
            "Inventory.media_root",
            "OpenManifest.media_root",
            "Preparation.media_root",
            "PreparedSet.media_root",
            "Publication.media_root",
            "Reading.media_root",
            "SampleJob.media_root",
            "Scan.media_root",
            "Source.media_root",
        ),
        "the folder of one set of media, wherever the set was named",
    ),
    **dict.fromkeys(
        (
            "Edge.artifact",
            "Edge.stage",
            "Evaluated.stage",
            "FoldedSet.stage",
            "JudgedSet.stage",
            "Gain.stage",
            "Link.artifact",
            "Order.artifact",
            "Order.stage",
            "OutOfMemoryError.stage",
            "OverSeeds.stage",
            "ProfileSteps.stage",
            "Request.stage",
            "SetResult.stage",
            "StageBudget.stage",
            "StageProfile.stage",
            "StageRollouts.stage",
        ),
        "the name of any stage or artifact, not the one that a source reads",
    ),
    **dict.fromkeys(
        ("ConstantLength.max_tokens", "SamplingRequest.max_tokens", "SoftOverlong.max_tokens"), "a length of its own"
    ),
    **dict.fromkeys(
        (
            "SharedCache.group_size",
            "SharedCache.max_tokens",
            "SharedDecoding.max_tokens",
            "StaticCache.max_tokens",
            "StaticDecoding.max_tokens",
        ),
        "of the rollout that is decoded, which takes them from the settings",
    ),
    **dict.fromkeys(
        ("Clip.seconds", "Operator.seconds", "TimedRollout.seconds", "_Watchdog.seconds"), "a time, and no budget"
    ),
    "Tally.steps": "decode steps that were counted",
    **dict.fromkeys(("CsvSettings.shares", "_Plan.shares"), "of the samples, in splits"),
    "Judgement.subject": "the part of a set that one sample belongs to, not the column that names it",
    **dict.fromkeys(("Outline.format", "Tracks.format"), "FFmpeg's name of the container"),
    **dict.fromkeys(
        ("Completion.truncated", "Judgement.truncated", "Sampled.truncated"), "whether one answer was cut off"
    ),
    **dict.fromkeys(
        (
            "Conversion.directory",
            "PartStore.directory",
            "Preparation.directory",
            "EvaluationModule.directory",
            "FinishedRun.directory",
            "MediaCache.directory",
            "Order.directory",
            "Publication.directory",
            "RolloutTable.directory",
            "RunLogger.directory",
            "RunPage.directory",
            "Spool.directory",
            "StageContext.directory",
            "StageOrchestrator.directory",
            "StateStore.directory",
            "_LedJob.directory",
        ),
        "a folder of its own, not that of the feature cache",
    ),
    **dict.fromkeys(
        (
            "Linear.kind",
            "MediaFacts.kind",
            "MediaFigures.kind",
            "MediaRef.kind",
            "Order.kind",
        ),
        "the kind of a medium, layer or order, not of a stage",
    ),
    **dict.fromkeys(
        ("Rollout.group_size", "ScoringBatch.group_size"),
        "a dimension of this batch, whatever the setting is by then",
    ),
    **dict.fromkeys(
        (
            "SharedDecoding.group_size",
            "StaticDecoding.group_size",
            "StockDecoding.group_size",
        ),
        "completions in this call, which may be fewer than a group",
    ),
    **dict.fromkeys(
        ("StageCosts.num_steps", "StageResult.num_steps", "Training.num_steps"),
        "steps that were taken",
    ),
    **dict.fromkeys(
        (
            *("ClipPlan.seed", "CsvSettings.seed", "EmotionSetSettings.seed", "Plan.seed"),
            *("FoldSettings.seed", "PrepareRequest.seed", "PrepareSettings.seed"),
        ),
        "seed of a dataset that is made, which no run changes",
    ),
    "PolicyWeights.prefix": "begin of the names of weights, not of a question",
    **dict.fromkeys(
        ("ClipFolder.suffix", "CsvSettings.suffix", "Medium.suffix"),
        "ending of a file's name, not of a prompt",
    ),
    **dict.fromkeys(
        (
            *("ClipFolder.root", "DecodeTask.root", "Lists.root", "MediaFiles.root", "MediaFolder.root"),
            "PrepareRequest.root",
        ),
        "folder of one clip or of a download, not of the dataset",
    ),
    **dict.fromkeys(
        ("Conversion.labels", "CsvSettings.labels", "Originals.labels", "Preparation.labels", "Task.labels"),
        "labels of a dataset that is being made",
    ),
    **dict.fromkeys(
        ("DeadlinePool.num_workers", "DeadlinePool.deadline_s", "Guard.num_workers", "Guard.deadline_s"),
        "processes and deadline of any pool, or of decoders",
    ),
    **dict.fromkeys(
        ("ClosedLabels.labels", "ClosedLabels.cue_lexicon", "Conflicts.labels", "Conflicts.cue_lexicon"),
        "parameters of a task's own node, which by default get the dataset's",
    ),
    **dict.fromkeys(
        ("GuardedJudge.deadline_s", "Mathematics.deadline_s", "MMEEmotion.deadline_s"),
        "deadline of a task's verifier, in the task's own node",
    ),
    **dict.fromkeys(
        (
            *("EncodingCheck.media_root", "Publication.media_root", "Inventory.media_root"),
            *("Preparation.media_root", "PreparedSet.media_root"),
        ),
        "folder of the media of any manifest, not of an evaluation set alone",
    ),
    "InOrder.batch_size": "samples of a batch of any order, as its stage says",
    "Plan.task": "generated task of a sample, by name",
    **dict.fromkeys(
        ("LabelAnswer.labels", "LabelMatcher.labels"),
        "labels of any set: of predictions, or of a reward's own node",
    ),
    **dict.fromkeys(("Feed.seed", "StageContext.seed"), "seed of one stage: the run's plus the stage's place"),
    **dict.fromkeys(("ClusterBootstrap.seed", "DrawSampler.seed", "Walks.seed"), "seed of one random generator"),
    **dict.fromkeys(("Policy.temperature", "SamplingRequest.temperature"), "temperature of the phase at hand"),
    **dict.fromkeys(("DecidedSet.manifest", "DecidedSet.root"), "name in a file that an earlier process wrote"),
    **dict.fromkeys(("Forebear.kind", "StageFiles.kind"), "kind of a stage that ran, from its record"),
    "Connection.run_name": "name of a run in MLflow, not of the run folder",
    "Connection.uri": "address of the open store, without credentials",
    "Canary.max_new_tokens": "tokens that the check of the engine samples",
    "Exchange.target": "the answer of one prompt, not the text that it is written by",
    "EfficientLength.alpha": "weight of a reward for short answers, not LoRA's",
    "GuardedDecoder.deadline_s": "deadline of a clip, media.decode_deadline_s",
    "Interval.num_resamples": "resamples that this interval was made from",
    "Limits.soft_deadline_s": "soft deadline of any pool",
    "RolloutRow.pass_component": "name that this row was written with",
    "SourceRows.labels": "the label of each row",
    "Spool.limit": "entries in memory, not samples",
    "_Batch.deadline_s": "deadline of any pool",
    "_Rank.dtype": "type that a memory plan counts with, from the checkpoint",
    "_Step.loss": "value of a loss",
}
"""`Class.field` outside the schema to what it means there, where that is another thing than the knob."""

_PLAIN = {"int": "number", "float": "number", "bool": "bool", "str": "text", "Path": "text"}
_SEQUENCES = ("list", "tuple", "set", "frozenset", "Sequence", "Collection", "Iterable")
_MAPPINGS = ("dict", "Mapping")
_ANY = "any"


@dataclass(frozen=True, slots=True, kw_only=True)
class Knob:
    """A field of the schema."""

    owner: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Redeclared:
    """A knob and a place outside the schema that has its name.

    Attributes:
        knob: The field of the schema.
        place: File of the other declaration.
        owner: Its class.
        annotation: Its type.
        is_plain: Whether plain values of the knob fit there.
        reason: What it means there, if that is another thing.
    """

    knob: Knob
    place: str
    owner: str
    annotation: str
    is_plain: bool
    reason: str | None

    @property
    def is_twice(self) -> bool:
        """Whether this is the knob, declared again."""
        return self.is_plain and self.reason is None

    def __str__(self) -> str:
        verdict = "twice" if self.is_twice else self.reason or "holds something else"
        return (
            f"{self.knob.owner}.{self.knob.name} <- {self.place} {self.owner}.{self.knob.name}: "
            f"{self.annotation} ({verdict})"
        )


def knobs_of(trees: Mapping[Path, ast.Module], schema: Path) -> dict[Knob, ast.expr]:
    """The knobs of a schema, a file or a folder, with their annotations.

    A class that no other class of the schema uses, and that uses no other, is a helper and has no knobs.
    """
    classes = {
        node.name: node
        for path, tree in trees.items()
        if path.is_relative_to(schema)
        for node in tree.body
        if isinstance(node, ast.ClassDef)
    }
    links = set()
    for name, node in classes.items():
        annotations = [annotation for _, annotation in _fields(node)]
        names = {
            each.id for part in (*node.bases, *annotations) for each in ast.walk(part) if isinstance(each, ast.Name)
        }
        used = names & classes.keys() - {name}
        links |= {name, *used} if used else set()
    return {
        Knob(owner=name, name=key): annotation
        for name, node in classes.items()
        if name in links or not links
        for key, annotation in _fields(node)
        if not key.startswith("_")
    }


def stale_coincidences(trees: Mapping[Path, ast.Module], schema: Path) -> list[str]:
    """Entries of `COINCIDENCES` that no class declares, or whose name no knob has."""
    found = {f"{each.owner}.{each.knob.name}" for each in redeclared(trees, schema)}
    return sorted(COINCIDENCES.keys() - found)


def redeclared(trees: Mapping[Path, ast.Module], schema: Path) -> list[Redeclared]:
    """Every declaration outside of the schema that has the name of a knob, those included that are another thing."""
    aliases = _literal_aliases(trees.values())
    declared: dict[str, list[tuple[Path, str, ast.expr]]] = {}
    for path, tree in trees.items():
        if not path.is_relative_to(schema):
            for node in ast.walk(tree):
                if isinstance(node, ast.ClassDef):
                    for name, annotation in _declarations(node):
                        declared.setdefault(name, []).append((path, node.name, annotation))
    found = []
    for knob, annotation in knobs_of(trees, schema).items():
        for path, owner, other in declared.get(knob.name, ()):
            first, second = _shape(annotation, aliases), _shape(other, aliases)
            found.append(
                Redeclared(
                    knob=knob,
                    place=path.name,
                    owner=owner,
                    annotation=ast.unparse(other),
                    is_plain=second not in (None, _ANY) and first in (second, _ANY),
                    reason=COINCIDENCES.get(f"{owner}.{knob.name}"),
                )
            )
    return found


def _declarations(node: ast.ClassDef) -> Iterator[tuple[str, ast.expr]]:
    """Fields of a dataclass, and parameters of an `__init__` that is written out."""
    if any("dataclass" in ast.unparse(each) for each in node.decorator_list):
        yield from _fields(node)
    for statement in node.body:
        if isinstance(statement, ast.FunctionDef) and statement.name == "__init__":
            arguments = statement.args
            for each in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
                if each.annotation is not None:
                    yield each.arg, each.annotation


def _fields(node: ast.ClassDef) -> Iterator[tuple[str, ast.expr]]:
    for statement in node.body:
        if not isinstance(statement, ast.AnnAssign) or "ClassVar" in ast.unparse(statement.annotation):
            continue
        if isinstance(statement.target, ast.Name):
            yield statement.target.id, statement.annotation


def _literal_aliases(trees: Iterable[ast.Module]) -> dict[str, str]:
    """Names that stand for a `Literal`, with the kind of its values."""
    found = {}
    for tree in trees:
        for node in tree.body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                kind = _literal(node.value)
                if kind is not None:
                    found[node.targets[0].id] = kind
    return found


def _literal(node: ast.expr) -> str | None:
    if not isinstance(node, ast.Subscript) or ast.unparse(node.value) != "Literal":
        return None
    first = node.slice.elts[0] if isinstance(node.slice, ast.Tuple) else node.slice
    return "text" if isinstance(first, ast.Constant) and isinstance(first.value, str) else "number"


def _shape(node: ast.expr, aliases: Mapping[str, str]) -> str | None:
    """The kind of values of an annotation, such as "number" or "many text", without None; None if it is not plain."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return _shape(ast.parse(node.value, mode="eval").body, aliases)
    if isinstance(node, ast.BinOp):
        shapes = {_shape(each, aliases) for each in (node.left, node.right) if ast.unparse(each) != "None"}
        return shapes.pop() if len(shapes) == 1 else None
    if isinstance(node, ast.Name):
        return _ANY if node.id == "Any" else _PLAIN.get(node.id) or aliases.get(node.id)
    if isinstance(node, ast.Subscript):
        return _literal(node) or _container(node, aliases)
    return None


def _container(node: ast.Subscript, aliases: Mapping[str, str]) -> str | None:
    name = ast.unparse(node.value)
    if name == "Annotated" and isinstance(node.slice, ast.Tuple):
        return _shape(node.slice.elts[0], aliases)
    held = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    if name in _SEQUENCES:
        inner = _shape(held[0], aliases)
        return None if inner is None else f"many {inner}"
    if name in _MAPPINGS and len(held) == 2:
        inner = _shape(held[1], aliases)
        return None if inner is None else f"mapping to {inner}"
    return None
