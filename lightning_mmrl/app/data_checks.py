"""Looks at every sample that a run will need before anything trains: no decoding, no weights."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lightning_mmrl.app.assembly import training_sources
from lightning_mmrl.config.schema import RootConfig, StageConfig
from lightning_mmrl.data.datamodules import OmniDataModule, balance_labels
from lightning_mmrl.data.label_findings import label_findings
from lightning_mmrl.data.prepared import check_turns
from lightning_mmrl.data.schema import read_manifest
from lightning_mmrl.errors import DataError
from lightning_mmrl.prompts.labels import LabelMatcher
from lightning_mmrl.prompts.template import PromptTemplate
from lightning_mmrl.registry import targets
from lightning_mmrl.rewards.label_answer import LabelAnswer
from lightning_mmrl.types.records import Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """A manifest of a run and what it is for.

    Attributes:
        root: Folder of the manifest.
        manifest: Its file name below it.
        limit: How many of its samples are used; None for all.
        supervised: True if each sample must end with the target.
        by_label: True if a reward, a balance or an evaluation reads solutions as labels; others may be free answers.
        checks: Each raises a DataError for samples, of the manifest with this name, that do not serve the use.
    """

    root: Path
    manifest: str
    limit: int | None
    supervised: bool
    by_label: bool
    checks: tuple[Callable[[str, Sequence[Sample]], object], ...]


def check_data(config: RootConfig) -> list[str]:
    """Checks every stage's data, the validation data and all evaluation sets, so that no fault shows after hours.

    What a model family reads is checked where its encoder is loaded, when a stage is built.

    Returns:
        Sentences that begin with a manifest's name, about labels of it that look like a mistake.

    Raises:
        DataError: A manifest is missing, a line of it is wrong, or a sample does not serve its use.
    """
    read: dict[tuple[Path, str], list[Sample]] = {}
    labeled: set[tuple[Path, str]] = set()
    for use in uses(config):
        key = use.root, use.manifest
        labeled |= {key} if use.by_label else set()
        if key not in read:
            read[key] = read_manifest(use.root / use.manifest, use.root)
        for check in use.checks:
            check(use.manifest, read[key][: use.limit])
    warnings = []
    for (root, manifest), samples in read.items():
        if (root, manifest) in labeled:
            labels = Counter(sample.solution for sample in samples if sample.solution is not None)
            warnings += [f"{manifest}: {finding}" for finding in label_findings(labels)]
    return list(dict.fromkeys(warnings))


def uses(config: RootConfig) -> list[Use]:
    """Every use of a manifest in the order in which the run comes to it, the sets of evaluations last."""
    return _Uses(config).all()


class _Uses:
    def __init__(self, config: RootConfig) -> None:
        self._config = config
        self._root = Path(config.data.root)
        self._template = PromptTemplate(**asdict(config.prompt))
        self._matcher = LabelMatcher(labels=tuple(config.data.labels))

    def all(self) -> list[Use]:
        found = [use for name in self._config.order for use in self._of_stage(name, self._config.stages[name])]
        if self._config.data.validation is not None:
            # Also if no stage is validated: the run writes down all manifests that its configuration names.
            found.append(self._examined(self._config.data.validation, None, ()))
        limit = self._config.evaluation.limit
        return found + [
            self._examined(manifest, limit, self._judgeable()) for manifest in self._config.evaluation.sets.values()
        ]

    def _of_stage(self, name: str, stage: StageConfig) -> list[Use]:
        module = self._datamodule(name, stage)
        supervised = stage.kind == "sft"
        checks = [module.check_kinds, partial(check_turns, template=self._template, supervised=supervised)]
        if stage.data.balance is not None:
            checks.append(partial(balance_labels, matcher=self._matcher))
        rewards = self._label_rewards(name, stage)
        checks += [partial(_check_solutions, matcher=reward.matcher) for reward in rewards]
        found = [
            Use(
                root=source.root,
                manifest=source.manifest,
                limit=source.limit,
                supervised=supervised,
                by_label=bool(rewards) or stage.data.balance is not None,
                checks=tuple(checks),
            )
            for source in training_sources(self._config, stage.data)
        ]
        data = self._config.data
        if stage.validate_every and data.validation is not None:
            judged = (module.check_kinds, *self._judgeable())
            found.append(self._examined(data.validation, data.validation_limit, judged))
        return found

    def _examined(self, manifest: str, limit: int | None, checks: tuple[Any, ...]) -> Use:
        judged = bool(checks)
        return Use(root=self._root, manifest=manifest, limit=limit, supervised=False, by_label=judged, checks=checks)

    def _judgeable(self) -> tuple[Any, ...]:
        turns = partial(check_turns, template=self._template, supervised=False)
        return turns, partial(_check_solutions, matcher=self._matcher)

    def _datamodule(self, name: str, stage: StageConfig) -> type[OmniDataModule]:
        node, path = stage.data.module or self._config.data.module, f"stages.{name}.data.module"
        return targets.build({**node, "_partial_": True}, path if stage.data.module else "data.module").func

    def _label_rewards(self, name: str, stage: StageConfig) -> list[LabelAnswer]:
        nodes = {} if stage.rewards is None else stage.rewards.parts
        parts = [targets.build(node, f"stages.{name}.rewards.parts.{part}") for part, node in nodes.items()]
        return [part for part in parts if isinstance(part, LabelAnswer)]


def _check_solutions(manifest: str, samples: Sequence[Sample], matcher: LabelMatcher) -> None:
    for sample in samples:
        try:
            matcher.truth(sample)
        except DataError as error:
            raise DataError(f"{manifest}: {error}") from error
