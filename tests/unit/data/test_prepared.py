from dataclasses import replace

import pytest
import torch
from words import Monitor, Settled, in_order, read, row, write

from lightning_mmrl.data.in_order import Shown
from lightning_mmrl.data.media.guard import GuardedDecoder
from lightning_mmrl.data.prepared import PreparedSet
from lightning_mmrl.data.schema import read_manifest
from lightning_mmrl.data.shuffling import Shuffle
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
        assert len(Settled(dataset).usable) == 6
        for _ in range(2):
            [read(dataset, index) for index in range(6)]
    assert sorted(pipeline.decoder.decoded) == [
        ("one.mp4", "video"),
        ("one.png", "image"),
        ("one.wav", "audio"),
        ("two.mp4", "video"),
    ]


def test_other_settings_decode_anew(root, pipeline):
    Settled(prepared(root, pipeline, row("a", ["one.mp4"])))
    finer = replace(pipeline, settings=MediaSettings(num_frames=4))
    dataset = prepared(root, finer, row("a", ["one.mp4"]))
    assert len(read(dataset).prompt["levels"]) == 4
    assert len(pipeline.decoder.decoded) == 2


def test_faults_are_found_without_deciding_and_show_how_far_they_are(root, pipeline, monitor):
    rows = [row(f"s{number}", ["broken.mp4" if number in (3, 17) else "one.mp4"]) for number in range(20)]
    dataset = prepared(root, pipeline, *rows)
    faults = dataset.faults("x", monitor)
    assert faults.keys() == {"s3", "s17"}
    assert all("broken.mp4: video cannot be decoded" in reason for reason in faults.values())
    assert monitor.steps == [("preparing x", 16, 20), ("preparing x", 20, 20)]
    assert dataset.decided("x", dataset.samples) == {}


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
    found = Settled(dataset, monitor)
    assert found.usable == ["a", "c"]
    assert found.reasons.keys() == {"bad"}
    assert reason in found.reasons["bad"]
    [(manifest, num_usable, [(name, why)])] = monitor.left_out
    assert (manifest, num_usable, name) == ("train.jsonl", 2, "bad")
    assert reason in why


def test_a_set_without_a_usable_clip_is_refused(root, pipeline):
    dataset = prepared(root, pipeline, row("a", ["broken.mp4"]), row("b", ["broken.mp4"]))
    with pytest.raises(DataError, match=r"^train\.jsonl: all 2 samples cannot be used; the first: .*broken\.mp4"):
        Settled(dataset)


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
    found = Settled(dataset)
    assert found.usable == ["a", "b"]
    expected = str(error) if isinstance(error, MediaError) else f"{type(error).__name__}: {error}"
    assert found.reasons == {"bad": f"{root / 'long.wav'}: {expected}" if where == "encode_audio" else expected}


@pytest.mark.parametrize("error", ODD, ids=lambda error: type(error).__name__)
def test_no_error_of_a_used_sample_passes_for_the_end_of_the_data(root, pipeline, error, monkeypatch):
    """A list that reads to the first StopIteration would be short, without a word."""
    found = Settled(prepared(root, pipeline, *[row(name) for name in "abc"]))
    original = pipeline.encoder.encode_prompt

    def odd(*arguments):
        if len(asked) == 1:
            raise error
        asked.append(arguments)
        return original(*arguments)

    asked = []
    monkeypatch.setattr(pipeline.encoder, "encode_prompt", odd)
    for prefetch in (0, 8):
        asked.clear()
        with pytest.raises(DataError, match=r"sample b was used before in this run and cannot be now: "):
            list(in_order(found.sets, batch_size=1, prefetch=prefetch))


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: tried 9")])
def test_a_machine_without_memory_is_no_fault_of_a_sample(root, pipeline, error, monkeypatch):
    def short(*_):
        raise error

    for name, bad in (("encode_video", row("a", ["one.mp4"])), ("encode_prompt", row("a"))):
        with monkeypatch.context() as patched:
            patched.setattr(pipeline.encoder, name, short)
            with pytest.raises(type(error)) as caught:
                Settled(prepared(root, pipeline, row("b"), bad))
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
    for _ in range(2):  # a second time too: nothing of it lies in the cache
        [reason] = Settled(prepared(root, pipeline, row("a"), bad[kind])).reasons.values()
        assert "2 of 4 encoded values (values) are not finite" in reason
        assert reason.startswith(str(root / "one."))


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
    found = [why[: len(reason or "")] for why in Settled(dataset).reasons.values()]
    assert found == ([] if reason is None else [reason])
    dataset = prepared(root, pipeline, row("a", target="sad"), bad)
    assert Settled(dataset).reasons == {}  # nothing is learned from the target here


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
    assert Settled(dataset, monitor).reasons == {}
    assert monitor.warnings == [("train.jsonl", [warned])]


def test_a_file_that_cannot_be_read_costs_its_sample(root, pipeline, monkeypatch):
    def key(file, ref, *_):
        if file.path.name == "two.mp4":
            raise PermissionError(13, "Permission denied")
        return file.path.name

    monkeypatch.setattr("lightning_mmrl.data.pipeline.media_key", key)
    dataset = prepared(root, pipeline, row("a", ["one.mp4"]), row("bad", ["two.mp4"]))
    assert Settled(dataset).reasons == {"bad": f"{root / 'two.mp4'}: cannot be read (Permission denied)"}


def test_a_cache_that_cannot_be_written_is_no_fault_of_a_sample(root, pipeline, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pipeline.cache, "put", full)
    with pytest.raises(OSError, match="No space left"):
        Settled(prepared(root, pipeline, row("a", ["one.mp4"]), row("b")))


def test_a_modality_can_be_taken_away(root, pipeline):
    dataset = prepared(root, pipeline, row("a", ["one.mp4"], ["one.wav"], ["one.png"]))
    shown = {}
    for variant in ("full", "silent", "blank"):
        prompt = read(dataset, variant=variant).prompt
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
    item = read(dataset)
    assert "".join(map(chr, item.prompt["input_ids"])) == "S|Which? now<think>"
    assert item.target_ids == (ord("o"), ord("k"), 1)


def test_targets_are_ignored_where_nothing_is_learned_from_them(root, pipeline):
    item = read(prepared(root, pipeline, row("a", target="sad")))
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
        dataset.check("train.jsonl")
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
        dataset.check("train.jsonl")
    assert pipeline.decoder.decoded == []


def test_a_clip_that_crashes_or_breaks_limits_costs_that_clip_in_real_workers(root, pipeline):
    guarded = replace(pipeline, decoder=GuardedDecoder(workers=2, deadline_s=60.0))
    dataset = prepared(root, guarded, row("a", ["one.mp4"], ["one.wav"]), row("bad", ["broken.mp4"]))
    assert Settled(dataset).reasons.keys() == {"bad"}
    assert read(dataset).prompt["sound"].tolist() == [[[1.0, 1.0]]]


def test_an_evaluation_can_take_a_modality_away(root, pipeline):
    dataset = prepared(root, pipeline, row("a", ["one.mp4"]), row("b", ["two.mp4"]))
    found = Settled(dataset)
    [batch] = in_order(found.sets, shown=Shown(variant="blank"))
    assert batch.media.tensors["levels"].eq(128).all()
    [batch] = in_order(found.sets)
    assert not batch.media.tensors["levels"].eq(128).any()


def test_text_alone_has_neither_picture_nor_sound(root, pipeline):
    dataset = prepared(root, pipeline, row("a", ["one.mp4"], ["one.wav"]))
    shown = {variant: read(dataset, variant=variant).prompt for variant in ("full", "blank", "silent", "text_only")}
    for name, taken in {"levels": "blank", "sound": "silent"}.items():
        assert shown["text_only"][name].equal(shown[taken][name])
        assert not shown["text_only"][name].equal(shown["full"][name])


@pytest.mark.parametrize(("variant", "moved", "kept"), [("sound", "sound", "levels"), ("picture", "levels", "sound")])
def test_a_shuffled_set_has_the_media_of_another_truth_and_all_else_of_its_own(root, pipeline, variant, moved, kept):
    rows = [row("a", ["one.mp4"], ["one.wav"], solution="sad"), row("b", ["more.mp4"], ["half.wav"], solution="happy")]
    dataset = prepared(root, pipeline, *rows)
    shuffle = Shuffle(dataset.samples, lambda sample: sample.solution, f"shuffled_{variant}")
    found = Settled(dataset)
    [whole] = in_order(found.sets)
    [mixed] = in_order(found.sets, shown=Shown(variant=f"shuffled_{variant}", partners=shuffle))
    first, second = whole.media.tensors[moved].chunk(2)
    assert mixed.media.tensors[moved].equal(torch.cat([second, first]))
    assert not mixed.media.tensors[moved].equal(whole.media.tensors[moved])
    assert mixed.media.tensors[kept].equal(whole.media.tensors[kept])
    assert [(each.id, each.solution) for each in mixed.samples] == [("a", "sad"), ("b", "happy")]
    assert set(mixed.media.keys).isdisjoint(whole.media.keys)
    assert shuffle.counted() == {"num_shuffled": 2, "num_same_truth": 0, "num_unchanged": 0}


def test_no_shuffled_sample_gets_the_sound_of_a_sample_that_was_left_out(root, pipeline):
    rows = [row(name, ["one.mp4"], [f"{sound}.wav"]) for name, sound in zip("abc", ("one", "one", "half"), strict=True)]
    dataset = prepared(root, pipeline, *rows, row("bad", ["broken.mp4"], ["half.wav"]))
    shuffle = Shuffle(dataset.samples, lambda sample: sample.id, "shuffled_sound")
    found = Settled(dataset)
    assert found.reasons.keys() == {"bad"}
    list(in_order(found.sets, shown=Shown(variant="shuffled_sound", partners=shuffle)))
    assert shuffle.counted()["num_shuffled"] == 3


def test_the_media_of_a_prompt_have_one_key_for_what_is_shown(root, pipeline):
    rows = [row("a", ["one.mp4"], ["one.wav"]), row("b", ["one.mp4"], ["one.wav"], text="Why?"), row("c", ["one.mp4"])]
    rows += [row("d", ["two.mp4"], ["one.wav"]), row("e", images=["one.png", "one.png"]), row("f")]
    dataset = prepared(root, pipeline, *rows)

    def key(index, variant="full"):
        return read(dataset, index, variant).media_key

    assert key(0) == key(1)
    assert key(5) == key(5, "silent") == ""
    assert key(2) == key(2, "silent")
    keys = [key(index) for index in (0, 2, 3, 4)] + [key(0, "silent"), key(0, "blank"), key(2, "blank")]
    assert len(set(keys)) == len(keys)
    finer = replace(pipeline, settings=MediaSettings(num_frames=4))
    assert read(prepared(root, finer, *rows), 2).media_key not in keys
    [batch] = in_order(Settled(dataset).sets, batch_size=8)
    assert batch.media.keys == tuple(key(index) for index in range(6))
