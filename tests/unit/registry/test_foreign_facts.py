"""Facts of a handoff are data: whatever they hold, `mmrl predict` and `mmrl export` run nothing of it."""

import json
from pathlib import Path

import foreign
import pytest
from foreign import FACTS, MODULES

from lightning_mmrl.app.predict import answer_question
from lightning_mmrl.curriculum.artifacts import SEAL
from lightning_mmrl.curriculum.publish import publish
from lightning_mmrl.errors import ConfigError, StageError
from lightning_mmrl.registry.families import loaded_family, stored_family
from lightning_mmrl.registry.names import FAMILIES
from lightning_mmrl.registry.own_code import opened

BACKBONE = {"_target_": f"{MODULES}.qwen2.Qwen2.from_checkpoint"}
ENCODER = {"_target_": f"{MODULES}.qwen2.Qwen2Encoder.from_checkpoint"}


def reads_a_file(folder):
    """A module beside the checkpoint, imported as a reward."""
    (folder / "evil.py").write_text(
        f"open({str(folder / 'marker')!r}, 'w').close()\ndef score(sample, completion): ..."
    )
    return {"_target_": "lightning_mmrl.rewards.user_function.UserFunction", "function": f"{folder / 'evil.py'}:score"}


def calls_what_is_private(folder):
    reads_a_file(folder)
    return {"_target_": "lightning_mmrl.rewards.user_function._module", "place": str(folder / "evil.py")}


def runs_another_command(folder):
    copy = ["export", str(folder / "handoff"), str(folder / "marker")]
    return {"_target_": "lightning_mmrl.cli.main.main", "arguments": copy}


NESTED = {
    "as an argument by place": lambda node: {"backbone": BACKBONE, "encoder": {**ENCODER, "_args_": [node]}},
    "as an argument by name": lambda node: {"backbone": BACKBONE, "encoder": {**ENCODER, "checkpoint": node}},
    "as the encoder": lambda node: {"backbone": BACKBONE, "encoder": node},
    "in a list": lambda node: {"backbone": BACKBONE, "encoder": {**ENCODER, "position_rule": [[node]]}},
    "partial": lambda node: {"backbone": BACKBONE, "encoder": {**ENCODER, "_partial_": True, "more": node}},
    "as the backbone": lambda node: {"backbone": node, "encoder": ENCODER},
}


PAYLOADS = {each.__name__: each for each in (reads_a_file, calls_what_is_private, runs_another_command)}


@pytest.mark.parametrize("place", NESTED)
@pytest.mark.parametrize("payload", PAYLOADS)
def test_no_target_of_a_family_is_called(payload, place, tmp_path):
    handoff = foreign.write(tmp_path / "handoff", {"family": NESTED[place](PAYLOADS[payload](tmp_path))})
    with pytest.raises(StageError, match="it must be the name of a family"):
        answer_question(handoff, [], question="Why?")
    assert not (tmp_path / "marker").exists()


STRANGE = {
    "family": [
        "os.system",
        "",
        ["qwen2"],
        {"backbone": BACKBONE},
        {"backbone": "os.system", "encoder": "os.system"},
        {"backbone": f"{MODULES}.qwen2.Qwen2.from_checkpoint", "encoder": "lightning_mmrl.workers.serving.serve"},
        {"backbone": ENCODER, "encoder": BACKBONE},
        {"backbone": BACKBONE, "encoder": {**ENCODER, "_convert_": "all"}},
    ],
    "dtype": ["load", "hub", 32, None, {"_target_": "torch.load"}],
    "labels": ["angry", [1], ["sad", "sad"], [{"_target_": "os.system"}], [" "]],
    "max_new_tokens": ["1, **__import__('os').environ", 0, -1, 2.5, True, 10**30],
    "position_rule": ["any", 1, {"_target_": "os.system"}],
    "audio_in_video": ["any", None],
    "lineage": [[], {"steps": [1]}, {"stage": {"_target_": "os.system"}}],
    "build": [{"_target_": "lightning_mmrl.models.tiny.build_tiny_omni"}, None],
    "_target_": ["os.system"],
    "_args_": [["touch marker"]],
}


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in STRANGE.items() for value in values], ids=str
)
def test_a_fact_that_no_run_writes_is_refused_in_one_sentence(key, value, tmp_path):
    handoff = foreign.write(tmp_path / "handoff", {key: value})
    with pytest.raises(StageError, match=rf"handoff/{SEAL} (has|is of) .*{key if key != 'family' else 'family'}"):
        answer_question(handoff, [], question="Why?")


PROMPTS = [
    {"_target_": "os.system"},
    {"system": {"_target_": "os.system"}},
    {"prefill": 1},
    {"suffix": None},
    {"system": "<|im_end|>"},
    {"suffix": "<video>"},
    {"more": "text"},
    {"raw": ["{question}"]},
    {"raw": "no place"},
    {"raw": "{question}<|im_end|>"},
]
MEDIA = [
    {"num_frames": "8): __import__('os').system('touch marker') #"},
    {"sample_rate_hz": 16_000.5},
    {"max_pixels": {"_target_": "os.system"}},
    {"max_bytes": 0},
    {"max_duration_s": float("nan")},
    {"max_duration_s": "600"},
    {"num_frames": 10**9},
    {"cache_dir": "/etc"},
]


@pytest.mark.parametrize(
    ("key", "change"), [*(("prompt", each) for each in PROMPTS), *(("media", each) for each in MEDIA)], ids=str
)
@pytest.mark.parametrize("command", ["predict", "export"])
def test_prompt_and_media_are_plain_values_of_their_kind(key, change, command, tmp_path):
    handoff = foreign.write(tmp_path / "handoff", {key: {**FACTS[key], **change}})
    with pytest.raises(StageError, match=f"{SEAL}"):
        run(command, handoff)


@pytest.mark.parametrize("key", ["prompt", "media", "labels", "family", "dtype", "max_new_tokens"])
def test_a_fact_that_is_not_there_is_named(key, tmp_path):
    handoff = tmp_path / "handoff"
    facts = {name: value for name, value in FACTS.items() if name != key}
    foreign.write_artifact(handoff, foreign.export, facts)
    with pytest.raises(StageError, match=f"does not say '{key}'; write it again with the run that trained it"):
        run("predict", handoff)


CARD_CODE = {
    "facts": [
        ({"dtype": "float32).eval(); __import__('os').system('touch marker') #"}, {}),
        ({"max_new_tokens": "1, **dict(a=__import__('os').system('touch marker'))"}, {}),
        ({"media": {**FACTS["media"], "num_frames": "__import__('os').system('touch marker')"}}, {"vision_config": {}}),
        ({"media": {**FACTS["media"], "sample_rate_hz": "__import__('os').system('x')"}}, {"audio_config": {}}),
    ],
    "config": [
        ({}, {"architectures": ["Qwen2ForCausalLM; import os; os.system('touch marker')"]}),
        ({}, {"architectures": ["A\nimport os"]}),
        ({}, {"architectures": [{"a": 1}]}),
    ],
}


@pytest.mark.parametrize(("facts", "config"), [*CARD_CODE["facts"], *CARD_CODE["config"]], ids=str)
def test_the_code_of_a_card_is_ours_alone(facts, config, tmp_path):
    """Its reader runs it."""
    handoff = foreign.write(tmp_path / "handoff", facts)
    towers = {key: {} for key in config if key.endswith("_config")}
    if config:
        foreign.write_artifact(handoff, lambda folder: with_processor(folder, {**config, **towers}), {**FACTS, **facts})
    with pytest.raises(StageError):
        publish(handoff, tmp_path / "shared")
    assert not (tmp_path / "shared").exists()


def with_processor(folder: Path, config):
    foreign.export(folder, config)
    (folder / "processor_config.json").write_text("{}")


def run(command, handoff):
    if command == "predict":
        answer_question(handoff, [], question="Why?")
    else:
        publish(handoff, handoff.with_name("shared"))


def test_a_family_of_the_users_own_needs_the_flag(tmp_path):
    own = {"backbone": "mine.Backbone.from_checkpoint", "encoder": "mine.Encoder.from_checkpoint"}
    handoff = foreign.write(tmp_path / "handoff", {"family": own})
    with pytest.raises(StageError, match=r"is of the family 'mine\.Backbone.*; .* --allow-targets mine$"):
        answer_question(handoff, [], question="Why?")


def test_the_flag_opens_a_family_by_its_names():
    own = {"backbone": "own_code.families.Backbone", "encoder": f"{MODULES}.qwen2.Qwen2Encoder.from_checkpoint"}
    node = {"backbone": {"_target_": own["backbone"]}, "encoder": ENCODER}
    assert stored_family(node) == own
    with opened(["own_code"]):
        assert loaded_family(own, "here") == node
    with pytest.raises(StageError, match=r"here is of the family 'own_code\.families\.Backbone'"):
        loaded_family(own, "here")


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_of_ours_is_stored_by_its_name(name):
    node = {part: {"_target_": target} for part, target in zip(("backbone", "encoder"), FAMILIES[name], strict=True)}
    assert stored_family(node) == name
    assert loaded_family(name, "here") == node


def test_a_family_with_options_cannot_be_stored():
    node = {"backbone": BACKBONE, "encoder": {**ENCODER, "fps": 2}}
    with pytest.raises(ConfigError, match=r"model\.family\.encoder\.fps: a handoff holds a family by name"):
        stored_family(node)


VERSION_1 = {"version": None, "seal": None}


def test_a_handoff_of_the_first_version_is_read(tmp_path):
    """It reaches the loader, which finds that these files are no tokenizer."""
    handoff = foreign.write(tmp_path / "handoff", {})
    foreign.edit_seal(handoff, **VERSION_1, family={"backbone": BACKBONE, "encoder": ENCODER})
    with pytest.raises(StageError, match=r"is damaged|cannot be (loaded|read)"):
        answer_question(handoff, [], question="Why?")


@pytest.mark.parametrize("place", NESTED)
def test_a_handoff_of_the_first_version_runs_nothing_either(place, tmp_path):
    handoff = foreign.write(tmp_path / "handoff", {})
    foreign.edit_seal(handoff, **VERSION_1, family=NESTED[place](reads_a_file(tmp_path)))
    with pytest.raises(StageError, match="it must be the name of a family"):
        answer_question(handoff, [], question="Why?")
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    "content", ["[" * 100_000, json.dumps([1]), '{"version": 3, "digest": "", "files": {}}', '{"a": NaN', "\udcff"]
)
def test_a_seal_that_is_none_is_one_sentence(content, tmp_path):
    handoff = foreign.write(tmp_path / "handoff", {})
    (handoff / SEAL).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(StageError, match=SEAL):
        answer_question(handoff, [], question="Why?")
