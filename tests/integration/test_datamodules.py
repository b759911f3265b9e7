"""Real files of every kind, mixed in one batch, through the real encoder and the tiny omni model."""

import json
from dataclasses import replace

import clips
import numpy as np
import omni
import pytest
import torch
from PIL import Image

from lightning_mmrl.data.datamodules import Feed, OmniDataModule
from lightning_mmrl.data.media.cache import MediaCache
from lightning_mmrl.data.media.guard import GuardedDecoder
from lightning_mmrl.data.pipeline import MediaPipeline
from lightning_mmrl.data.synthetic.video_file import write_clip
from lightning_mmrl.prompts.template import PromptTemplate
from lightning_mmrl.settings.data import DropoutSettings, MediaSettings, SourceSettings, StageDataSettings
from lightning_mmrl.settings.stage import StageSettings
from lightning_mmrl.types.batches import ScoringBatch

ASK = "Which emotion?"
SAMPLES = {
    "film": (f"<video><audio>{ASK}", {"videos": ["film.mp4"], "audios": ["film.mp4"]}),
    "mute": (f"<video>{ASK}", {"videos": ["mute.mp4"]}),
    "picture": (f"<image>{ASK}", {"images": ["picture.png"]}),
    "sound": (f"<audio>{ASK}", {"audios": ["sound.wav"]}),
    "text": (f"angry angry {ASK}", {}),
    "slides": (f"angry<image><audio>{ASK}", {"images": ["portrait.jpg"], "audios": ["noise.flac"]}),
    "two": (f"<image>user<image>{ASK}", {"images": ["portrait.jpg", "picture.png"]}),
}
BROKEN = ("broken.mp4", "broken.png")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder as a user may have it: two of the clips cannot be read, and the portrait lies on its side."""
    root = tmp_path_factory.mktemp("set")
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (8, 64, 64, 3), dtype=np.uint8)
    write_clip(root / "film.mp4", frames, 8, clips.tone(300, 1.0, 16_000), 16_000)
    clips.write_grey(root / "mute.mp4", [index / 10 for index in range(12)])
    clips.write_wav(root / "sound.wav", clips.tone(440, 0.7, 44_100), 44_100)
    clips.write_wav(root / "noise.flac", rng.normal(0, 0.1, 6_400), 8_000)
    Image.fromarray(rng.integers(0, 256, (64, 96, 3), dtype=np.uint8)).save(root / "picture.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(rng.integers(0, 256, (40, 80, 3), dtype=np.uint8)).save(root / "portrait.jpg", exif=exif)
    for name in BROKEN:
        (root / name).write_bytes(b"nothing")
    samples = {**SAMPLES, "bad-clip": (f"<video>{ASK}", {"videos": ["broken.mp4"]})}
    samples["bad-picture"] = (f"<image>{ASK}", {"images": ["broken.png"]})
    lines = [
        {"id": name, **media, "solution": "angry", "messages": [turn("user", content), turn("assistant", "angry")]}
        for name, (content, media) in samples.items()
    ]
    (root / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root


def turn(role, content):
    return {"role": role, "content": content}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return omni.load(omni.build(tmp_path_factory.mktemp("omni")))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return MediaCache(tmp_path_factory.mktemp("cache"))


class Monitor:
    """Remembers what was left out."""

    def __init__(self):
        self.left_out = []

    def progress(self, *_):
        """Nothing to show."""

    def leave_out(self, manifest, num_samples, num_left_out, new):
        self.left_out += [(manifest, num_samples, each.sample_id, each.reason) for each in new]


def batch_of(kind, model, root, cache, dropout=None):
    """One batch that holds every usable sample once, in the order of the data's names."""
    monitor = Monitor()
    data = OmniDataModule(
        pipeline=MediaPipeline(
            encoder=model[0],
            settings=MediaSettings(num_frames=4),
            cache=cache,
            decoder=GuardedDecoder(workers=1, deadline_s=60.0),
        ),
        template=PromptTemplate(),
        feed=Feed(
            settings=StageSettings(
                kind=kind,
                num_steps=1,
                data=StageDataSettings(batch_size=len(SAMPLES), modality_dropout=dropout or DropoutSettings()),
            ),
            supervised=kind == "sft",
            sources={"all": SourceSettings(root=str(root), manifest="train.jsonl")},
        ),
        monitor=monitor,
    )
    data.setup("fit")
    [batch] = data.train_dataloader()
    return batch, monitor


@pytest.fixture(scope="module")
def sft(model, root, cache):
    return batch_of("sft", model, root, cache)[0]


def scored(policy, batch, rows):
    """Log-probs [rows, C] of the targets of these rows, in a batch of these rows alone."""
    scoring = ScoringBatch(
        prompts=batch.prompts.select(rows),
        completion_ids=batch.completion_ids[rows],
        completion_mask=batch.completion_mask[rows],
        group_size=1,
    )
    with torch.no_grad():
        return policy(scoring).logprobs


def names(prompts):
    return [sample.id for sample in prompts.samples]


@pytest.mark.parametrize("kind", ["sft", "rl"])
def test_a_mixed_batch_holds_every_usable_sample_and_names_the_others(kind, model, root, cache):
    batch, monitor = batch_of(kind, model, root, cache)
    prompts = batch.prompts if kind == "sft" else batch
    assert sorted(names(prompts)) == sorted(SAMPLES)
    assert {each[:2] for each in monitor.left_out} == {("train.jsonl", len(SAMPLES) + 2)}
    left_out = {name: reason for _, _, name, reason in monitor.left_out}
    assert left_out.keys() == {"bad-clip", "bad-picture"}
    assert "broken.mp4: video cannot be decoded" in left_out["bad-clip"]
    assert "broken.png: image cannot be decoded" in left_out["bad-picture"]


def test_each_prompt_owns_the_media_that_its_manifest_line_names(sft):
    counts = sft.prompts.media.counts
    kinds = {"image": "image_grid_thw", "video": "video_grid_thw", "audio": "feature_attention_mask"}
    owned = {
        name: {kind: counts[key][row] for kind, key in kinds.items()} for row, name in enumerate(names(sft.prompts))
    }
    expected = {name: {kind: content.count(f"<{kind}>") for kind in kinds} for name, (content, _) in SAMPLES.items()}
    assert owned == expected
    upright = sft.prompts.select([names(sft.prompts).index("slides")]).media.tensors["image_grid_thw"][0]
    assert upright[1] > upright[2]  # stored 80 wide and 40 high, and turned by its EXIF orientation


def test_no_row_depends_on_the_rows_beside_it(model, sft):
    policy = model[1]
    rows = list(range(len(SAMPLES)))
    together = scored(policy, sft, rows)
    assert together.std(dim=0).min() > 0.1  # rows must differ for agreement to mean anything
    for row in rows:
        torch.testing.assert_close(scored(policy, sft, [row]), together[[row]], atol=2e-4, rtol=0)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(1)).tolist()
    torch.testing.assert_close(scored(policy, sft, order), together[order], atol=2e-4, rtol=0)


@pytest.mark.parametrize(
    ("key", "other"), [("pixel_values", "image"), ("pixel_values_videos", "video"), ("input_features", "audio")]
)
def test_a_row_whose_media_are_exchanged_is_noticed(key, other, model, sft):
    media = sft.prompts.media
    mixed = {**media.tensors, key: media.tensors[key].roll(1, dims=0)}
    wrong = replace(sft, prompts=replace(sft.prompts, media=replace(media, tensors=mixed)))
    rows = list(range(len(SAMPLES)))
    change = (scored(model[1], wrong, rows) - scored(model[1], sft, rows)).abs().amax(dim=1)
    for row, name in enumerate(names(sft.prompts)):
        assert (change[row] > 1e-2) == (f"<{other}>" in SAMPLES[name][0]), name


@pytest.mark.parametrize(
    ("variant", "keys"), [("blank", {"pixel_values", "pixel_values_videos"}), ("silent", {"input_features"})]
)
def test_dropout_takes_one_modality_of_a_mixed_batch(variant, keys, model, root, cache, sft):
    batch, _ = batch_of("sft", model, root, cache, dropout=DropoutSettings(**{variant: 1.0}))
    assert names(batch.prompts) == names(sft.prompts)
    ours, full = batch.prompts.media.tensors, sft.prompts.media.tensors
    changed = {key for key in full if not torch.equal(ours[key], full[key])}
    assert changed == keys
    assert torch.equal(batch.prompts.input_ids, sft.prompts.input_ids)


def test_rollouts_of_a_mixed_batch_do_not_depend_on_its_order(model, root, cache):
    encoder, policy = model
    prompts, _ = batch_of("rl", model, root, cache)
    engine = omni.engine(encoder, policy, max_new_tokens=6)
    seeds = [[7 * row, 7 * row + 1] for row in range(len(SAMPLES))]
    order = [3, 0, 6, 2, 5, 1, 4]
    first = engine.generate(prompts, group_size=2, seeds=seeds)
    second = engine.generate(prompts.select(order), group_size=2, seeds=[seeds[row] for row in order])
    pairs = [[each.text for each in first.completions[2 * row : 2 * row + 2]] for row in order]
    assert [[each.text for each in second.completions[2 * row : 2 * row + 2]] for row in range(len(order))] == pairs
    assert len({text for pair in pairs for text in pair}) > len(order)
