"""Keys of frames and sizes that contradict each other."""

from lightning_mmrl.errors import ConfigError
from lightning_mmrl.settings.data import MediaSettings

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
