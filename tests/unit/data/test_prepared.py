from dataclasses import replace

import pytest
import torch
from words import Monitor, row, write

from lightning_mmrl.data.datamodules import eval_loader
from lightning_mmrl.data.media.guard import GuardedDecoder
from lightning_mmrl.data.prepared import JoinedSets, PreparedSet
from lightning_mmrl.data.sampler import Draw
from lightning_mmrl.data.schema import read_manifest
from lightning_mmrl.errors import DataError, MediaError
from lightning_mmrl.prompts.template import PromptTemplate
from lightning_mmrl.settings.data import MediaSettings, PromptSettings


@pytest.fixture
def monitor():
    return Monitor()


def prepared(root, pipeline, *rows, supervised=False, template=PromptTemplate()):  # noqa: B008  frozen
    samples = read_manifest(write(root, *rows), root)
    return PreparedSet(samples, media_root=root, pipeline=pipeline, template=template, supervised=supervised)


def test_each_medium_is_decoded_once_for_all_sets_and_passes(root, pipeline):
    rows = [row("a", ["one.mp4"], ["one.wav"]), row("b", ["one.mp4"]), row("c", ["two.mp4"], ["one.wav"]), row("d")]
    rows += [row("e", images=["one.png"]), row("f", images=["one.png", "one.png"])]
    for _ in range(2):
        dataset = prepared(root, pipeline, *rows)
        dataset.prepare("train.jsonl", Monitor())
        for _ in range(2):
            [dataset[Draw(index=index, serial=index)] for index in range(6)]
    assert sorted(pipeline.decoder.decoded) == [
        ("one.mp4", "video"),
        ("one.png", "image"),
        ("one.wav", "audio"),
        ("two.mp4", "video"),
    ]


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
    media = [("preparing x", 1, 3), ("preparing x", 2, 3), ("preparing x", 3, 3)]
    assert monitor.steps == [*media, ("trying prompts of x", 1, 2), ("trying prompts of x", 2, 2)]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (row("bad", ["broken.mp4"]), "broken.mp4: video cannot be decoded"),
        (row("bad", ["one.mp4"], ["broken.mp4"]), "broken.mp4: sound cannot be decoded"),
        (row("bad", ["hangs.mp4"]), "hangs.mp4: deadline of 30 s exceeded"),
        (row("bad", audios=["long.wav"]), "long.wav: longer than the window"),
        (row("bad", images=["broken.png"]), "broken.png: image cannot be decoded"),
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
    with pytest.raises(DataError, match=r"^train\.jsonl: all 2 samples cannot be used; the first: .*broken\.mp4"):
        dataset.prepare("train.jsonl", Monitor())


ODD = [
    RuntimeError("shape [1, 0]"),
    IndexError("index out of range"),
    StopIteration(),
    ZeroDivisionError("division by zero"),
    AssertionError("width"),
    MediaError("too short"),
    AttributeError("no such thing"),
]


@pytest.mark.parametrize("error", ODD, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("where", ["encode_audio", "encode_prompt", "encode_target"])
def test_whatever_an_encoder_raises_is_the_samples(root, pipeline, error, where, monkeypatch):
    """The sound of two seconds, or the prompt or target with a Q, is more than the encoder can take."""
    encoder, original = pipeline.encoder, getattr(pipeline.encoder, where)

    def odd(*arguments):
        if "Q" in repr(arguments) or getattr(arguments[0], "duration_s", 0) > 1.5:
            raise error
        return original(*arguments)

    monkeypatch.setattr(encoder, where, odd)
    bad = {
        "encode_audio": row("bad", audios=["long.wav"], target="sad"),
        "encode_prompt": row("bad", text="Q", target="sad"),
        "encode_target": row("bad", target="Q"),
    }[where]
    good = [row(name, audios=["one.wav"], target="sad") for name in ("a", "b")]
    dataset = prepared(root, pipeline, good[0], bad, good[1], supervised=True)
    dataset.prepare("train.jsonl", Monitor())
    assert [sample.id for sample in dataset.samples] == ["a", "b"]
    [left_out] = dataset.quarantined
    assert left_out.sample_id == "bad"
    expected = str(error) if isinstance(error, MediaError) else f"{type(error).__name__}: {error}"
    assert left_out.reason == (f"{root / 'long.wav'}: {expected}" if where == "encode_audio" else expected)


@pytest.mark.parametrize("error", ODD, ids=lambda error: type(error).__name__)
def test_no_error_leaves_the_data_set_as_a_loop_would_take_for_its_end(root, pipeline, error, monkeypatch):
    """A list that reads to the first StopIteration would be short, without a word."""
    dataset = prepared(root, pipeline, *[row(name) for name in "abc"])
    dataset.prepare("train.jsonl", Monitor())
    loader = eval_loader(dataset, batch_size=1, pad_token_id=0)

    def odd(*_):
        raise error

    monkeypatch.setattr(pipeline.encoder, "encode_prompt", odd)
    with pytest.raises(DataError, match=r"^sample a: ") as caught:
        list(loader)
    assert caught.value.__cause__ is error
    joined = JoinedSets([dataset])
    with pytest.raises(DataError, match=r"^sample b: "):
        joined[Draw(index=1, serial=0)]


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: tried 9")])
def test_a_machine_without_memory_is_no_fault_of_a_sample(root, pipeline, error, monkeypatch):
    def short(*_):
        raise error

    for name, bad in (("encode_video", row("a", ["one.mp4"])), ("encode_prompt", row("a"))):
        with monkeypatch.context() as patched:
            patched.setattr(pipeline.encoder, name, short)
            with pytest.raises(type(error)) as caught:
                prepared(root, pipeline, row("b"), bad).prepare("train.jsonl", Monitor())
            assert caught.value is error


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("kind", ["image", "video", "audio"])
def test_encoded_values_that_are_not_finite_are_found_before_they_are_cached(root, pipeline, kind, value, monkeypatch):
    def spoiled(_):
        return {"values": torch.tensor([[0.0, value, 1.0, value]])}

    monkeypatch.setattr(pipeline.encoder, f"encode_{kind}", spoiled)
    bad = {
        "image": row("bad", images=["one.png"]),
        "video": row("bad", ["one.mp4"]),
        "audio": row("bad", [], ["one.wav"]),
    }
    dataset = prepared(root, pipeline, row("a"), bad[kind])
    for _ in range(2):  # a second time too: nothing of it lies in the cache
        dataset = prepared(root, pipeline, row("a"), bad[kind])
        dataset.prepare("train.jsonl", Monitor())
        [left_out] = dataset.quarantined
        assert "2 of 4 encoded values (values) are not finite" in left_out.reason
        assert left_out.reason.startswith(str(root / "one."))


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (row("bad", text="x" * 60, target="y" * 39), None),
        (row("bad", text="x" * 60, target="y" * 40), "its prompt and target take 101 positions, and the model has 100"),
        (row("bad", target="like @"), "its target holds a token that stands for media"),
    ],
)
def test_a_target_that_the_model_cannot_say_is_left_out(root, pipeline, bad, reason):
    dataset = prepared(root, pipeline, row("a", target="sad"), bad, supervised=True)
    dataset.prepare("train.jsonl", Monitor())
    assert [left_out.reason[: len(reason or "")] for left_out in dataset.quarantined] == (
        [] if reason is None else [reason]
    )
    dataset = prepared(root, pipeline, row("a", target="sad"), bad)
    dataset.prepare("train.jsonl", Monitor())
    assert dataset.quarantined == ()  # nothing is learned from the target here


def test_what_a_decoder_finds_odd_is_told_once_by_file(root, pipeline, monitor, monkeypatch):
    warned = f"{root / 'one.wav'}: both channels cancel out"
    decode_all = pipeline.decoder.decode_all

    def odd(tasks, on_done):
        def told(index, outcome):
            if tasks[index].path.name == "one.wav":
                outcome = replace(outcome, value=replace(outcome.value, warnings=(warned,)))
            on_done(index, outcome)

        decode_all(tasks, told)

    monkeypatch.setattr(pipeline.decoder, "decode_all", odd)
    spans = {"path": "one.wav", "start": 0.0, "end": 0.5}
    dataset = prepared(root, pipeline, row("a", [], ["one.wav"]), row("b", [], [spans]), row("c", ["one.mp4"]))
    dataset.prepare("train.jsonl", monitor)
    assert monitor.warnings == [("train.jsonl", [warned])]
    assert dataset.quarantined == ()


def test_a_file_that_cannot_be_read_costs_its_sample(root, pipeline, monkeypatch):
    def key(file, ref, *_):
        if file.path.name == "two.mp4":
            raise PermissionError(13, "Permission denied")
        return file.path.name

    monkeypatch.setattr("lightning_mmrl.data.pipeline.media_key", key)
    dataset = prepared(root, pipeline, row("a", ["one.mp4"]), row("bad", ["two.mp4"]))
    dataset.prepare("train.jsonl", Monitor())
    [left_out] = dataset.quarantined
    assert left_out.reason == f"{root / 'two.mp4'}: cannot be read (Permission denied)"


def test_a_cache_that_cannot_be_written_is_no_fault_of_a_sample(root, pipeline, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pipeline.cache, "put", full)
    with pytest.raises(OSError, match="No space left"):
        prepared(root, pipeline, row("a", ["one.mp4"]), row("b")).prepare("train.jsonl", Monitor())


def test_a_modality_can_be_taken_away(root, pipeline):
    dataset = prepared(root, pipeline, row("a", ["one.mp4"], ["one.wav"], ["one.png"]))
    dataset.prepare("train.jsonl", Monitor())
    shown = {}
    for variant in ("full", "silent", "blank"):
        prompt = dataset[Draw(index=0, serial=0, variant=variant)].prompt
        shown[variant] = tuple(prompt[key].flatten().tolist() for key in ("levels", "sound", "corner"))
    levels = [pytest.approx(20, abs=2), pytest.approx(40, abs=2)]  # the codec rounds grey levels
    assert shown == {
        "full": (levels, [1.0, 1.0], [10, 20, 30]),
        "silent": (levels, [0.0, 0.0], [10, 20, 30]),
        "blank": ([128.0, 128.0], [1.0, 1.0], [128, 128, 128]),
    }


def test_a_template_and_a_target_reach_the_encoder(root, pipeline):
    template = PromptTemplate(PromptSettings(system="S", suffix=" now", prefill="<think>"))
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
            {"template": PromptTemplate(PromptSettings(prefill="<think>"))},
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


@pytest.mark.parametrize("kind", ["image", "video", "audio"])
def test_a_medium_that_the_model_does_not_read_is_refused_before_anything_is_decoded(kind, root, pipeline):
    pipeline.encoder.media_kinds = frozenset({"image", "video", "audio"} - {kind})
    bad = {
        "image": row("bad", images=["one.png"]),
        "video": row("bad", ["two.mp4"]),
        "audio": row("bad", audios=["one.wav"]),
    }[kind]
    good = row("a", ["one.mp4"]) if kind != "video" else row("a", images=["one.png"])
    dataset = prepared(root, pipeline, good, bad)
    reads = ", ".join(["text", *sorted(pipeline.encoder.media_kinds)])
    with pytest.raises(
        DataError,
        match=f"^train.jsonl: sample bad has <{kind}> media, and Words reads {reads}; choose a model",
    ):
        dataset.prepare("train.jsonl", Monitor())
    assert pipeline.decoder.decoded == []


def test_joined_sets_count_through(root, pipeline):
    sets = [prepared(root, pipeline, *[row(name) for name in names]) for names in ("ab", "c", "def")]
    joined = JoinedSets(sets)
    assert len(joined) == 6
    assert [joined[Draw(index=index, serial=9)].sample.id for index in range(6)] == list("abcdef")


def test_a_clip_that_crashes_or_breaks_limits_costs_that_clip_in_real_workers(root, pipeline):
    guarded = replace(pipeline, decoder=GuardedDecoder(workers=2, deadline_s=60.0))
    dataset = prepared(root, guarded, row("a", ["one.mp4"], ["one.wav"]), row("bad", ["broken.mp4"]))
    dataset.prepare("train.jsonl", Monitor())
    assert [each.sample_id for each in dataset.quarantined] == ["bad"]
    assert dataset[Draw(index=0, serial=0)].prompt["sound"].tolist() == [[[1.0, 1.0]]]


def test_an_evaluation_can_take_a_modality_away(root, pipeline):
    dataset = prepared(root, pipeline, row("a", ["one.mp4"]), row("b", ["two.mp4"]))
    dataset.prepare("train.jsonl", Monitor())
    [batch] = eval_loader(dataset, batch_size=8, pad_token_id=0, variant="blank")
    assert batch.media.tensors["levels"].eq(128).all()
    [batch] = eval_loader(dataset, batch_size=8, pad_token_id=0)
    assert not batch.media.tensors["levels"].eq(128).any()


def test_the_media_of_a_prompt_have_one_key_for_what_is_shown(root, pipeline):
    rows = [row("a", ["one.mp4"], ["one.wav"]), row("b", ["one.mp4"], ["one.wav"], text="Why?"), row("c", ["one.mp4"])]
    rows += [row("d", ["two.mp4"], ["one.wav"]), row("e", images=["one.png", "one.png"]), row("f")]
    dataset = prepared(root, pipeline, *rows)
    dataset.prepare("train.jsonl", Monitor())

    def key(index, variant="full"):
        return dataset[Draw(index=index, serial=0, variant=variant)].media_key

    assert key(0) == key(1)
    assert key(5) == key(5, "silent") == ""
    assert key(2) == key(2, "silent")
    keys = [key(index) for index in (0, 2, 3, 4)] + [key(0, "silent"), key(0, "blank"), key(2, "blank")]
    assert len(set(keys)) == len(keys)
    finer = replace(pipeline, settings=MediaSettings(num_frames=4))
    other = prepared(root, finer, *rows)
    other.prepare("train.jsonl", Monitor())
    assert other[Draw(index=2, serial=0)].media_key not in keys
    [batch] = eval_loader(dataset, batch_size=8, pad_token_id=0)
    assert batch.media.keys == tuple(key(index) for index in range(6))
