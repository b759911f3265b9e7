import pickle

import pytest

from lightning_mmrl.errors import ConfigError, RewardError
from lightning_mmrl.protocols.plain import RewardFn
from lightning_mmrl.rewards.compose import WeightedReward
from lightning_mmrl.rewards.pool import InlineRewards, RewardPool
from lightning_mmrl.rewards.user_function import UserFunction
from lightning_mmrl.types.records import Completion, Sample

FILE = """
STRICT = 2.0

def brevity(sample, completion):
    return 1.0 / completion.num_tokens

def only_questions(sample, completion):
    return 1.0 if "?" in completion.text else None

def fails(sample, completion):
    return {}["missing"]

def leaves(sample, completion):
    raise SystemExit(3)

def is_interrupted(sample, completion):
    raise KeyboardInterrupt

def takes_one(completion):
    return 1.0

def takes_three(sample, completion, weight):
    return 1.0

def takes_default(sample, completion, weight=0.5):
    return weight
"""
SAMPLE = Sample(id="clip", messages=())
TEXT = Completion(text="Why?", num_tokens=4, truncated=False)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    return path


def test_a_function_of_a_file_is_a_reward(file):
    reward = UserFunction(function=f"{file}:brevity")
    assert isinstance(reward, RewardFn)
    assert reward(SAMPLE, TEXT) == 0.25
    assert (
        UserFunction(function=f"{file}:only_questions")(SAMPLE, Completion(text="", num_tokens=1, truncated=True))
        is None
    )
    assert UserFunction(function=f"{file}:takes_default")(SAMPLE, TEXT) == 0.5


def test_a_relative_path_is_made_absolute(file, monkeypatch):
    monkeypatch.chdir(file.parent)
    reward = UserFunction(function="mine.py:brevity")
    monkeypatch.chdir("/")
    assert pickle.loads(pickle.dumps(reward))(SAMPLE, TEXT) == 0.25


def test_a_function_of_a_module_is_a_reward(file, monkeypatch):
    monkeypatch.syspath_prepend(str(file.parent))
    assert UserFunction(function="mine:brevity")(SAMPLE, TEXT) == 0.25


def test_a_file_is_loaded_once(tmp_path):
    path = tmp_path / "counted.py"
    path.write_text("loads = []\ndef f(sample, completion):\n    loads.append(1)\n    return len(loads)\n")
    first, second = (UserFunction(function=f"{path}:f") for _ in range(2))
    assert first == second
    assert (first(SAMPLE, TEXT), second(SAMPLE, TEXT)) == (1, 2)


@pytest.mark.timeout(120)
def test_it_runs_in_processes(file):
    reward = WeightedReward(
        components={"brevity": UserFunction(function=f"{file}:brevity"), "bad": UserFunction(function=f"{file}:fails")},
        weights={"brevity": 1.0, "bad": 1.0},
    )
    with RewardPool(reward, num_workers=1) as pool:
        [[score]] = pool.score([SAMPLE], [[TEXT]])
    assert (score.valid, score.failed, score.components) == (False, "bad", {"brevity": 0.25})
    assert score.reason == f"bad: {file}:fails raised KeyError: 'missing' ({file} line 11)"


def test_what_it_raises_is_named_with_file_function_and_line(file):
    with pytest.raises(RewardError, match=r"mine.py:fails raised KeyError: 'missing' \(.*mine.py line 11\)"):
        UserFunction(function=f"{file}:fails")(SAMPLE, TEXT)


def test_a_function_that_exits_fails_its_completion_alone(file):
    function = f"{file}:leaves"
    with pytest.raises(RewardError, match=r"mine.py:leaves raised SystemExit: 3 \(.*mine.py line 14\)"):
        UserFunction(function=function)(SAMPLE, TEXT)
    reward = WeightedReward(components={"mine": UserFunction(function=function)}, weights={"mine": 1.0})
    [[score]] = InlineRewards(reward).score([SAMPLE], [[TEXT]])
    assert (score.valid, score.failed) == (False, "mine")
    assert score.reason == f"mine: {function} raised SystemExit: 3 ({file} line 14)"


def test_an_interrupt_passes_through_it(file):
    reward = WeightedReward(components={"mine": UserFunction(function=f"{file}:is_interrupted")}, weights={"mine": 1.0})
    with pytest.raises(KeyboardInterrupt):
        InlineRewards(reward).score([SAMPLE], [[TEXT]])


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        ("brevity", "function is 'brevity'; write path/to/file.py:name or package.module:name"),
        (":brevity", "function is ':brevity'"),
        ("mine.py:", "function is 'mine.py:'"),
        ("none.py:brevity", "there is no file .*none.py; correct the path"),
        ("no_such_module:f", "no_such_module cannot be loaded: ModuleNotFoundError"),
        ("mine.py:brevty", "mine.py has no function 'brevty'; did you mean 'brevity'?"),
        ("mine.py:STRICT", "mine.py has no function 'STRICT'"),
        ("mine.py:takes_one", r"mine.py:takes_one cannot be called with \(sample, completion\): too many positional"),
        ("mine.py:takes_three", r"missing a required argument: 'weight'; write def takes_three\(sample, completion\)"),
    ],
)
def test_a_function_that_cannot_be_called_is_refused(file, monkeypatch, function, sentence):
    monkeypatch.chdir(file.parent)
    with pytest.raises(ConfigError, match=sentence):
        UserFunction(function=function)


FOREIGN = """
import functools, operator, os, shutil, subprocess
from functools import partial
from pathlib import Path
from subprocess import Popen, run
from shutil import copy
from own_code.rewards import letters
from lightning_mmrl.rewards.token_length import TokenLength
from lightning_mmrl.rewards.compose import WeightedReward

count = len
again = run
touch = partial(run, ["true"])
deeper = partial(partial(run), ["true"])
kept = functools.cache(copy)
getter = operator.itemgetter(0)
bound = "".join
"""
OWN = """
from functools import partial, wraps
from lightning_mmrl.rewards.token_length import TokenLength

def own(sample, completion, weight=1.0):
    return weight

def logged(function):
    @wraps(function)
    def inner(*args):
        return function(*args)
    return inner

class Scorer:
    def __call__(self, sample, completion):
        return 1.0

    def method(self, sample, completion):
        return 1.0

    @classmethod
    def of_class(cls, sample, completion):
        return 1.0

short = lambda sample, completion: 1.0
part = partial(own, weight=1.0)
part_of_instance = partial(Scorer())
instance = Scorer()
method = Scorer().method
of_class = Scorer.of_class
wrapped = logged(own)
ours = TokenLength(per_token=0.5)
"""


@pytest.mark.parametrize(
    "name",
    ["Popen", "run", "copy", "Path", "letters", "WeightedReward", "again", "touch", "deeper", "kept", "getter"],
)
def test_what_a_file_only_imports_is_no_reward(tmp_path, name):
    (tmp_path / "imports.py").write_text(FOREIGN)
    with pytest.raises(ConfigError, match=rf"imports.py does not define '{name}' but has it from [a-z_.]+; name it "):
        UserFunction(function=f"{tmp_path}/imports.py:{name}")


@pytest.mark.parametrize("name", ["os", "count", "bound", "no_such"])
def test_what_is_imported_is_not_offered(tmp_path, name):
    (tmp_path / "imports.py").write_text(FOREIGN)
    with pytest.raises(ConfigError) as refused:
        UserFunction(function=f"{tmp_path}/imports.py:{name}")
    assert "letters" not in str(refused.value)


@pytest.mark.parametrize(
    "name",
    ["own", "short", "part", "part_of_instance", "instance", "method", "of_class", "wrapped", "ours"],
)
def test_what_a_file_defines_is_a_reward(tmp_path, name):
    (tmp_path / "defines.py").write_text(OWN)
    assert isinstance(UserFunction(function=f"{tmp_path}/defines.py:{name}")(SAMPLE, TEXT), float)


def test_a_package_hands_on_what_is_defined_below_it_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "handing_on").mkdir()
    (tmp_path / "handing_on" / "below.py").write_text("def f(sample, completion):\n    return 1.0\n")
    (tmp_path / "handing_on" / "beside.py").write_text("from handing_on.below import f\n")
    (tmp_path / "handing_on" / "__init__.py").write_text("from handing_on.below import f\nfrom subprocess import run\n")
    for place in ("handing_on", "handing_on.below"):
        assert UserFunction(function=f"{place}:f")(SAMPLE, TEXT) == 1.0
    for function, home in (("handing_on:run", "subprocess"), ("handing_on.beside:f", "handing_on.below")):
        with pytest.raises(ConfigError, match=f"but has it from {home}; name it where it is defined"):
            UserFunction(function=function)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("def f(:\n", "SyntaxError"), ("1 / 0\n", "ZeroDivisionError: division by zero"), ("exit(4)", "SystemExit: 4")],
)
def test_a_file_that_cannot_be_loaded_is_refused_each_time(tmp_path, text, sentence):
    path = tmp_path / "broken.py"
    path.write_text(text)
    for _ in range(2):
        with pytest.raises(ConfigError, match=f"broken.py cannot be loaded: {sentence}"):
            UserFunction(function=f"{path}:f")
