"""Names of media tensors in the output of transformers' processors and in the input of its models."""

AUDIO_FEATURES, AUDIO_MASK = "input_features", "feature_attention_mask"
IMAGE_PIXELS, IMAGE_GRID = "pixel_values", "image_grid_thw"
VIDEO_PIXELS, VIDEO_GRID, VIDEO_SECONDS = "pixel_values_videos", "video_grid_thw", "video_second_per_grid"
IMAGE_SCALE, VIDEO_SCALE = "image_scale", "video_scale"
"""Names of our own for mean and standard deviation of each color [1, 2, 3], by which bytes are normalized."""
VIDEO_TIMES = "video_timestamps"
"""A name of our own, for families that write the time in seconds of each temporal patch of a clip as text."""
TIMES = frozenset({VIDEO_SECONDS, VIDEO_TIMES})
"""Keys that positions and text need, but no tower."""
