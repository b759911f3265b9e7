import json
import pickle

import pytest

from lightning_mmrl.errors import ConfigError
from lightning_mmrl.prompts.wheel import Wheel


def read(tmp_path, text, name="wheel.yaml"):
    path = tmp_path / name
    path.write_text(text) if isinstance(text, str) else path.write_bytes(text)
    return Wheel.read(path)


def test_the_built_in_wheel_has_each_word_once():
    wheel = Wheel.built_in()
    assert wheel.groups_of("Furious!") == {"anger"}
    assert len(wheel.groups) >= 60
    assert pickle.loads(pickle.dumps(wheel)).groups_of("glad") == {"joy"}


@pytest.mark.parametrize("name", ["wheel.yaml", "wheel.yml", "wheel.json"])
def test_a_file_is_read(tmp_path, name):
    wheel = read(tmp_path, json.dumps({"Ecstatic": "joy", "bittersweet": ["joy", "sadness"], "no": "denial"}), name)
    assert wheel.groups_of("ecstatic") == {"joy"}
    assert wheel.groups_of(" Bittersweet. ") == {"joy", "sadness"}
    assert wheel.groups_of("no") == {"denial"}
    assert wheel.groups_of("sad") == frozenset()


def test_yaml_words_stay_words(tmp_path):
    assert read(tmp_path, "no: denial\nyes: consent\nnull: nothing\n").groups_of("no") == {"denial"}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "wheel.yaml has no labels; write one label per line"),
        ("- happy\n- sad\n", "wheel.yaml holds a seq; write one label per line"),
        ("happy\n", "wheel.yaml holds a str"),
        ("sad: sadness\nhappy:\n", r"wheel.yaml line 2: the group of 'happy' is ''; write one label"),
        ("sad: sadness\nhappy: []\n", r"line 2: the group of 'happy' is \[\]"),
        ("happy: {joy: 1}\n", "line 1: the group of 'happy' is None; write one label"),
        ("[joy]: happy\n", "line 1: the label"),
        ("happy: [joy, [x]]\n", r"line 1: the group of 'happy' is \['joy', None\]"),
        ("'...': joy\n", "line 1: the label '...' is blank"),
        (
            "happy: joy\nsad: sadness\nHappy.: joy\n",
            r"line 3: the label 'Happy.' reads like that of .* line 1; keep one",
        ),
        ("happy: joy\nhappy: sadness\n", "line 2: the label 'happy' reads like that of"),
        ("happy: joy\n  sad: [\n", r"wheel.yaml line \d is not valid YAML"),
        ("[" * 5000, "nested too deeply|is not valid YAML"),
        (b"\xff\xfe", "is not UTF-8"),
    ],
)
def test_a_bad_yaml_wheel_is_refused_with_line_value_and_fix(tmp_path, text, sentence):
    with pytest.raises(ConfigError, match=sentence):
        read(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[]", "holds a list"),
        ('{"happy": "joy"', r"wheel.json is not valid JSON \(Expecting"),
        ('{"happy": 3}', "wheel.json, key 'happy': the group of 'happy' is 3; write one label"),
        ('{"happy": "joy", "HAPPY": "joy"}', "key 'HAPPY': the label 'HAPPY' reads like that of wheel"),
        ('{"happy": " "}', "the group of 'happy' is ' '"),
    ],
)
def test_a_bad_json_wheel_is_refused(tmp_path, text, sentence):
    with pytest.raises(ConfigError, match=sentence):
        read(tmp_path, text, "wheel.json")


def test_a_file_that_is_none_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        Wheel.read(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match=r"suffix '.csv'; it must be .yaml"):
        Wheel.read(tmp_path / "wheel.csv")
    with pytest.raises(ConfigError, match="the wheel has no labels"):
        Wheel(groups={})
