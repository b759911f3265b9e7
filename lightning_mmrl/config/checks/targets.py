"""Refuses targets that no stage could learn, and losses of pairs that cannot be summed."""

from lightning_mmrl.errors import ConfigError
from lightning_mmrl.settings.data import COLUMN
from lightning_mmrl.settings.dpo import PreferenceSettings
from lightning_mmrl.settings.lessons import target_of
from lightning_mmrl.settings.rules import require
from lightning_mmrl.settings.sft import SftSettings
from lightning_mmrl.settings.stage import NodeSettings


def check_targets(path: str, stage: NodeSettings) -> None:
    """Refuses a target of a stage that is no sft stage, and one without a column; `path` is the key of the stage.

    Raises:
        ConfigError: Naming the key.
    """
    name, text = target_of(stage)
    learns = isinstance(stage, SftSettings) or text is not None
    found = {f"{path}.data.sources.{source}.target": each.target for source, each in stage.data.sources.items()}
    for key, target in (found | {f"{path}.{name}": text}).items():
        if target is None:
            continue
        rule = f"null: {path} is {stage.kind}, and an sft stage learns targets"
        require(learns, key, target, rule)
        rule = "a text with a column in braces, such as '<answer>{solution}</answer>'"
        require(COLUMN.search(target), key, target, rule)


def check_preference(path: str, preference: PreferenceSettings) -> None:
    """Refuses losses of pairs that are all left out, and a smoothing that the loss does not have.

    Raises:
        ConfigError: Naming the key.
    """
    if not preference.weights:
        raise ConfigError(
            f"{path} has no loss with a weight; set {path}.preference_weight, quality_weight or generation_weight"
        )
    smoothing, loss = preference.label_smoothing, preference.loss
    valid = not smoothing or loss == "sigmoid"
    require(valid, f"{path}.label_smoothing", smoothing, f"0 unless {path}.loss is sigmoid; it is {loss}")
