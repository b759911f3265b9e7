"""Keys of a stage that learns from pairs of answers."""

from dataclasses import dataclass, field

from lightning_mmrl.settings.algorithm import MicrobatchSettings
from lightning_mmrl.settings.setting import setting
from lightning_mmrl.settings.stage import StageSettings

PREFERENCE_LOSSES = ("sigmoid", "ipo", "hinge")


@dataclass
class PreferenceSettings:
    """The loss of a pair: a weighted sum of a preference, a quality and a generation loss (MPO).

    By default it is the preference loss alone (DPO); `stage/mpo` has the weights of MPO's paper.
    """

    beta: float = setting(0.1, above=0)
    """Factor of the log-ratio to the reference policy in the reward of an answer: the larger, the less it moves."""
    loss: str = setting("sigmoid", choices=PREFERENCE_LOSSES)
    """Preference loss: sigmoid (DPO), ipo or hinge, see `algorithms.losses.preference`."""
    label_smoothing: float = setting(0.0, at_least=0, below=0.5)
    """Assumed share of pairs whose answers are exchanged; with the sigmoid loss alone."""
    preference_weight: float = setting(1.0, at_least=0)
    """Weight of the preference loss, which compares the two answers of a pair."""
    quality_weight: float = setting(0.0, at_least=0)
    """Weight of the quality loss, which judges each answer by itself, against the mean reward so far."""
    generation_weight: float = setting(0.0, at_least=0)
    """Weight of the generation loss: minus the log-likelihood of the chosen answer per token."""

    @property
    def weights(self) -> dict[str, float]:
        """The weights that are not zero, by the name of their loss.

        >>> PreferenceSettings().weights
        {'preference': 1.0}
        """
        given = {
            "preference": self.preference_weight,
            "quality": self.quality_weight,
            "generation": self.generation_weight,
        }
        return {name: weight for name, weight in given.items() if weight}


@dataclass
class DpoSettings(StageSettings, MicrobatchSettings):
    """One stage that learns from pairs of answers; the two of a pair are always in one microbatch."""

    preference: PreferenceSettings = field(default_factory=PreferenceSettings)
    """The loss of a pair."""
