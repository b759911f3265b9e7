"""Settings of the generated emotion set."""

import math
from dataclasses import dataclass, field, fields

from lightning_mmrl.data.synthetic.faces import OTHER_FACE_STYLE, FaceStyle
from lightning_mmrl.data.synthetic.factors import LABELS
from lightning_mmrl.data.synthetic.voices import OTHER_VOICE_STYLE, VoiceStyle
from lightning_mmrl.errors import DataError

SMALLEST_SPLIT = len(LABELS)


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitSizes:
    """Number of clips in each split, before `EmotionSetSettings.scale`."""

    base: int = 800
    cold_start: int = 580
    train: int = 2002
    validation: int = 350
    test: int = 350
    ood: int = 350

    def __post_init__(self) -> None:
        for split in fields(self):
            _require(getattr(self, split.name) >= 1, f"sizes.{split.name}", getattr(self, split.name), "at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseTaskWeights:
    """Weights of the three tasks of the base split, in any unit."""

    face_caption: float = 3.0
    voice_caption: float = 3.0
    weak_label: float = 2.0

    def __post_init__(self) -> None:
        weights = (self.face_caption, self.voice_caption, self.weak_label)
        valid = all(weight >= 0 for weight in weights) and 0 < sum(weights) < math.inf
        _require(valid, "base_tasks", weights, "weights of at least 0 that do not sum to 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """The look and the sound of a split."""

    face: FaceStyle = field(default_factory=FaceStyle)
    voice: VoiceStyle = field(default_factory=VoiceStyle)


@dataclass(frozen=True, slots=True, kw_only=True)
class EmotionSetSettings:
    """All settings of a generated emotion set; equal settings give the same bytes.

    `scale` multiplies every split size, but keeps at least one clip per label. `emer_style_share` is the share of the
    cold start whose `source` is "emer_style". `weak_label_accuracy` is the probability that a weak label of the base
    split is right.

    >>> EmotionSetSettings(seed=1, scale=0.02).size_of("train")
    40
    """

    seed: int = 0
    scale: float = 1.0
    sizes: SplitSizes = field(default_factory=SplitSizes)
    base_tasks: BaseTaskWeights = field(default_factory=BaseTaskWeights)
    emer_style_share: float = 0.4
    weak_label_accuracy: float = 0.3
    style: Style = field(default_factory=Style)
    ood_style: Style = field(default_factory=lambda: Style(face=OTHER_FACE_STYLE, voice=OTHER_VOICE_STYLE))

    def __post_init__(self) -> None:
        _require(self.seed >= 0, "seed", self.seed, "0 or more")
        _require(0 < self.scale < math.inf, "scale", self.scale, "more than 0 and finite")
        _require(0 <= self.emer_style_share <= 1, "emer_style_share", self.emer_style_share, "within 0..1")
        _require(0 <= self.weak_label_accuracy <= 1, "weak_label_accuracy", self.weak_label_accuracy, "within 0..1")

    def size_of(self, split: str) -> int:
        """Return the number of clips of a split."""
        return max(SMALLEST_SPLIT, round(getattr(self.sizes, split) * self.scale))


def _require(valid: bool, key: str, value: object, rule: str) -> None:
    if not valid:
        raise DataError(f"synthetic emotion setting {key} is {value!r}; it must be {rule}")
