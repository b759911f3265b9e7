import json
from dataclasses import replace

import clips
import pytest
import torch

from lightning_mmrl.data.datamodules import Feed, OmniDataModule, Source, ValidationFeed, eval_loader
from lightning_mmrl.data.media.cache import MediaCache
from lightning_mmrl.data.media.guard import GuardedDecoder, decode
from lightning_mmrl.data.prepared import MediaPipeline, PreparedSet
from lightning_mmrl.data.sampler import Draw, ModalityDropout
from lightning_mmrl.data.schema import read_manifest
from lightning_mmrl.errors import DataError, MediaError, MmrlError
from lightning_mmrl.prompts.template import PromptTemplate
from lightning_mmrl.types.batches import PromptBatch, SftBatch
from lightning_mmrl.types.media import MediaSettings
from lightning_mmrl.workers.pool import Outcome


class WordEncoder:
    """One token per character; a video is its frames' mean levels, a sound its length."""

    fingerprint, pad_token_id, media_kinds = "words", 0, frozenset({"image", "video", "audio"})

    def encode_image(self, image):
        return {"corner": torch.tensor(image.pixels[0, 0].tolist())[None]}

    def blank_image(self, encoded):
        return {"corner": torch.full_like(encoded["corner"], 128)}

    def encode_video(self, video):
        return {"levels": torch.tensor(video.frames.mean(axis=(1, 2, 3), dtype="float32"))[:, None].contiguous()}

    def encode_audio(self, audio):
        if audio.duration_s > 1.5:
            raise MediaError("longer than the window; cut it")
        return {"sound": torch.full((1, 1, 2), audio.duration_s)}

    def blank_video(self, encoded):
        return {"levels": torch.full_like(encoded["levels"], 128.0)}

    def silent_audio(self, encoded):
        return {"sound": torch.zeros_like(encoded["sound"])}

    def encode_prompt(self, messages, prefill, media):
        text = "|".join(turn.content for turn in messages) + prefill
        ids = torch.tensor([ord(letter) for letter in text])
        merged = {name: value for each in media for name, value in each.items()}
        return {
            "input_ids": ids,
            "position_ids": torch.arange(len(ids)).expand(3, -1),
            "next_position": torch.tensor([len(ids)]),
            **merged,
        }

    def encode_target(self, text):
        return [*map(ord, text), 1]


class CountingDecoder:
    """Decodes here, in reverse order, and remembers what."""

    def __init__(self):
        self.decoded = []

    def decode_all(self, tasks, on_done):
        for index, task in reversed(list(enumerate(tasks))):
            self.decoded.append((task.path.name, task.ref.kind))
            try:
                outcome = Outcome(value=decode(task))
            except MmrlError as error:
                outcome = Outcome(error=str(error))
            if task.path.name == "hangs.mp4":
                outcome = Outcome(error="deadline of 30 s exceeded")
            on_done(index, outcome)


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "set"
    root.mkdir()
    for name, frame_s in (("one.mp4", 0.1), ("two.mp4", 0.2), ("hangs.mp4", 0.3)):
        clips.write_grey(root / name, [frame_s * index for index in range(4)])
    clips.write_wav(root / "one.wav", clips.tone(440, 1.0, 16_000), 16_000)
    clips.write_wav(root / "long.wav", clips.tone(440, 2.0, 16_000), 16_000)
    (root / "broken.mp4").write_bytes(b"nothing")
    return root


class Monitor:
    """Remembers what it hears."""

    def __init__(self):
        self.steps, self.left_out = [], []

    def progress(self, *step):
        self.steps.append(step)

    def quarantine(self, manifest, num_usable, left_out):
        self.left_out.append((manifest, num_usable, [(each.sample_id, each.reason) for each in left_out]))


@pytest.fixture
def monitor():
    return Monitor()


@pytest.fixture
def pipeline(tmp_path):
    return MediaPipeline(
        encoder=WordEncoder(),
        settings=MediaSettings(num_frames=2),
        cache=MediaCache(tmp_path / "cache"),
        decoder=CountingDecoder(),
    )


def row(name, videos=(), audios=(), target=None, text="Which?"):
    content = "<video>" * len(videos) + "<audio>" * len(audios) + text
    turns = [{"role": "user", "content": content}]
    turns += [] if target is None else [{"role": "assistant", "content": target}]
    return {"id": name, "messages": turns, "videos": list(videos), "audios": list(audios), "solution": "sad"}


def write(root, *rows, name="train.jsonl"):
    (root / name).write_text("".join(json.dumps(each) + "\n" for each in rows))
    return root / name


def prepared(root, pipeline, *rows, supervised=False, template=PromptTemplate()):  # noqa: B008  frozen
    samples = read_manifest(write(root, *rows), root)
    return PreparedSet(samples, media_root=root, pipeline=pipeline, template=template, supervised=supervised)


def test_each_medium_is_decoded_once_for_all_sets_and_passes(root, pipeline):
    rows = [row("a", ["one.mp4"], ["one.wav"]), row("b", ["one.mp4"]), row("c", ["two.mp4"], ["one.wav"]), row("d")]
    for _ in range(2):
        dataset = prepared(root, pipeline, *rows)
        dataset.prepare("train.jsonl", Monitor())
        for _ in range(2):
            [dataset[Draw(index=index, serial=index)] for index in range(4)]
    assert sorted(pipeline.decoder.decoded) == [("one.mp4", "video"), ("one.wav", "audio"), ("two.mp4", "video")]


def test_other_settings_decode_anew(root, pipeline):
    prepared(root, pipeline, row("a", ["one.mp4"])).prepare("train.jsonl", Monitor())
    finer = replace(pipeline, settings=MediaSettings(num_frames=4))
    dataset = prepared(root, finer, row("a", ["one.mp4"]))
    dataset.prepare("train.jsonl", Monitor())
    assert len(pipeline.decoder.decoded) == 2
    assert len(dataset[Draw(index=0, serial=0)].prompt["levels"]) == 4


def test_progress_counts_up_whatever_the_order_of_completion(root, pipeline, monitor):
    dataset = prepared(root, pipeline, row("a", ["one.mp4"], ["one.wav"]), row("b", ["two.mp4"]))
    dataset.prepare("x", monitor)
    assert monitor.steps == [("preparing x", 1, 3), ("preparing x", 2, 3), ("preparing x", 3, 3)]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (row("bad", ["broken.mp4"]), "broken.mp4: video cannot be decoded"),
        (row("bad", ["one.mp4"], ["broken.mp4"]), "broken.mp4: sound cannot be decoded"),
        (row("bad", ["hangs.mp4"]), "hangs.mp4: deadline of 30 s exceeded"),
        (row("bad", audios=["long.wav"]), "long.wav: longer than the window"),
    ],
)
def test_a_bad_clip_is_counted_named_and_left_out(root, pipeline, monitor, bad, reason):
    dataset = prepared(root, pipeline, row("a", ["one.mp4"]), bad, row("c", ["two.mp4"]))
    dataset.prepare("train.jsonl", monitor)
    assert [sample.id for sample in dataset.samples] == ["a", "c"]
    assert len(dataset) == 2
    [quarantined] = dataset.quarantined
    assert quarantined.sample_id == "bad"
    assert reason in quarantined.reason
    [(manifest, num_usable, [(name, why)])] = monitor.left_out
    assert (manifest, num_usable, name) == ("train.jsonl", 2, "bad")
    assert reason in why


def test_a_second_preparation_forgets_no_quarantine(root, pipeline):
    dataset = prepared(root, pipeline, row("a", ["one.mp4"]), row("bad", ["broken.mp4"]))
    dataset.prepare("train.jsonl", Monitor())
    dataset.prepare("train.jsonl", Monitor())
    assert [each.sample_id for each in dataset.quarantined] == ["bad"]


def test_a_set_without_a_usable_clip_is_refused(root, pipeline):
    dataset = prepared(root, pipeline, row("a", ["broken.mp4"]), row("b", ["broken.mp4"]))
    with pytest.raises(DataError, match=r"all 2 samples failed to decode; the first: .*broken\.mp4"):
        dataset.prepare("train.jsonl", Monitor())


def test_an_error_that_is_not_the_clips_is_not_hidden(root, pipeline):
    def crash(_):
        raise RuntimeError("bug")

    pipeline.encoder.encode_video = crash
    with pytest.raises(RuntimeError, match="bug"):
        prepared(root, pipeline, row("a", ["one.mp4"])).prepare("train.jsonl", Monitor())


def test_a_modality_can_be_taken_away(root, pipeline):
    dataset = prepared(root, pipeline, row("a", ["one.mp4"], ["one.wav"]))
    dataset.prepare("train.jsonl", Monitor())
    shown = {}
    for variant in ("full", "silent", "blank"):
        prompt = dataset[Draw(index=0, serial=0, variant=variant)].prompt
        shown[variant] = (prompt["levels"].flatten().tolist(), prompt["sound"].flatten().tolist())
    levels = [pytest.approx(20, abs=2), pytest.approx(40, abs=2)]  # the codec rounds grey levels
    assert shown == {
        "full": (levels, [1.0, 1.0]),
        "silent": (levels, [0.0, 0.0]),
        "blank": ([128.0, 128.0], [1.0, 1.0]),
    }


def test_a_template_and_a_target_reach_the_encoder(root, pipeline):
    template = PromptTemplate(system="S", suffix=" now", prefill="<think>")
    dataset = prepared(root, pipeline, row("a", target="<think>ok"), supervised=True, template=template)
    item = dataset[Draw(index=0, serial=0)]
    assert "".join(map(chr, item.prompt["input_ids"])) == "S|Which? now<think>"
    assert item.target_ids == (ord("o"), ord("k"), 1)


def test_targets_are_ignored_where_nothing_is_learned_from_them(root, pipeline):
    item = prepared(root, pipeline, row("a", target="sad"))[Draw(index=0, serial=0)]
    assert "".join(map(chr, item.prompt["input_ids"])) == "Which?"


@pytest.mark.parametrize(
    ("bad", "how", "reason"),
    [
        (row("bad"), {"supervised": True}, "sample bad has no assistant turn to learn from"),
        (
            row("bad", target="sad"),
            {"template": PromptTemplate(prefill="<think>")},
            "sample bad: the assistant turn 'sad' does not start",
        ),
        ({"id": "bad", "messages": [{"role": "system", "content": "x"}]}, {}, "sample bad: a prompt has no user turn"),
    ],
)
def test_turns_that_cannot_be_used_are_refused_before_anything_is_decoded(root, pipeline, bad, how, reason):
    dataset = prepared(root, pipeline, row("a", ["one.mp4"], target="<think>sad"), bad, **how)
    with pytest.raises(DataError, match=reason):
        dataset.prepare("train.jsonl", Monitor())
    assert pipeline.decoder.decoded == []


def test_a_clip_that_crashes_or_breaks_limits_costs_that_clip_in_real_workers(root, pipeline):
    guarded = replace(pipeline, decoder=GuardedDecoder(workers=2, deadline_s=60.0))
    dataset = prepared(root, guarded, row("a", ["one.mp4"], ["one.wav"]), row("bad", ["broken.mp4"]))
    dataset.prepare("train.jsonl", Monitor())
    assert [each.sample_id for each in dataset.quarantined] == ["bad"]
    assert dataset[Draw(index=0, serial=0)].prompt["sound"].tolist() == [[[1.0, 1.0]]]


def module(root, pipeline, kind, validation=None, limit=None, **feed):
    source = Source(name="train", root=root, manifest="train.jsonl", limit=limit)
    return OmniDataModule(
        pipeline=pipeline,
        template=PromptTemplate(),
        kind=kind,
        feed=Feed(sources=(source,), **feed),
        validation=validation,
        monitor=Monitor(),
    )


def test_an_sft_stage_gets_targets_and_an_rl_stage_prompts(root, pipeline):
    write(root, *[row(str(index), ["one.mp4"], target="sad") for index in range(3)])
    for kind, expected in (("sft", SftBatch), ("rl", PromptBatch)):
        data = module(root, pipeline, kind, batch_size=2, num_batches=4)
        data.setup("fit")
        loader = data.train_dataloader()
        batches = list(loader)
        assert len(loader) == len(batches) == 4
        assert all(type(batch) is expected for batch in batches)
        assert data.val_dataloader() == []


def test_the_feed_decides_order_dropout_and_limit(root, pipeline):
    write(root, *[row(str(index), ["one.mp4"]) for index in range(5)])

    def ids(**feed):
        data = module(root, pipeline, "rl", batch_size=3, num_batches=3, **feed)
        data.setup("fit")
        batches = list(data.train_dataloader())
        return [sample.id for batch in batches for sample in batch.samples], batches

    assert sorted(ids(limit=3)[0]) == sorted("012" * 3)
    assert ids(seed=1)[0] == ids(seed=1)[0] != ids(seed=2)[0]
    assert all(batch.media.tensors["levels"].eq(128).all() for batch in ids(dropout=ModalityDropout(blank=1.0))[1])


def test_validation_shows_each_sample_once_in_order(root, pipeline):
    write(root, row("t", ["two.mp4"]))
    write(root, *[row(str(index), ["one.mp4"]) for index in range(5)], name="validation.jsonl")
    validation = ValidationFeed(root=root, manifest="validation.jsonl", batch_size=2, limit=3)
    data = module(root, pipeline, "rl", validation, batch_size=1, num_batches=1)
    data.setup("fit")
    assert [[sample.id for sample in batch.samples] for batch in data.val_dataloader()] == [["0", "1"], ["2"]]


def test_an_evaluation_can_take_a_modality_away(root, pipeline):
    dataset = prepared(root, pipeline, row("a", ["one.mp4"]), row("b", ["two.mp4"]))
    dataset.prepare("train.jsonl", Monitor())
    [batch] = eval_loader(dataset, batch_size=8, pad_token_id=0, variant="blank")
    assert batch.media.tensors["levels"].eq(128).all()
    [batch] = eval_loader(dataset, batch_size=8, pad_token_id=0)
    assert not batch.media.tensors["levels"].eq(128).any()
