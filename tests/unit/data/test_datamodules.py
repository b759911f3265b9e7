import hashlib
import json
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from shutil import copytree
from types import SimpleNamespace

import lightning
import pyarrow
import pytest
import torch
from pyarrow import parquet
from words import Monitor, row, write

from lightning_mmrl.data import datamodules
from lightning_mmrl.data.datamodules import (
    AudioDataModule,
    Feed,
    ImageDataModule,
    OmniDataModule,
    TextDataModule,
    ValidationFeed,
    VideoDataModule,
    balance_labels,
)
from lightning_mmrl.data.exclusions import Exclusions
from lightning_mmrl.errors import ConfigError, DataError, StageError
from lightning_mmrl.prompts.labels import LabelMatcher
from lightning_mmrl.prompts.template import PromptTemplate
from lightning_mmrl.settings.data import DropoutSettings, SourceSettings, StageDataSettings
from lightning_mmrl.settings.run import EvaluationSettings
from lightning_mmrl.settings.stage import StageSettings
from lightning_mmrl.types.batches import PromptBatch, SftBatch
from lightning_mmrl.types.records import Sample
from lightning_mmrl.workers.pool import CallResult

PRESETS = (ImageDataModule, VideoDataModule, AudioDataModule, TextDataModule)


def source(root, manifest="train.jsonl", **how):
    return SourceSettings(root=str(root), manifest=manifest, **how)


def feed_of(*sources, kind="rl", num_batches=3, seed=0, matcher=None, dropout=None, **data):
    of_stage = StageDataSettings(
        **{"batch_size": 2, "modality_dropout": dropout or DropoutSettings(), **data},
    )
    return Feed(
        settings=StageSettings(kind=kind, num_steps=num_batches, data=of_stage),
        supervised=kind == "sft",
        sources={f"{number} {each.manifest}": each for number, each in enumerate(sources)},
        seed=seed,
        matcher=matcher,
    )


def validated_on(root, manifest="validation.jsonl", batch_size=64, **how):
    return ValidationFeed(source=source(root, manifest, **how), settings=EvaluationSettings(batch_size=batch_size))


def module(
    pipeline, *sources, kind="rl", validation=None, preset=OmniDataModule, monitor=None, exclusions=None, **feed
):
    return preset(
        pipeline=pipeline,
        template=PromptTemplate(),
        feed=feed_of(*sources, kind=kind, **feed),
        validation=validation,
        monitor=monitor or Monitor(),
        exclusions=exclusions,
    )


def batches_of(data):
    data.setup("fit")
    return list(data.train_dataloader())


def ids_of(data):
    return [sample.id for batch in batches_of(data) for sample in batch.samples]


def texts(*names, root, manifest="train.jsonl", **how):
    write(root, *[row(name, **how) for name in names], name=manifest)


def test_an_sft_stage_gets_targets_and_an_rl_stage_prompts(root, pipeline):
    write(root, *[row(str(index), ["one.mp4"], target="sad") for index in range(3)])
    for kind, expected in (("sft", SftBatch), ("rl", PromptBatch)):
        data = module(pipeline, source(root), kind=kind, num_batches=4)
        data.setup("fit")
        loader = data.train_dataloader()
        batches = list(loader)
        assert len(loader) == len(batches) == 4
        assert all(type(batch) is expected for batch in batches)
        assert data.val_dataloader() == []


def test_the_feed_decides_order_dropout_and_limit(root, pipeline):
    write(root, *[row(str(index), ["one.mp4"]) for index in range(5)])
    how = {"batch_size": 3, "num_batches": 3}
    assert sorted(ids_of(module(pipeline, source(root, limit=3), **how))) == sorted("012" * 3)
    first, again, other = (ids_of(module(pipeline, source(root), seed=seed, **how)) for seed in (1, 1, 2))
    assert first == again != other
    blank = batches_of(module(pipeline, source(root), dropout=DropoutSettings(blank=1.0), **how))
    assert all(batch.media.tensors["levels"].eq(128).all() for batch in blank)


def test_validation_shows_each_sample_once_in_order(root, pipeline):
    write(root, row("t", ["two.mp4"]))
    write(root, *[row(str(index), ["one.mp4"]) for index in range(5)], name="validation.jsonl")
    validation = validated_on(root, batch_size=2, limit=3)
    data = module(pipeline, source(root), validation=validation)
    data.setup("fit")
    assert [[sample.id for sample in batch.samples] for batch in data.val_dataloader()] == [["0", "1"], ["2"]]


def test_sources_have_roots_of_their_own_and_shares_by_weight(root, pipeline, tmp_path):
    other = copytree(root, tmp_path / "other")
    (other / "one.mp4").write_bytes((root / "two.mp4").read_bytes())
    write(root, *[row(f"a{index}", ["one.mp4"]) for index in range(4)])
    write(other, *[row(f"b{index}", ["one.mp4"]) for index in range(3)])
    data = module(pipeline, source(root, weight=3), source(other, weight=1), batch_size=4, num_batches=6)
    batches = batches_of(data)
    assert all(Counter(sample.id[0] for sample in batch.samples) == {"a": 3, "b": 1} for batch in batches)
    assert sorted(pipeline.decoder.decoded) == [("one.mp4", "video"), ("one.mp4", "video")]
    counts = Counter(sample.id for batch in batches for sample in batch.samples)
    assert {counts[f"b{index}"] for index in range(3)} == {2}


def test_without_weights_every_sample_is_drawn_equally_often(root, pipeline):
    texts(*"abcdefg", root=root)
    texts(*"xyz", root=root, manifest="more.jsonl")
    data = module(pipeline, source(root), source(root, "more.jsonl"), batch_size=2, num_batches=10)
    drawn = ids_of(data)
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == sorted("abcdefgxyz")  # an epoch is one pass over the union
    assert drawn[:10] != drawn[10:]
    weighted = ids_of(module(pipeline, source(root, weight=7), source(root, "more.jsonl", weight=3), num_batches=10))
    assert weighted == drawn[: len(weighted)]


def test_a_weight_beside_none_is_refused(root, pipeline):
    texts(*"ab", root=root)
    data = module(pipeline, source(root, weight=3), source(root))
    with pytest.raises(
        ConfigError, match=r"weight is null, and other sources have a weight; give each source a weight"
    ):
        data.setup("fit")


def test_balanced_labels_come_equally_often_whatever_their_number(root, pipeline):
    write(root, *[row(f"s{index}", solution="sad") for index in range(9)], row("a", solution="angry"))
    data = module(pipeline, source(root), balance="label", num_batches=9)
    assert Counter(name[0] for name in ids_of(data)) == {"s": 9, "a": 9}
    assert len(set(ids_of(data))) == 10
    as_they_are = Counter(name[0] for name in ids_of(module(pipeline, source(root), num_batches=10)))
    assert as_they_are == {"s": 18, "a": 2}


def test_words_for_one_label_are_one_class_of_a_balance():
    solutions = ["Angry", "anger", "sad", "bored"]
    samples = [Sample(id=str(number), messages=(), solution=word) for number, word in enumerate(solutions)]
    matcher = LabelMatcher(labels=("angry", "sad"))
    assert balance_labels("train.jsonl", samples, matcher) == ("angry", "angry", "sad", "bored")
    assert balance_labels("train.jsonl", samples, None) == tuple(solutions)


def test_a_sample_without_a_label_cannot_be_balanced(root, pipeline):
    write(root, row("a", ["one.mp4"]), row("bad", ["one.mp4"], solution=None))
    with pytest.raises(
        DataError, match=r"^train.jsonl: sample bad has no solution, and balance: label .*set balance: null"
    ):
        module(pipeline, source(root), balance="label")
    assert pipeline.decoder.decoded == []
    assert len(batches_of(module(pipeline, source(root)))) == 3


def test_presets_change_their_kinds_and_nothing_else():
    for preset in PRESETS:
        assert preset.__bases__ == (OmniDataModule,)
        own = {name for name in vars(preset) if name not in ("__module__", "__doc__", "__firstlineno__")}
        assert own - {"__static_attributes__", "__abstractmethods__", "_abc_impl"} == {"kinds"}
    assert {preset.__name__: sorted(preset.kinds) for preset in (*PRESETS, OmniDataModule)} == {
        "ImageDataModule": ["image"],
        "VideoDataModule": ["audio", "video"],
        "AudioDataModule": ["audio"],
        "TextDataModule": [],
        "OmniDataModule": ["audio", "image", "video"],
    }
    assert set(datamodules._BY_KINDS) == {*PRESETS, OmniDataModule}


KINDS = {
    "text": ({}, "TextDataModule"),
    "image": ({"images": ["one.png"]}, "ImageDataModule"),
    "audio": ({"audios": ["one.wav"]}, "AudioDataModule"),
    "video": ({"videos": ["one.mp4"]}, "VideoDataModule"),
    "film": ({"videos": ["one.mp4"], "audios": ["one.wav"]}, "VideoDataModule"),
    "slides": ({"images": ["one.png"], "audios": ["one.wav"]}, "OmniDataModule"),
}
TAKES = {
    ImageDataModule: {"text", "image"},
    AudioDataModule: {"text", "audio"},
    VideoDataModule: {"text", "audio", "video", "film"},
    TextDataModule: {"text"},
    OmniDataModule: set(KINDS),
}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("preset", TAKES)
def test_a_module_takes_its_kinds_and_names_the_one_that_takes_others(preset, name, root, pipeline):
    media, taker = KINDS[name]
    write(root, row("good"), row("bad", **media))
    if name in TAKES[preset]:
        assert set(ids_of(module(pipeline, source(root), preset=preset))) == {"good", "bad"}
        return
    with pytest.raises(
        DataError,
        match=rf"^train.jsonl: sample bad has <(image|audio|video)> media, which {preset.__name__} does not take; "
        f"use {taker}$",
    ):
        module(pipeline, source(root), preset=preset)
    assert pipeline.decoder.decoded == []


def test_validation_data_are_held_to_the_kinds_as_well(root, pipeline):
    write(root, row("a"))
    write(root, row("v", images=["one.png"]), name="validation.jsonl")
    with pytest.raises(DataError, match=r"validation.jsonl: sample v has <image> media, which TextDataModule"):
        module(
            pipeline,
            source(root),
            preset=TextDataModule,
            validation=validated_on(root),
        )


def test_a_kind_the_model_does_not_read_is_refused_before_another_source_is_decoded(root, pipeline):
    pipeline.encoder.media_kinds = frozenset({"video"})
    write(root, row("a", ["one.mp4"]))
    write(root, row("b", images=["one.png"]), name="more.jsonl")
    with pytest.raises(DataError, match=r"more.jsonl: sample b has <image> media, and Words reads"):
        module(pipeline, source(root), source(root, "more.jsonl"))
    assert pipeline.decoder.decoded == []


def test_bad_clips_are_named_for_their_source_and_never_drawn(root, pipeline):
    write(root, row("a", ["one.mp4"]), row("bad1", ["broken.mp4"]), row("c"))
    write(root, row("bad2", images=["broken.png"]), row("e"), name="more.jsonl")
    monitor = Monitor()
    data = module(pipeline, source(root), source(root, "more.jsonl"), monitor=monitor, num_batches=10)
    assert set(ids_of(data)) == {"a", "c", "e"}
    left_out = [(manifest, usable, [name for name, _ in named]) for manifest, usable, named in monitor.left_out]
    assert sorted(left_out) == [("more.jsonl", 1, ["bad2"]), ("train.jsonl", 2, ["bad1"])]
    assert data.streamed.reasons.keys() == {1, 3}


def test_a_source_without_a_usable_sample_is_refused(root, pipeline):
    write(root, row("a"))
    write(root, row("b", ["broken.mp4"]), name="more.jsonl")
    with pytest.raises(DataError, match=r"^more\.jsonl: all 1 samples cannot be used; the first: .*broken\.mp4"):
        batches_of(module(pipeline, source(root), source(root, "more.jsonl")))


def test_an_empty_manifest_is_refused(root, pipeline):
    write(root)
    with pytest.raises(DataError, match=r"train\.jsonl holds no samples"):
        module(pipeline, source(root))


def test_a_limit_above_the_set_means_all_of_it(root, pipeline):
    texts("a", "b", root=root)
    assert ids_of(module(pipeline, source(root, limit=99))) == ids_of(module(pipeline, source(root)))


def test_one_sample_fills_every_batch(root, pipeline):
    texts("a", root=root)
    assert ids_of(module(pipeline, source(root))) == ["a"] * 6


def test_a_batch_larger_than_the_set_goes_on_with_the_next_pass(root, pipeline):
    texts("a", "b", "c", root=root)
    found = ids_of(module(pipeline, source(root), batch_size=7, num_batches=1))
    assert sorted(found[:3]) == sorted(found[3:6]) == ["a", "b", "c"]
    assert len(found) == 7


HERE = Path("set")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: feed_of(source(HERE, weight=0)), r"train\.jsonl\.weight is 0; it must be above 0"),
        (lambda: feed_of(source(HERE, weight=float("nan"))), r"train\.jsonl\.weight is nan; it must be above 0"),
        (lambda: feed_of(source(HERE, limit=0)), r"train\.jsonl\.limit is 0; it must be at least 1, or null"),
        (lambda: validated_on(HERE, limit=-1), r"validation\.limit is -1; it must be at least 1, or null"),
        (feed_of, "a stage has no source of data; give a manifest"),
        (lambda: feed_of(source(HERE), batch_size=0), r"data\.batch_size is 0; it must be at least 1"),
        (lambda: feed_of(source(HERE), balance="speaker"), r"data\.balance is 'speaker', which is no choice"),
    ],
)
def test_a_feed_that_makes_no_sense_is_refused(make, reason):
    with pytest.raises(ConfigError, match=reason):
        make()


def test_the_state_of_other_samples_or_another_order_is_refused(root, pipeline):
    texts("a", "b", root=root)
    old = module(pipeline, source(root))
    old.setup("fit")
    state = old.state_dict()
    texts("a", "c", root=root)
    for new, reason in [
        (module(pipeline, source(root)), "the samples of train.jsonl have changed"),
        (old, None),
        (module(pipeline, source(root), seed=5), "the samples of train.jsonl have changed"),
    ]:
        new.setup("fit")
        if reason is None:
            new.load_state_dict(state)
            continue
        with pytest.raises(StageError, match=reason):
            new.load_state_dict(state)
    texts("a", "b", root=root)
    other = module(pipeline, source(root), seed=5)
    other.setup("fit")
    with pytest.raises(StageError, match="seed was 0 and is 5"):
        other.load_state_dict(state)


def test_setting_up_again_does_not_forget_what_is_consumed(root, pipeline):
    texts("a", "b", root=root)
    data = module(pipeline, source(root))
    data.setup("fit")
    data.sampler.advance(2)
    data.setup("validate")
    assert data.state_dict()["sampler"]["consumed"] == 2


class Listener(lightning.LightningModule):
    """Remembers what it trained on, and saves or stops when told."""

    automatic_optimization = False

    def __init__(self, save_after=None, path=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen, self._save_after, self._path = [], save_after, path

    def training_step(self, batch, batch_idx):
        self.seen.append([sample.id for sample in batch.samples])

    def on_train_batch_end(self, outputs, batch, batch_idx):
        if len(self.seen) == self._save_after:
            self.trainer.save_checkpoint(self._path)
            self.trainer.should_stop = True

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(data, listener, directory, **how):
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        val_check_interval=2,
        default_root_dir=directory,
    )
    trainer.fit(listener, datamodule=data, **how)
    return listener.seen


@pytest.mark.parametrize("cut", [1, 3, 4])
@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec.*is deprecated")
def test_lightning_resumes_with_the_batch_after_the_last_one(cut, root, pipeline, tmp_path):
    texts("a", "b", "c", root=root)
    texts(*"defg", root=root, manifest="more.jsonl")
    texts("v", root=root, manifest="validation.jsonl")

    def data():
        validation = validated_on(root)
        sources = source(root, weight=2), source(root, "more.jsonl", weight=1)
        return module(pipeline, *sources, num_batches=6, seed=3, validation=validation)

    whole = fit(data(), Listener(), tmp_path)
    checkpoint = tmp_path / "cut.ckpt"
    first = fit(data(), Listener(cut, checkpoint), tmp_path)
    rest = fit(data(), Listener(), tmp_path, ckpt_path=checkpoint, weights_only=True)
    assert len(first) == cut
    assert len(whole) == 6
    assert first + rest == whole


@pytest.mark.parametrize(("batch_size", "sizes"), [(3, [[1, 1], [2, 1]]), (64, [[2], [2]]), (1, [[1] * 4, [1] * 4])])
def test_ranks_validate_in_step_and_together_on_every_sample(root, pipeline, batch_size, sizes):
    """One whose share of a batch would be empty repeats a sample of another rank."""
    write(root, row("a"))
    write(root, *(row(f"v{number}") for number in range(4)), name="val.jsonl")
    feed = validated_on(root, "val.jsonl", batch_size)
    data = module(pipeline, source(root), validation=feed)
    data.setup("fit")
    alone = [[sample.id for sample in batch.samples] for batch in data.val_dataloader()]
    assert alone == [
        [f"v{number}" for number in range(start, min(start + batch_size, 4))] for start in range(0, 4, batch_size)
    ]
    found = []
    for rank in range(2):  # every sample is decided on, so ranks only compare what they know
        data._ranks = SimpleNamespace(rank=rank, world_size=2, gather=lambda item: [item, item])
        found.append([[sample.id for sample in batch.samples] for batch in data.val_dataloader()])
    assert [[len(batch) for batch in each] for each in found] == sizes
    assert {name for each in found for batch in each for name in batch} == {f"v{number}" for number in range(4)}


def refills(data, count):
    return [[sample.id for sample in data.refill_batch().samples] for _ in range(count)]


def test_further_prompts_have_an_order_of_their_own_which_the_loader_does_not_notice(root, pipeline):
    texts(*"abcdefgh", root=root)
    data, other = module(pipeline, source(root), num_batches=8), module(pipeline, source(root), num_batches=8)
    data.setup("fit")
    found = refills(data, 8)
    names = [name for batch in found for name in batch]
    assert sorted(names[:8]) == sorted(names[8:]) == list("abcdefgh")
    assert names != ids_of(other)
    assert ids_of(data) == ids_of(other)
    again = module(pipeline, source(root, weight=3.0), num_batches=2)
    again.setup("fit")
    assert refills(again, 8) == found
    reseeded = module(pipeline, source(root), num_batches=8, seed=1)
    reseeded.setup("fit")
    assert refills(reseeded, 8) != found


def test_further_prompts_go_on_where_a_state_left_them_and_keep_the_mixture(root, pipeline):
    texts(*"abcdefgh", root=root)
    texts(*"xyz", root=root, manifest="other.jsonl")
    sources = source(root, weight=3.0), source(root, "other.jsonl", weight=1.0)
    data, later = module(pipeline, *sources), module(pipeline, *sources)
    data.setup("fit")
    found = refills(data, 3)
    state = data.state_dict()
    found += refills(data, 5)
    assert sum(name in "xyz" for batch in found for name in batch) == 4
    later.setup("fit")
    assert refills(later, 1) == found[:1]
    later.load_state_dict(state)
    assert refills(later, 5) == found[3:]


@pytest.mark.parametrize("first_failing", [("two.mp4",), ()])
def test_a_resume_draws_the_same_samples_whatever_can_be_decoded_by_then(root, pipeline, tmp_path, first_failing):
    """A worker that died for good in the first run is well in the second: the order of the data is as it was."""
    write(root, row("a", ["one.mp4"]), row("b", ["two.mp4"]), *[row(name) for name in "cde"])
    path = tmp_path / "run" / "exclusions.jsonl"

    def process(failing, exclusions):
        decode_all = pipeline.decoder.decode_all

        def decode(tasks, on_done):
            def told(index, outcome):
                failed = tasks[index].path.name in failing
                on_done(index, CallResult(error="worker died") if failed else outcome)

            decode_all(tasks, told)

        session = SimpleNamespace(decode_all=decode, end=lambda: None)
        own = replace(pipeline, decoder=SimpleNamespace(session=lambda: nullcontext(session)))
        data = module(own, source(root), exclusions=exclusions, num_batches=4)
        data.setup("fit")
        return data

    first = process(first_failing, Exclusions(path))
    expected = [sample.id for batch in first.train_dataloader() for sample in batch.samples]
    first.sampler.advance()
    state = first.state_dict()
    again = process((), Exclusions(path))
    again.load_state_dict(state)
    assert [sample.id for batch in again.train_dataloader() for sample in batch.samples] == expected[2:]
    assert ("b" in expected) == (not first_failing)


def test_a_validation_knows_how_many_samples_it_judges(root, pipeline):
    texts("a", root=root)
    write(root, row("b"), row("bad", ["broken.mp4"]), row("c"), name="validation.jsonl")
    data = module(pipeline, source(root), validation=validated_on(root))
    data.setup("fit")
    assert data.num_validated() == 3
    assert [sample.id for batch in data.val_dataloader() for sample in batch.samples] == ["b", "c"]
    assert data.num_validated() == 2
    assert module(pipeline, source(root)).num_validated() == 0


def test_a_source_may_be_a_published_file(pipeline, root):
    [published] = [
        {"problem": "<image>Which?", "answer": "sad", "images": [{"bytes": (root / "one.png").read_bytes()}]}
    ]
    parquet.write_table(pyarrow.Table.from_pylist([published] * 2), root / "train.parquet")
    write(root, row("a", images=["one.png"]), row("b", images=["one.png"]))
    plain = batches_of(module(pipeline, source(root)))
    for name in (None, "geometry3k"):
        found = batches_of(module(pipeline, source(root, "train.parquet", format=name)))
        assert [batch.input_ids.tolist() for batch in found] == [batch.input_ids.tolist() for batch in plain]


def test_the_fingerprint_is_that_of_the_lists_of_ids_as_python_writes_them(root, pipeline):
    names = [["a", "it's", 'say "b"', "\u00e4\n"], ["c"]]
    for number, ids in enumerate(names):
        rows = [{"id": each, "messages": [{"role": "user", "content": "?"}]} for each in ids]
        (root / f"{number}.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    for used in (names, names[:1], names[::-1]):
        made = module(pipeline, *(source(root, f"{names.index(ids)}.jsonl") for ids in used))
        made.setup("fit")
        expected = hashlib.blake2b(repr(used).encode(), digest_size=8).hexdigest()
        assert made.state_dict()["samples"] == expected
