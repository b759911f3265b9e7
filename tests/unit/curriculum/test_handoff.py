import json

import foreign
import pytest

from lightning_mmrl.curriculum.artifacts import SEAL, folder_digest, write_artifact
from lightning_mmrl.curriculum.handoff import REQUIRED, check_handoff
from lightning_mmrl.errors import StageError

WEIGHTS = "model.safetensors"


def exporter(weights="w", leave_out=(), config=None):
    def export(directory):
        for name in {*REQUIRED, WEIGHTS} - set(leave_out):
            (directory / name).write_text(f"{name} {weights if name == WEIGHTS else ''}")
        if "config.json" not in leave_out:
            (directory / "config.json").write_text(json.dumps(config or {}))

    return export


@pytest.fixture
def handoff(tmp_path):
    write_artifact(tmp_path / "handoff", exporter(), {"labels": ["sad"]})
    return tmp_path / "handoff"


def test_a_sealed_folder_passes_with_its_facts(handoff):
    facts = check_handoff(handoff)
    assert facts["labels"] == ["sad"]
    assert set(facts["files"]) == {*REQUIRED, WEIGHTS}
    assert {path.name for path in handoff.parent.iterdir()} == {"handoff"}


def test_files_of_subfolders_are_sealed_too(tmp_path):
    def export(directory):
        exporter()(directory)
        (directory / "adapter").mkdir()
        (directory / "adapter" / WEIGHTS).write_text("a")

    digest = write_artifact(tmp_path / "handoff", export, {})
    assert set(check_handoff(tmp_path / "handoff")["files"]) == {*REQUIRED, WEIGHTS, f"adapter/{WEIGHTS}"}
    assert digest != write_artifact(tmp_path / "without", exporter(), {})
    (tmp_path / "handoff" / "adapter" / WEIGHTS).write_text("b")
    with pytest.raises(StageError, match=rf"adapter/{WEIGHTS} is missing or changed since the stage wrote it"):
        check_handoff(tmp_path / "handoff")


def adapter_config(**changes):
    return json.dumps({"base_model_name_or_path": "/runs/one", "r": 4, "lora_alpha": 8, **changes})


def with_adapter(config):
    def export(directory):
        exporter()(directory)
        (directory / "adapter").mkdir()
        (directory / "adapter" / "adapter_config.json").write_text(config)

    return export


def test_the_place_of_an_adapters_base_is_not_part_of_the_digest(tmp_path):
    """Everything else in its configuration is."""
    configs = [adapter_config(), adapter_config(base_model_name_or_path="two"), adapter_config(r=8)]
    digests = [
        write_artifact(tmp_path / str(number), with_adapter(config), {}) for number, config in enumerate(configs)
    ]
    assert digests[0] == digests[1] != digests[2]


DEEP = "[" * 100_000


def test_an_adapter_cannot_be_put_on_another_base(tmp_path):
    handoff = tmp_path / "handoff"
    write_artifact(handoff, with_adapter(adapter_config()), {})
    path = handoff / "adapter" / "adapter_config.json"
    check_handoff(handoff)
    elsewhere, spaced = adapter_config(base_model_name_or_path="elsewhere"), adapter_config() + " "
    for content in (elsewhere, spaced, adapter_config(r=8), adapter_config()[:-1], "[]", "", DEEP):
        path.write_text(content)
        with pytest.raises(StageError, match=r"adapter_config\.json is missing or changed since the stage wrote it"):
            check_handoff(handoff)


def test_the_digest_is_held_against_the_adapters_configuration(tmp_path):
    """The hashes without places make up the digest, so they are checked like those of files."""
    handoff = tmp_path / "handoff"
    write_artifact(handoff, with_adapter(adapter_config()), {})
    content = json.loads((handoff / SEAL).read_text())
    del content["seal"]
    content["placeless"] = dict.fromkeys(content["placeless"], "0" * 64)
    content["digest"] = foreign.combined({**content["files"], **content["placeless"]})
    (handoff / SEAL).write_text(json.dumps({**content, "seal": foreign.combined(content)}))
    with pytest.raises(StageError, match=r"adapter_config\.json is missing or changed since the stage wrote it"):
        check_handoff(handoff)


def test_a_seal_of_the_first_version_still_leaves_the_place_open(tmp_path):
    """It lists the hash of an adapter's configuration without the place of the base."""
    handoff = tmp_path / "handoff"
    digest = write_artifact(handoff, with_adapter(adapter_config()), {})
    content = json.loads((handoff / SEAL).read_text())
    files = {**content["files"], **content["placeless"]}
    (handoff / SEAL).write_text(json.dumps({"digest": foreign.combined(files), "files": files}))
    path = handoff / "adapter" / "adapter_config.json"
    for place in ("/runs/one", "elsewhere"):
        path.write_text(adapter_config(base_model_name_or_path=place))
        assert check_handoff(handoff)["digest"] == digest
    for content in (adapter_config(r=8), adapter_config(more=1), adapter_config()[:-1], "[]", "{}", "", DEEP):
        path.write_text(content)
        with pytest.raises(StageError, match=r"adapter_config\.json is missing or changed since the stage wrote it"):
            check_handoff(handoff)


def test_the_weights_of_a_subfolder_do_not_make_a_folder_complete(tmp_path):
    def export(directory):
        exporter(leave_out=[WEIGHTS])(directory)
        (directory / "adapter").mkdir()
        (directory / "adapter" / WEIGHTS).write_text("a")

    write_artifact(tmp_path / "handoff", export, {})
    with pytest.raises(StageError, match=r"has no \*\.safetensors; it is not a complete Hugging Face folder"):
        check_handoff(tmp_path / "handoff")


@pytest.mark.parametrize("tower", ["vision_config", "audio_config"])
def test_a_model_with_a_tower_needs_its_processor(tower, tmp_path):
    write_artifact(tmp_path / "handoff", exporter(config={tower: {}}), {})
    with pytest.raises(StageError, match=r"has no processor_config\.json"):
        check_handoff(tmp_path / "handoff")


def test_the_digest_is_of_the_content_alone(tmp_path):
    one = write_artifact(tmp_path / "one", exporter("w"), {"labels": ["sad"]})
    two = write_artifact(tmp_path / "two", exporter("w"), {"labels": ["angry"]})
    other = write_artifact(tmp_path / "other", exporter("v"), {"labels": ["sad"]})
    assert one == two == check_handoff(tmp_path / "one")["digest"]
    assert one != other


def test_the_digest_of_a_folder_sees_names_and_bytes(tmp_path):
    folders = []
    for number, (name, content) in enumerate([("a", "x"), ("a", "x"), ("b", "x"), ("a", "y")]):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / name).write_text(content)
        folders.append(folder_digest(folder))
    assert folders[0] == folders[1]
    assert len(set(folders)) == 3


def test_writing_again_replaces_everything(handoff):
    (handoff / "stray.txt").write_text("old")
    write_artifact(handoff, exporter("v"), {})
    assert not (handoff / "stray.txt").exists()
    assert "labels" not in check_handoff(handoff)


def test_an_export_that_fails_leaves_the_old_folder(handoff):
    def fails(directory):
        (directory / "config.json").write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_artifact(handoff, fails, {})
    assert check_handoff(handoff)["labels"] == ["sad"]
    write_artifact(handoff, exporter("v"), {})  # the half-written folder is in nobody's way
    assert (handoff / WEIGHTS).read_text().endswith("v")


@pytest.mark.parametrize("name", [*REQUIRED, WEIGHTS])
def test_a_changed_or_missing_file_is_named(handoff, name):
    content = (handoff / name).read_bytes()
    (handoff / name).write_bytes(content[:-1] + b"!")
    with pytest.raises(StageError, match=rf"{name} is missing or changed since the stage wrote it; restore it"):
        check_handoff(handoff)
    (handoff / name).unlink()
    with pytest.raises(StageError, match=rf"{name} is missing or changed"):
        check_handoff(handoff)
    (handoff / name).write_bytes(content)
    check_handoff(handoff)


@pytest.mark.parametrize("name", [*REQUIRED, "*.safetensors"])
def test_a_folder_that_was_never_complete_is_refused(tmp_path, name):
    left_out = WEIGHTS if name == "*.safetensors" else name
    write_artifact(tmp_path / "handoff", exporter(leave_out=[left_out]), {})
    with pytest.raises(StageError, match=f"has no {name.replace('*', '.')}; it is not a complete Hugging Face folder"):
        check_handoff(tmp_path / "handoff")


def test_a_folder_without_a_seal_is_not_finished(handoff, tmp_path):
    (handoff / SEAL).unlink()
    for folder in (handoff, tmp_path / "none"):
        with pytest.raises(
            StageError, match=f"{folder} is not a finished artifact, such as a handoff: {SEAL} is missing"
        ):
            check_handoff(folder)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"files": 3, "digest": "a"}'])
def test_a_damaged_seal_is_refused(handoff, content):
    (handoff / SEAL).write_text(content)
    with pytest.raises(StageError, match=rf"{SEAL} is damaged .*; restore it"):
        check_handoff(handoff)


def test_a_seal_that_was_edited_to_fit_is_refused(handoff):
    seal = json.loads((handoff / SEAL).read_text())
    (handoff / "generation_config.json").write_text("other")
    other = write_artifact(handoff.with_name("other"), exporter("v"), {})
    seal["files"]["generation_config.json"] = check_handoff(handoff.with_name("other"))["files"][WEIGHTS]
    assert other != seal["digest"]
    (handoff / SEAL).write_text(json.dumps(seal))
    with pytest.raises(StageError, match=f"{SEAL} lists other files or facts than the stage wrote"):
        check_handoff(handoff)


def test_a_chat_template_is_required_unless_the_prompt_has_none(tmp_path):
    lacking = exporter(leave_out=["chat_template.jinja"])
    prompt = {"system": None, "suffix": "", "prefill": "<think>"}
    write_artifact(tmp_path / "raw", lacking, {"prompt": {**prompt, "raw": "User: {question}"}})
    check_handoff(tmp_path / "raw")
    for facts in ({}, {"prompt": prompt}, {"prompt": {**prompt, "raw": None}}):
        write_artifact(tmp_path / "chat", lacking, facts)
        with pytest.raises(StageError, match=r"has no chat_template\.jinja"):
            check_handoff(tmp_path / "chat")
