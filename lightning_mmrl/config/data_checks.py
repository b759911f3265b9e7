"""Looks at every sample that a run will need before anything trains: no decoding, no weights."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from lightning_mmrl.config import targets
from lightning_mmrl.config.assembly import training_sources
from lightning_mmrl.config.schema import RootConfig, StageConfig
from lightning_mmrl.data.datamodules import OmniDataModule, balance_labels
from lightning_mmrl.data.prepared import check_turns
from lightning_mmrl.data.schema import read_manifest
from lightning_mmrl.errors import DataError
from lightning_mmrl.prompts.labels import LabelMatcher
from lightning_mmrl.prompts.template import PromptTemplate
from lightning_mmrl.rewards.label_answer import LabelAnswer
from lightning_mmrl.types.records import Sample


def check_data(config: RootConfig) -> None:
    """Checks every stage's data, the validation data and all evaluation sets, so that no fault shows after hours.

    What a model family reads is checked where its encoder is loaded, when a stage is built.

    Raises:
        DataError: A manifest is missing, a line of it is wrong, or a sample does not serve its use.
    """
    _DataCheck(config).run()


class _DataCheck:
    def __init__(self, config: RootConfig) -> None:
        self._config = config
        self._root = Path(config.data.root)
        self._template = PromptTemplate(**asdict(config.prompt))
        self._matcher = LabelMatcher(labels=tuple(config.data.labels))
        self._read: dict[tuple[Path, str], list[Sample]] = {}

    def run(self) -> None:
        """Every use in the order in which the run comes to it, the sets of evaluations last."""
        for name in self._config.order:
            self._check_stage(name, self._config.stages[name])
        if self._config.data.validation is not None:
            # Also if no stage is validated: the run writes down all manifests that its configuration names.
            self._samples(self._root, self._config.data.validation, None)
        for manifest in self._config.evaluation.sets.values():
            self._check_examined(manifest, self._samples(self._root, manifest, self._config.evaluation.limit))

    def _check_stage(self, name: str, stage: StageConfig) -> None:
        module = self._datamodule(name, stage)
        rewards = self._label_rewards(name, stage)
        for source in training_sources(self._config, stage.data):
            samples = self._samples(source.root, source.manifest, source.limit)
            module.check_kinds(source.manifest, samples)
            check_turns(source.manifest, samples, self._template, supervised=stage.kind == "sft")
            if stage.data.balance is not None:
                balance_labels(source.manifest, samples, self._matcher)
            for reward in rewards:
                _check_solutions(source.manifest, samples, reward.matcher)
        data = self._config.data
        if stage.validate_every and data.validation is not None:
            samples = self._samples(self._root, data.validation, data.validation_limit)
            module.check_kinds(data.validation, samples)
            self._check_examined(data.validation, samples)

    def _check_examined(self, manifest: str, samples: Sequence[Sample]) -> None:
        check_turns(manifest, samples, self._template, supervised=False)
        _check_solutions(manifest, samples, self._matcher)

    def _datamodule(self, name: str, stage: StageConfig) -> type[OmniDataModule]:
        node, path = stage.data.module or self._config.data.module, f"stages.{name}.data.module"
        return targets.build({**node, "_partial_": True}, path if stage.data.module else "data.module").func

    def _label_rewards(self, name: str, stage: StageConfig) -> list[LabelAnswer]:
        nodes = {} if stage.rewards is None else stage.rewards.parts
        parts = [targets.build(node, f"stages.{name}.rewards.parts.{part}") for part, node in nodes.items()]
        return [part for part in parts if isinstance(part, LabelAnswer)]

    def _samples(self, root: Path, manifest: str, limit: int | None) -> list[Sample]:
        key = root, manifest
        if key not in self._read:
            self._read[key] = read_manifest(root / manifest, root)
        return self._read[key][:limit]


def _check_solutions(manifest: str, samples: Sequence[Sample], matcher: LabelMatcher) -> None:
    for sample in samples:
        try:
            matcher.truth(sample)
        except DataError as error:
            raise DataError(f"{manifest}: {error}") from error
