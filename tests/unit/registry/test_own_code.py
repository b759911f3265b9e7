"""`--allow-targets` opens a user's own code, by its name, of the kinds that have a place for it."""

import sys
from importlib.util import find_spec
from pkgutil import resolve_name

import pytest

from lightning_mmrl.app.run import check_all_targets
from lightning_mmrl.config.compose import compose
from lightning_mmrl.data.synthetic.folder import _spawned
from lightning_mmrl.errors import ConfigError
from lightning_mmrl.registry.own_code import is_function_opened, is_opened, opened, opened_now, split_prefixes
from lightning_mmrl.registry.targets import check_targets
from lightning_mmrl.workers.pool import DeadlinePool
from lightning_mmrl.workers.serving import CallResult

PART = "stages.reason.rewards.components.mine"
USER_FUNCTION = "lightning_mmrl.rewards.user_function.UserFunction"


def reward(target, **keys):
    values = "".join(f", {key}: '{value}'" for key, value in keys.items())
    return f"{PART}={{_target_: {target}{values}}}", "stages.reason.rewards.weights.mine=1"


@pytest.mark.parametrize("prefix", ["own_code", "own_code.rewards", "own_code.rewards.Brevity"])
def test_an_opened_name_opens_what_is_at_or_below_it(prefix, changed):
    with opened([prefix]):
        config = changed(*reward("own_code.rewards.Brevity"))
        check_all_targets(config)
    assert config.stages["reason"].rewards.components["mine"]["_target_"] == "own_code.rewards.Brevity"
    assert opened_now() == ()


def test_what_the_package_hands_on_of_its_own_is_opened_too(changed):
    with opened(["own_code"]):
        check_all_targets(changed(*reward("own_code.Brevity")))


@pytest.mark.parametrize("prefix", ["own_code.losses", "own_code.reward", "own_code.rewards.Bre", "own_code.rewards.x"])
def test_names_are_compared_by_their_parts(prefix, changed):
    with opened([prefix]), pytest.raises(ConfigError, match=r"'own_code.rewards.Brevity', which is no reward"):
        changed(*reward("own_code.rewards.Brevity"))


def test_without_the_flag_the_sentence_names_it(changed):
    with pytest.raises(ConfigError, match=r"of your own that you trust, add --allow-targets own_code$"):
        changed(*reward("own_code.rewards.Brevity"))
    with pytest.raises(ConfigError, match=r"components.mine.function is 'mine.py:f'.* add --allow-targets mine.py$"):
        changed(*reward(USER_FUNCTION, function="mine.py:f"))
    with pytest.raises(ConfigError, match=r"is 'os:system', .*; name a function in a file or package of your own$"):
        changed(*reward(USER_FUNCTION, function="os:system"))


@pytest.mark.parametrize(
    "target",
    [
        "own_code.os.system",
        "own_code.os.path.join",
        "own_code.subprocess.run",
        "own_code.subprocess.Popen",
        "own_code.TokenLength",
        "own_code.touch",
        "own_code.rewards.dataclass",
        "own_code.rewards.Brevity.__init__.__globals__",
        "own_code.rewards.Brevity.mro",
        "own_code.losses.torch.load",
        "own_code.losses",
    ],
)
def test_what_an_opened_package_only_imports_is_refused(target):
    with (
        opened(["own_code"]),
        pytest.raises(ConfigError, match=rf"a._target_: '{target}' is no class or function of that module"),
    ):
        check_targets({"_target_": target}, "a")


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ("own_code.rewards.Brevit", r"cannot be imported \(.*Brevit.*\); did you mean 'own_code.rewards.Brevity'"),
        ("own_code.nothing.X", r"cannot be imported \(.*nothing"),
        ("own_code.broken.X", r"cannot be loaded: RuntimeError: no license$"),
    ],
)
def test_own_code_that_cannot_be_loaded_is_one_sentence(target, sentence):
    with opened(["own_code"]), pytest.raises(ConfigError, match=sentence):
        check_targets({"_target_": target}, "a")


@pytest.mark.parametrize(
    ("key", "place"),
    [("rollout", "engine"), ("rollout.canary", "canary"), ("rollout.settings", "engine setting")],
)
def test_some_places_take_no_own_code(key, place, changed):
    with opened(["own_code"]), pytest.raises(ConfigError, match=rf"{key}._target_ is .* which is no {place}"):
        changed(f"{key}={{_target_: own_code.rewards.Brevity}}")


def test_a_loss_of_ones_own_takes_what_losses_take(changed):
    with opened(["own_code"]):
        node = "{_target_: own_code.losses.Unclipped, ratio: {_target_: %s}}"
        ratio = "lightning_mmrl.algorithms.losses.ratios.SequenceRatio"
        check_all_targets(changed(f"stages.reason.algorithm.loss={node % ratio}"))
        with pytest.raises(ConfigError, match=r"loss.ratio._target_ is .* which is no ratio"):
            changed(f"stages.reason.algorithm.loss={node % 'torch.optim.SGD'}")


def test_a_file_is_opened_by_its_path(tmp_path, monkeypatch, changed):
    monkeypatch.chdir(tmp_path)
    for name in ("mine.py", "other.py"):
        (tmp_path / name).write_text("def f(sample, completion):\n    return 0.0\n")
    (tmp_path / "link.py").symlink_to("mine.py")
    with opened(["mine.py"]):
        found = [
            is_function_opened(f"{place}:f") for place in ("mine.py", "./mine.py", tmp_path / "mine.py", "link.py")
        ]
        assert found == [True] * 4
        assert not is_function_opened("other.py:f")
        assert not is_function_opened("mine:f")
        check_all_targets(changed(*reward(USER_FUNCTION, function="mine.py:f")))
        with pytest.raises(ConfigError, match=r"add --allow-targets other.py"):
            changed(*reward(USER_FUNCTION, function="other.py:f"))
        with pytest.raises(ConfigError, match="is no reward"):
            changed(*reward("mine.f"))


def test_a_function_of_a_package_is_opened_with_the_package(changed):
    with opened(["own_code.rewards"]):
        check_all_targets(changed(*reward(USER_FUNCTION, function="own_code.rewards:letters")))
        with pytest.raises(ConfigError, match="which runs code that is not opened"):
            changed(*reward(USER_FUNCTION, function="own_code.losses:letters"))


REFUSED = {
    "": "is no package, module or file",
    ".": "is no package, module or file",
    "..": "is no package, module or file",
    "*": "is no package, module or file",
    "own_code.": "is no package, module or file",
    ".own_code": "is no package, module or file",
    "own-code": "is no package, module or file",
    "../own_code": "is no package, module or file",
    "/tmp": "is no package, module or file",
    "none.py": "there is no such file",
    "os": "os belongs to Python",
    "subprocess.run": "subprocess belongs to Python",
    "builtins": "builtins belongs to Python",
    "lightning_mmrl": "lightning_mmrl belongs to this package",
    "lightning_mmrl.rewards.user_function": "lightning_mmrl belongs to this package",
    "torch": "torch belongs to torch",
    "torch.hub": "torch belongs to torch",
    "transformers": "transformers belongs to transformers",
    "hydra.utils": "hydra belongs to hydra-core",
    "omegaconf": "omegaconf belongs to omegaconf",
    "numpy": "numpy belongs to numpy",
    "yaml": "yaml belongs to PyYAML",
    "sympy": "sympy belongs to sympy",  # of a dependency
    "pytest": "pytest belongs to pytest",  # of an extra
    "nothing_of_this_name": "there is no package nothing_of_this_name here",
}


@pytest.mark.parametrize("prefix", REFUSED)
def test_a_prefix_that_is_not_the_users_own_is_refused(prefix):
    with pytest.raises(ConfigError, match=REFUSED[prefix]), opened([prefix]):
        pass
    assert opened_now() == ()


def test_a_flag_may_hold_several_and_be_given_again():
    assert split_prefixes(["a, b.c", "d.py"]) == ["a", "b.c", "d.py"]
    with opened(["own_code.rewards"]), opened(["own_code.losses"]):
        assert is_opened("own_code.rewards.Brevity")
        assert is_opened("own_code.losses.Unclipped")
        assert not is_opened("own_code.Brevity")


HERE = {
    "package_here": "package_here/__init__.py",
    "module_here": "module_here.py",
    "folder_here": "folder_here/rewards.py",
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A current folder with the user's own code and what somebody else has put beside it."""
    monkeypatch.chdir(tmp_path)
    for path in HERE.values():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(
            "def looked(name):\n    import importlib.util as u\n    return u.find_spec(name)\n"
        )
    (tmp_path / "package_here" / "inner.py").write_text("from package_here import looked")
    for name in ("kernels", "planted_kernels"):
        (tmp_path / f"{name}.py").write_text("open('marker', 'w').close()\n")
    yield tmp_path
    for name in [each for each in sys.modules if each.partition(".")[0] in HERE]:
        del sys.modules[name]


@pytest.mark.parametrize("name", HERE)
def test_a_package_in_the_current_folder_is_importable_and_nothing_beside_it(here, name):
    path = list(sys.path)
    with opened([name]):
        assert find_spec(name) is not None
        assert [each for each in (*HERE, "planted_kernels", "kernels") if find_spec(each) is not None] == [name]
        assert sys.path == path
    assert find_spec(name) is None


def test_what_lies_below_a_package_here_is_found(here):
    with opened(["package_here.inner"]):
        assert resolve_name("package_here.inner.looked")("planted_kernels") is None
    with opened(["folder_here"]):
        assert callable(resolve_name("folder_here.rewards.looked"))


def test_each_block_takes_back_what_it_made_importable(here):
    with opened(["package_here"]):
        with opened(["module_here"]):
            assert find_spec("package_here") is not None
            assert find_spec("module_here") is not None
        assert find_spec("package_here") is not None
        assert find_spec("module_here") is None
        with pytest.raises(ConfigError, match="there is no package nothing_of_this_name"):
            opened(["module_here", "nothing_of_this_name"]).__enter__()
        assert find_spec("module_here") is None


def test_a_worker_finds_the_package_here_and_nothing_beside_it(here):
    with opened(["package_here", "folder_here"]):
        for target in ("package_here.inner.looked", "folder_here.rewards.looked"):
            with DeadlinePool(resolve_name(target), num_workers=1, deadline_s=30.0) as pool:
                assert pool.map(["planted_kernels", "kernels"]) == [CallResult(value=None)] * 2


def test_a_worker_of_a_later_block_finds_what_an_earlier_one_has_loaded(here):
    for _ in range(2):
        with (
            opened(["package_here"]),
            DeadlinePool(resolve_name("package_here.looked"), num_workers=1, deadline_s=30.0) as pool,
        ):
            assert pool.map(["planted_kernels"]) == [CallResult(value=None)]


def test_a_process_that_draws_finds_the_package_here(here):
    with opened(["package_here"]):
        looked = resolve_name("package_here.looked")
        with _spawned(1) as pool:
            assert pool.submit(looked, "planted_kernels").result(timeout=30) is None


KEYS = {
    "allow_targets=[own_code]": "allow_targets: no key and no file opens code; give --allow-targets PREFIX",
    "+allow_targets=own_code": "allow_targets: no key and no file opens code",
    "++stages.reason.allow_targets=own_code": "stages.reason.allow_targets: no key and no file opens code",
    "+stages.reason.rewards.allow_targets=[own_code]": "rewards.allow_targets: no key and no file opens code",
    "+model.allow-targets=own_code": "model.allow-targets: no key and no file opens code",
    "+tracking.allow_targets=own_code": "tracking.allow_targets: no key and no file opens code",
}


@pytest.mark.parametrize("override", KEYS)
def test_no_key_opens_anything(override):
    with pytest.raises(ConfigError, match=KEYS[override]):
        compose([override])


def test_no_file_opens_anything(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nallow_targets: [own_code]\n")
    with pytest.raises(ConfigError, match="no key and no file opens code"):
        compose(["experiment=mine"], config_dir=tmp_path)


@pytest.mark.parametrize("variable", ["MMRL_ALLOW_TARGETS", "ALLOW_TARGETS"])
def test_no_variable_opens_anything(variable, monkeypatch):
    monkeypatch.setenv(variable, "own_code")
    with pytest.raises(ConfigError, match=f"{variable} is set, and opens nothing"), opened([]):
        pass
