"""Keys of the model, of its adapters and of the cache of its towers' outputs."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from lightning_mmrl.settings.setting import REQUIRED, setting, target

DTYPES = ("float32", "bfloat16", "float64")
PositionRule = Literal["previous_maximum", "transformers"]
POSITION_RULES: tuple[PositionRule, ...] = get_args(PositionRule)
AudioInVideo = Literal["separate", "interleaved"]
AUDIO_IN_VIDEO: tuple[AudioInVideo, ...] = get_args(AudioInVideo)
TOWERS = ("vision", "audio")
"""Parameter groups that encode media."""
PARAMETER_GROUPS = (*TOWERS, "text")
PROJECTOR = "projector"
FREEZE_GROUPS = (*PARAMETER_GROUPS, *(f"{tower}_tower" for tower in TOWERS), PROJECTOR)
"""Groups that a stage can freeze: `vision` and `audio` are towers with their projectors, `vision_tower` and
`audio_tower` are towers without them, and `projector` is the projectors of all towers."""
ALL_LAYERS = "all"
BUILD = "{build}"
"""The part of `model.checkpoint` that stands for the hash of `model.build`."""


@dataclass
class FeatureCacheSettings:
    """Outputs of frozen media towers, kept on disk for later passes, stages and runs."""

    directory: str = setting(texts=False)
    """Folder of the cache; any number of runs may share it."""
    max_bytes: int = setting(21_474_836_480, at_least=1)
    """Bound on the files of the folder; the least recently used ones are removed."""


@dataclass
class ModelSettings:
    """The base model: a hub id or folder, or a recipe that builds one."""

    checkpoint: str = setting(texts=False)
    """Hub id or folder of the base model. `{build}` in the name of a folder stands for the beginning of the hash of
    `build`, so that other values build another folder."""
    family: Any = REQUIRED
    """The model family: `_target_` of the backbone and of the encoder."""
    build: Any = target(None)
    """`_target_` that builds the folder `checkpoint` if it does not exist; null for a checkpoint that exists."""
    known_sizes: Any = None
    """Keys of a config.json, with which `mmrl plan` estimates memory before the checkpoint is downloaded, and
    `checkpoint`, which names the checkpoint of that file; null: no estimate before the download."""
    dtype: str = setting("float32", choices=DTYPES)
    """Type of weights in memory and in handoffs: float32, bfloat16 or float64. `trainer.precision` says whether weights
    that train are kept in float32 instead."""
    position_rule: str = setting("previous_maximum", choices=POSITION_RULES)
    """Position of the first text token after a clip: `previous_maximum` is the largest position so far + 1, as in the
    original recipe and vLLM; `transformers` is where that library puts it."""
    audio_in_video: str = setting("separate", choices=AUDIO_IN_VIDEO)
    """How `<video><audio>` enters the model: `separate` media, one after the other, or a clip and its sound
    `interleaved`."""
    sharing: bool = True
    """Compute a prompt once for all its completions. False scores each completion with a copy of the prompt, for
    comparisons: as exact, but slow."""
    feature_cache: FeatureCacheSettings | None = None
    """Cache of tower outputs for stages that freeze all media towers with their projectors; null computes them in every
    pass."""

    @property
    def build_digest(self) -> str:
        """The beginning of the hash of everything that `build` holds: the function and all its arguments."""
        return hashlib.sha256(json.dumps(self.build, sort_keys=True, default=str).encode()).hexdigest()[:8]

    @property
    def checkpoint_but_build(self) -> str:
        """The checkpoint without the hash at the end of its name; digests of stages hold `build` itself."""
        return self.checkpoint.removesuffix(f"-{self.build_digest}")


@dataclass
class AdapterSettings:
    """LoRA layers that train in place of the weights: h = W x + (alpha / r) B A x (arXiv:2106.09685)."""

    r: int = setting(16, at_least=1)
    """Rank of B A."""
    alpha: int = setting(32, at_least=1)
    """Numerator of the scale alpha / r."""
    dropout: float = setting(0.0, at_least=0, below=1)
    """Dropout of x before A; above 0, completions no longer share their prompt."""
    targets: Any = ALL_LAYERS
    """Which linear layers: all, attention, mlp, projector (of a tower) or endings of layer names such as `q_proj` or
    `layers.0.mlp.down_proj`; one of these, or a list."""
    groups: list[str] = setting(factory=lambda: ["text"], choices=PARAMETER_GROUPS)
    """Parameter groups that get such layers: vision, audio, text. The head belongs to none of them."""

    @property
    def wanted(self) -> tuple[str, ...]:
        """The targets as a tuple, also if the key holds one target without a list."""
        return (self.targets,) if isinstance(self.targets, str) else tuple(self.targets)


def frozen_parts(groups: Iterable[str]) -> frozenset[str]:
    """Returns the parts of a model that belong to groups of `freeze`: the text model, towers and their projectors.

    >>> sorted(frozen_parts(["vision", "text"])), sorted(frozen_parts(["audio_tower", "projector"]))
    (['text', 'vision_projector', 'vision_tower'], ['audio_projector', 'audio_tower', 'vision_projector'])
    """
    parts = {
        **{tower: (f"{tower}_tower", f"{tower}_{PROJECTOR}") for tower in TOWERS},
        PROJECTOR: tuple(f"{tower}_{PROJECTOR}" for tower in TOWERS),
    }
    return frozenset(part for group in groups for part in parts.get(group, (group,)))
