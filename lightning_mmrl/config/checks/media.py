"""Keys of frames and sizes that contradict each other, and a cache of features that no stage can use."""

from lightning_mmrl.errors import ConfigError
from lightning_mmrl.settings.data import MediaSettings
from lightning_mmrl.settings.model import PARAMETER_GROUPS, TOWERS, frozen_parts
from lightning_mmrl.settings.run import RunSettings

_BOUNDS = (
    ("min_frames", "max_frames"),
    ("min_frame_pixels", "max_frame_pixels"),
    ("min_frame_pixels", "total_pixels"),
    ("min_image_pixels", "max_image_pixels"),
)
"""Keys whose first may not be above the second."""


def check_media(media: MediaSettings) -> None:
    """Refuses bounds that contradict each other, and bounds of a number of frames that nothing reads.

    Raises:
        ConfigError: Naming the keys and their values.
    """
    for low, high in _BOUNDS:
        least, most = getattr(media, low), getattr(media, high)
        if least is not None and most is not None and least > most:
            raise ConfigError(
                f"data.media.{low} is {least}, above data.media.{high} {most}; lower {low} or raise {high}"
            )
    least, most = media.min_frames, media.max_frames
    if least is not None and most is not None and least == most and least % 2:
        raise ConfigError(
            f"data.media.min_frames and data.media.max_frames are {least}, and the number of frames is even; set both "
            f"to {least + 1}"
        )
    for key in ("min_frames", "max_frames"):
        value = getattr(media, key)
        if value is not None and media.fps is None:
            raise ConfigError(
                f"data.media.{key} is {value}, and without data.media.fps clips have num_frames frames; set "
                f"data.media.fps, or data.media.{key}=null"
            )


def check_feature_cache(config: RunSettings) -> None:
    """Refuses a cache that no stage could use; the outputs of a tower that trains are out of date after a step.

    Raises:
        ConfigError: No stage freezes a tower.
    """
    stages = config.trained.values()
    # A tower does not change if it is frozen, or if the stage trains an adapter with no layers in the tower.
    trained = [set(PARAMETER_GROUPS if stage.adapter is None else stage.adapter.groups) for stage in stages]
    whole = [{t for t in TOWERS if frozen_parts([t]) <= frozen_parts(stage.freeze)} for stage in stages]
    frozen = [own_whole | set(TOWERS) - own for own_whole, own in zip(whole, trained, strict=True)]
    if config.model.feature_cache is not None and not any(frozen):
        raise ConfigError(
            "model.feature_cache is set, and no stage freezes a media tower with its projector; add vision and audio, "
            "as far as the model has them, to stages.NAME.freeze, or set model.feature_cache=null"
        )
