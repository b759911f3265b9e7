"""Keys of the data: folders, decoding, prompts, and how a stage mixes its manifests."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from lightning_mmrl.errors import ConfigError
from lightning_mmrl.settings.setting import setting, target

Ablation = Literal["silent", "blank", "text_only", "shuffled_sound", "shuffled_picture"]
ABLATIONS: tuple[Ablation, ...] = get_args(Ablation)
"""How a sample can lose a modality: its sound, its picture or both, or they are those of another sample."""
BALANCES = ("label",)
COLUMN = re.compile(r"\{(\w+)\}")
"""A column in the text of a target."""
FRAME_RULES = ("middles", "qwen_vl_utils")
FRAME_KEYS = (
    "frame_rule",
    "fps",
    "min_frames",
    "max_frames",
    "min_frame_pixels",
    "max_frame_pixels",
    "total_pixels",
    "min_image_pixels",
    "max_image_pixels",
)
"""Keys that came later than the others: digests and cache keys have them only where they are not at their default."""


@dataclass
class MediaSettings:
    """How media are decoded: the same for training, rollouts, evaluation and prediction."""

    num_frames: int = setting(8, at_least=2)
    """Frames sampled uniformly from a clip; unused with `fps`."""
    frame_rule: str = setting("middles", choices=FRAME_RULES)
    """How `num_frames` are chosen. `middles`: at the middles of equal time segments; a short clip repeats frames.
    `qwen_vl_utils`: as qwen-vl-utils chooses `nframes`, evenly from the first frame to the last, rounded to an even
    number; a clip with fewer frames is refused."""
    fps: float | None = setting(None, above=0)
    """Frames sampled per second, chosen as qwen-vl-utils chooses them; null for `num_frames`."""
    min_frames: int | None = setting(None, at_least=2)
    """Fewest frames with `fps`, as far as the clip has them, rounded up to an even number; null for 4."""
    max_frames: int | None = setting(None, at_least=2)
    """Most frames with `fps`, rounded down to an even number; null for 768."""
    min_frame_pixels: int | None = setting(None, at_least=1)
    """Pixels that a smaller frame is enlarged to; null for the processor's own."""
    max_frame_pixels: int | None = setting(None, at_least=1)
    """Pixels that a larger frame is reduced to; null for the processor's own."""
    total_pixels: int | None = setting(None, at_least=1)
    """Pixels that the frames of a clip share, two frames counting as one; `min_frame_pixels` come first. Null for
    115,200 tokens' worth if another key of frame sizes is set, else for the processor's own."""
    min_image_pixels: int | None = setting(None, at_least=1)
    """Pixels that a smaller picture is enlarged to; null for the processor's own."""
    max_image_pixels: int | None = setting(None, at_least=1)
    """Pixels that a larger picture is reduced to; null for the processor's own."""
    max_duration_s: float = setting(600.0, above=0)
    """Seconds; longer clips and sounds are refused."""
    max_pixels: int = setting(16_777_216, at_least=1)
    """Pixels of a picture or frame in its file; larger ones are refused. `max_image_pixels` and `max_frame_pixels`
    reduce them."""
    max_bytes: int = setting(268_435_456, at_least=1)
    """Bytes of a media file; larger ones are refused."""

    @property
    def chosen(self) -> dict[str, int | float | str]:
        """The keys of `FRAME_KEYS` that are not at their default, by name.

        >>> MediaSettings(fps=2.0).chosen
        {'fps': 2.0}
        """
        defaults = MediaSettings()
        values = {name: getattr(self, name) for name in FRAME_KEYS}
        return {name: value for name, value in values.items() if value != getattr(defaults, name)}

    @property
    def sizes_images(self) -> bool:
        """Whether a key says how large pictures are shown."""
        return self.min_image_pixels is not None or self.max_image_pixels is not None

    @property
    def sizes_frames(self) -> bool:
        """Whether a key says how large frames are shown."""
        return any(key is not None for key in (self.min_frame_pixels, self.max_frame_pixels, self.total_pixels))


@dataclass
class ReadAheadSettings:
    """How samples are read while the model works; the batches do not depend on it."""

    decode_workers: int = setting(2, at_least=0)
    """Processes that decode media. 0 decodes in the process that trains, for debugging: a file that hangs or crashes
    its decoder then takes the run with it."""
    prefetch_samples: int = setting(64, at_least=0)
    """Samples that each rank reads ahead of the step that takes them; 0 reads a sample when it is needed."""
    prefetch_mb: int = setting(2048, at_least=1)
    """MiB of samples that each rank holds read ahead; large clips reach it before `prefetch_samples`."""


@dataclass
class DatasetMediaSettings(ReadAheadSettings, MediaSettings):
    """Decoding, the same in every stage and evaluation, with the processes that decode and the cache of the results."""

    decode_deadline_s: float = setting(30.0, above=0)
    """Seconds for one medium; then its process is killed and replaced, and the sample is left out."""
    decode_memory_mb: int = setting(1024, at_least=1)
    """MiB that a decode worker may take beyond its size at the start (on Linux)."""
    cache_dir: str = setting(texts=False)
    """Folder of encoded media; any number of runs may share it."""
    cache_limit_gb: float | None = setting(None, above=0)
    """Gigabytes (10^9 bytes) that encoded media may take there; the least recently used ones leave first. Null for no
    limit."""


@dataclass
class DataSettings:
    """The dataset that stages and evaluations read from."""

    root: str = setting(texts=False)
    """Folder of the manifests."""
    media_root: str | None = setting(None, texts=False)
    """Folder that paths of media are relative to; null for `root`."""
    validation: str | None = setting(None, texts=False)
    """Manifest evaluated during training; null for none."""
    validation_limit: int | None = setting(None, at_least=1)
    """Use only the first samples of the validation manifest; null for all."""
    limit: int | None = setting(None, at_least=1)
    """Default of each stage's data.limit: use only the first samples of its manifest; null for all."""
    module: Any = target()
    """`_target_` of the DataModule, which says what kinds of media samples may have."""
    task: Any = target(None)
    """`_target_` of the task that judges answers; null: the task of `labels`, with the cues of `cue_lexicon`."""
    labels: list[str] = setting()
    """The closed label set; null takes it from labels.json in `root`. It may be empty if the dataset has a task."""
    cue_lexicon: str | None = None
    """File below root with cue phrases, for the consistency of thought and label; null for none."""
    build: Any = target(None)
    """`_target_` that generates the dataset at `root` if it does not exist; null for data that exist."""
    media: DatasetMediaSettings = field(default_factory=DatasetMediaSettings)
    """How media are decoded, and where the results are kept."""


@dataclass
class PromptSettings:
    """Texts put around each sample's messages."""

    system: str | None = None
    """System turn of samples that have none; null adds none."""
    prefix: str = ""
    """Begin of the last user turn's text, after the media that the turn begins with."""
    suffix: str = ""
    """End of the last user turn."""
    prefill: str = ""
    """Opening of the assistant turn, which the model continues, such as `<think>`."""
    raw: str | None = None
    """Text of the whole prompt up to the prefill, for a base model, with `{question}` where the question and its media
    go, such as "User: {question} Assistant: "; null: the checkpoint's chat template."""


@dataclass
class DropoutSettings:
    """How often a training sample loses its sound or its picture, so that a missing one is not out of distribution."""

    silent: float = 0.0
    """Probability that the sound is replaced by silence."""
    blank: float = 0.0
    """Probability that every frame is replaced by gray; never together with silence."""


@dataclass
class SourceSettings:
    """One of several manifests that a stage mixes."""

    manifest: str = ""
    """File name of the manifest, below `root`, or `FOLDER#PART` for a part of a folder; empty if a stage makes
    the data."""
    format: str | None = setting(None, texts=False)
    """Format of the manifest, such as `verl` (docs/data.md lists them); null or `auto` recognises it by its content."""
    root: str | None = setting(None, texts=False)
    """Folder of the manifest; null for the root of the stage's dataset."""
    media_root: str | None = setting(None, texts=False)
    """Folder that paths of media are relative to; null: `root`, or the dataset's media_root if `root` is null."""
    stage: str | None = setting(None, texts=False)
    """An earlier stage that makes the data; null if there is a manifest."""
    artifact: str | None = setting(None, texts=False)
    """The artifact of that stage."""
    weight: float | None = setting(None, above=0)
    """Relative share of the draws; the weights of the sources need not sum to 1. Null for all sources: each is drawn in
    proportion to its samples, so that all samples are drawn equally often."""
    limit: int | None = setting(None, at_least=1)
    """Use only the first samples; null for the limit of the stage's data."""
    target: str | None = None
    """The answer that an sft stage learns from each row of this source; null for the `target` of the stage."""

    @property
    def folder(self) -> Path:
        """The folder of a source that has a root."""
        return Path(self.root or "")

    @property
    def path(self) -> Path:
        """The path of the manifest in that folder."""
        return self.folder / self.manifest

    @property
    def media_folder(self) -> Path:
        """The folder that paths of media are relative to."""
        return Path(self.media_root or self.root or "")


def check_weights(sources: Mapping[str, SourceSettings], key: str) -> None:
    """Refuses weights of some sources only, whose relation to the sizes of the others nobody has stated.

    Raises:
        ConfigError: Some sources have a weight and others have none.
    """
    without = [name for name, source in sources.items() if source.weight is None]
    if without and len(without) < len(sources):
        raise ConfigError(
            f"{key}.{without[0]}.weight is null, and other sources have a weight; give each source a weight (1 is what "
            "null meant in earlier versions), or none of them, to draw in proportion to their samples"
        )


@dataclass
class TableSettings:
    """A rollout table that an earlier stage makes."""

    stage: str = setting(texts=False)
    """The earlier stage, such as one of kind sample."""
    artifact: str = setting("rollouts", texts=False)
    """The artifact of that stage."""


@dataclass
class MadeSettings:
    """Samples that an earlier stage makes."""

    stage: str = setting(texts=False)
    """The earlier stage, such as one of kind bridge or filter."""
    artifact: str = setting(texts=False)
    """The artifact of that stage."""


@dataclass
class StageDataSettings:
    """The training data of a stage: one manifest, or several sources in proportion to their samples or by weight."""

    dataset: str | None = setting(None, texts=False)
    """Name in `datasets` of the dataset that the stage reads and validates on; null for `data`."""
    manifest: str | None = None
    """File below the dataset's root; null if there are sources."""
    sources: dict[str, SourceSettings] = field(default_factory=dict)
    """Name to source; empty if there is a manifest."""
    module: Any = target(None)
    """`_target_` of the DataModule; null for data.module."""
    batch_size: int = setting(at_least=1)
    """Samples per optimizer step (sft, dpo) or prompts per iteration (rl), of all ranks together."""
    limit: int | None = setting(None, at_least=1)
    """Use only the first samples of the manifest, or of each source without a limit of its own; null for all."""
    balance: str | None = setting(None, choices=BALANCES)
    """`label`: every label is drawn equally often; null: every sample is drawn equally often."""
    modality_dropout: DropoutSettings = field(default_factory=DropoutSettings)
    """Modality dropout of training samples."""

    def located(
        self, data: DataSettings, made: Mapping[str, SourceSettings] | None = None
    ) -> dict[str, SourceSettings]:
        """Maps names to sources, all with a folder; a single manifest becomes one source under its own name.

        Args:
            data: The dataset of sources that name no folder.
            made: Manifest and folders of the sources that other stages made, by the name of the source. Without this
                argument, such sources have no manifest.
        """
        root, media = data.root, data.media_root
        if self.manifest:
            one = SourceSettings(manifest=self.manifest, root=root, media_root=media, limit=self.limit)
            return {self.manifest: one}
        return {
            name: replace(
                found,
                root=found.root or root,
                media_root=found.media_root or (None if found.root else media),
                weight=source.weight,
                limit=source.limit or self.limit,
                target=source.target,
            )
            for name, source in self.sources.items()
            for found in ((made or {}).get(name, source),)
        }
