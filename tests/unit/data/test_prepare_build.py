"""A set that a training prepares at its start: prepared once, kept, and refused where it is not what was asked for."""

import json

import numpy as np
import pytest
from emotion_trees import write_dfew, write_ravdess

from lightning_mmrl.data.prepare.build import prepare_originals
from lightning_mmrl.data.prepare.writer import PrepareSettings
from lightning_mmrl.data.synthetic.video_file import write_clip
from lightning_mmrl.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def dfew(tmp_path_factory):
    folder = tmp_path_factory.mktemp("build")
    write_clip(folder / "clip.mp4", np.zeros((4, 32, 32, 3), dtype=np.uint8), 5, np.zeros(8000, np.float32), 8000)
    return write_dfew(folder / "DFEW", (folder / "clip.mp4").read_bytes())


@pytest.fixture(scope="module")
def prepared(dfew, tmp_path_factory):
    return built(tmp_path_factory.mktemp("sets") / "deep" / "dfew", dfew)


def built(out, originals, name="dfew", **settings):
    settings = PrepareSettings(**{"allow_missing": True, "validation": 0.2, **settings})
    return prepare_originals(out, name=name, originals=str(originals), settings=settings, workers=1)


def test_a_prepared_set_is_kept(dfew, prepared, monkeypatch):
    assert (prepared / "fold_1" / "validation.jsonl").is_file()
    assert json.loads((prepared / "dataset.json").read_text())["validation"] == 0.2
    monkeypatch.setattr("lightning_mmrl.data.prepare.build.prepare_set", pytest.fail)
    assert built(prepared, dfew) == prepared


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"validation": 0.0}, "validation 0.2, not 0.0"),
        ({"question": "Which?"}, r"question None, not Which\?"),
        ({"seed": 1}, "seed 0, not 1"),
        ({"copies": ["audio_only"]}, r"copies \[\], not \['audio_only'\]"),
    ],
)
def test_other_settings_than_those_of_a_prepared_set_are_refused(dfew, prepared, change, message):
    with pytest.raises(DataError, match=f"dfew was prepared with {message}; remove it, .*build=null"):
        built(prepared, dfew, **change)


def test_a_set_that_lacks_files_serves_no_run_that_asks_for_all_of_them(dfew, prepared):
    with pytest.raises(DataError, match=r"dfew was prepared with allow_missing, and does not meet .* of dfew;"):
        built(prepared, dfew, allow_missing=False)
    record = prepared / "dataset.json"
    whole = record.read_text()
    record.write_text(json.dumps(json.loads(whole) | {"published_protocol_met": True}))
    assert built(prepared, dfew, allow_missing=False) == prepared
    record.write_text(whole)


def test_other_originals_or_another_set_are_refused(prepared, tmp_path):
    with pytest.raises(DataError, match=f"was prepared with originals .*DFEW, not {tmp_path}"):
        built(prepared, tmp_path)


def test_a_protocol_that_is_not_met_ends_with_the_first_reasons(dfew, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(DataError, match=r"protocol of dfew is not met in .*fold 1: 20, published 11,697.*and 3 more"):
        built(out, dfew, allow_missing=False)
    assert not out.exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"options": {"clam": "keep"}}, "no option 'clam'; did you mean 'calm'"),
        ({"options": {}}, "option calm of set ravdess is None; give one of keep, merge_neutral, drop"),
        ({"options": {"calm": "kept"}}, "option calm of set ravdess is kept; give one of"),
        ({"options": {"calm": "keep"}, "overwrite": True}, "each start of a run would prepare ravdess again"),
        ({"options": {"calm": "keep"}, "subsets": ["sing"]}, "no subset 'sing'"),
    ],
)
def test_wrong_choices_are_refused(tmp_path, settings, message):
    root = write_ravdess(tmp_path / "RAVDESS", actors=(1,))
    with pytest.raises(ConfigError, match=message):
        built(tmp_path / "out", root, name="ravdess", **settings)


def test_a_share_out_of_range_is_refused():
    with pytest.raises(ConfigError, match=r"validation is 1.0; it must be at least 0 and less than 1"):
        PrepareSettings(validation=1.0)
