"""A kind of stage of a user's own: it keeps the shorter samples and runs no model. Used as `kind: own_code.kinds`."""

from dataclasses import dataclass

from lightning_mmrl.app.data_kinds import SelectingKind
from lightning_mmrl.settings.setting import setting
from lightning_mmrl.settings.stage import DataStageSettings
from own_code.calls import CALLS


@dataclass
class CutSettings(DataStageSettings):
    """One stage that keeps the shorter samples."""

    share: float = setting(0.5, above=0, at_most=1)
    """Share of the samples that is kept."""


def longer(stage, samples):
    """The reason of each sample that is too long, by its id; of equal ones, the earlier counts as shorter."""
    CALLS["kind"] += 1
    lengths = {sample.id: sum(len(message.content) for message in sample.messages) for sample in samples}
    kept = sorted(lengths, key=lengths.__getitem__)[: round(stage.share * len(samples))]
    most = max((lengths[name] for name in kept), default=0)
    return {name: "longer" if lengths[name] > most else "as_long" for name in lengths.keys() - {*kept}}


KIND = SelectingKind(settings=CutSettings, select=longer)
