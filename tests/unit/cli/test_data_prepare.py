"""`mmrl data prepare`: exit codes, what it prints, and configs with which `mmrl plan` composes a run."""

import re

import numpy as np
import pytest
from emotion_trees import write_dfew, write_mer2025, write_ravdess

from lightning_mmrl.cli.main import main
from lightning_mmrl.data.prepare.card import card_names, read_card
from lightning_mmrl.data.synthetic.video_file import write_clip
from lightning_mmrl.errors import ConfigError


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    write_clip(path, np.zeros((4, 32, 32, 3), dtype=np.uint8), 5, np.zeros(8000, dtype=np.float32), 8000)
    return path.read_bytes()


def run(*arguments):
    return main(["data", "prepare", *map(str, arguments)])


def last_command(text):
    """The arguments of the last command that was printed."""
    return text.strip().splitlines()[-1].split()


@pytest.mark.parametrize("name", card_names())
def test_a_card_has_what_a_user_is_told(name, capsys):
    card = read_card(name)
    assert all((card.title, card.citation, card.license, card.layout))
    assert callable(card.reader)
    for subset in card.subsets.values():
        assert subset.counts
        assert {"not_a_label"}.isdisjoint(subset.labels.values())
    with pytest.raises(SystemExit) as ended:
        run(name, "--help")
    assert ended.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "--allow-missing" in said
    assert all(f"--{option}" in said for option in card.options)


def test_a_set_without_a_card_is_refused(capsys):
    with pytest.raises(SystemExit) as ended:
        run("iemocap", "x", "--out", "y")
    assert ended.value.code == 2
    assert "choose from" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"no set 'ravdes' is known.*ravdess"):
        read_card("ravdes")


def test_calm_has_no_default(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        run("ravdess", tmp_path, "--out", tmp_path / "out")
    assert ended.value.code == 2
    assert "required: --calm" in capsys.readouterr().err


def test_an_incomplete_set_exits_with_1_and_a_plan_composes_on_an_accepted_one(tmp_path, clip, capsys):
    root = write_ravdess(tmp_path / "RAVDESS", content=clip, actors=(1, 2, 3))
    (root / "Actor_01" / "01-01-01-01-01-01-01.mp4").write_bytes(b"\x00" * 99)
    out = tmp_path / "out"
    asked = ("ravdess", root, "--out", out, "--calm", "keep", "--workers", 1)
    assert run(*asked) == 1
    said = capsys.readouterr().out
    assert "Actor_01/01-01-01-01-01-01-01.mp4: " in said
    assert "speech: 179, published 1,440 (1,261 fewer)" in said
    assert "the published protocol is not met" in said
    assert "nothing was written" in said
    assert not out.exists()
    assert run(*asked, "--allow-missing", "--audio-only") == 0
    printed = last_command(capsys.readouterr().out)
    assert printed[:2] == ["mmrl", "train"]
    assert main(["plan", *printed[2:], f"output_dir={tmp_path}/runs"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"reason +│ rl .* train\.jsonl +│ \d+ ", said)
    data = [f"--config-dir={out}/configs", "data=ravdess_audio_only", "evaluation=held_out"]
    assert main(["plan", *data, f"output_dir={tmp_path}/runs"]) == 0
    assert f"{out}/audio_only" in capsys.readouterr().out.replace("\n", "")


def test_a_set_for_evaluation_alone_joins_a_run_with_other_data(tmp_path, clip, capsys):
    root = write_ravdess(tmp_path / "RAVDESS", content=clip, actors=(1,))
    asked = ("--calm", "drop", "--protocol", "test_only", "--allow-missing", "--workers", 1)
    assert run("ravdess", root, "--out", tmp_path / "out", *asked) == 0
    said = capsys.readouterr().out.strip().splitlines()[-1]
    assert "+data@datasets.ravdess=ravdess" in said
    overrides = [
        f"--config-dir={tmp_path}/out/configs",
        "experiment=quickstart",
        "+data@datasets.ravdess=ravdess",
        "datasets.ravdess.media.num_frames=4",
        "+evaluation.sets.ravdess={manifest: test.jsonl, dataset: ravdess}",
        f"data.root={tmp_path}/emotions",
        f"output_dir={tmp_path}/runs",
    ]
    assert main(["plan", *overrides]) == 0
    assert "ravdess" in capsys.readouterr().out


def test_folds_and_sets_of_words_have_configs_that_compose(tmp_path, clip, capsys):
    write_dfew(tmp_path / "DFEW", clip)
    write_mer2025(tmp_path / "MER", clip)
    assert run("dfew", tmp_path / "DFEW", "--out", tmp_path / "dfew", "--allow-missing", "--workers", 1) == 0
    printed = last_command(capsys.readouterr().out)
    assert "data=dfew_fold_1" in printed
    for fold in ("data=dfew_fold_1", "data=dfew_fold_5"):
        chosen = [fold if part.startswith("data=") else part for part in printed[2:]]
        assert main(["plan", *chosen, f"output_dir={tmp_path}/runs"]) == 0
    asked = ("--subset", "ovmerd", "--validation", "0.4", "--workers", 1)
    assert run("mer2025", tmp_path / "MER", "--out", tmp_path / "mer", *asked) == 0
    overrides = [f"--config-dir={tmp_path}/mer/configs", "data=mer2025", "evaluation=held_out"]
    assert main(["plan", *overrides, "evaluation.sets.test=validation.jsonl", f"output_dir={tmp_path}/runs"]) == 0


def test_a_share_of_validation_of_1_or_more_is_refused(tmp_path, capsys):
    assert run("dfew", tmp_path, "--out", tmp_path / "out", "--validation", "1") == 2
    assert "--validation 1.0 must be at least 0 and less than 1" in capsys.readouterr().err
