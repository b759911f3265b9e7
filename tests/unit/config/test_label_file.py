import json

import pytest

from lightning_mmrl.config.compose import compose
from lightning_mmrl.errors import ConfigError


def own(root, *more):
    return compose(["experiment=own_clips", f"data.root={root}", *more])


def test_a_null_label_set_comes_from_the_dataset(tmp_path):
    (tmp_path / "labels.json").write_text(json.dumps({"labels": ["calm", "tense"]}))
    config = own(tmp_path)
    assert config.data.labels == ["calm", "tense"]
    assert config.stages["reason"].rewards.components["label"]["labels"] == ["calm", "tense"]
    assert own(tmp_path, "data.labels=[a,b]").data.labels == ["a", "b"]


@pytest.mark.parametrize("content", ["[]", "{", '{"labels": []}', '{"labels": [1]}', '{"labels": "calm"}'])
def test_a_file_without_labels_is_refused(tmp_path, content):
    (tmp_path / "labels.json").write_text(content)
    with pytest.raises(ConfigError, match=r"data.labels is null and .*labels.json .*or set data.labels="):
        own(tmp_path)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none/labels.json cannot be read .*point data.root at a folder"):
        own(tmp_path / "none")
    with pytest.raises(ConfigError, match=r"data.root has no value; set it"):
        compose(["experiment=own_clips"])
