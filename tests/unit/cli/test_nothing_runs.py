"""Foreign code does not run: each payload makes a marker file if any part of it is executed."""

import base64
import pickle
import sys

import pytest
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from omegaconf import OmegaConf

from lightning_mmrl.cli.main import main
from lightning_mmrl.config.compose import compose
from lightning_mmrl.data.rollout_table import RolloutRow, write_table
from lightning_mmrl.types.records import Completion, Message, Sample, Score

HEAD = "# @package _global_\n"
MARK = "{_target_: builtins.open, file: MARKER, mode: w}"
"""A node that Hydra itself would call."""
HANDLER = "{version: 1, root: {handlers: [x]}, handlers: {x: {(): logging.FileHandler, filename: MARKER}}}"
"""A node that logging would call."""
OWN = ("--config-dir", "mine", "experiment=mine")
PART = "stages.reason.rewards.components.mine"
WEIGHT = "+stages.reason.rewards.weights.mine=1"
FUNCTION = "lightning_mmrl.rewards.user_function.UserFunction"
EVIL = "open('MARKER', 'w').close()\n\n\ndef reward(sample, completion):\n    return 0.0\n"
EVIL_FILES = {"evil.py": EVIL, "evil_package/__init__.py": EVIL, "evil_package/conf/train.yaml": "seed: 1\n"}


class Marks:
    """An object that makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with foreign files, from which modules can be imported as under `python -m`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith(("evil", "hydra_plugins", "mmrl_reward_")):
            del sys.modules[name]


def attempt(place, arguments, files=()):
    """Runs a command in a folder with these files and requires that no payload ran."""
    marker = place / "marker"
    for name, text in {**EVIL_FILES, **dict(files)}.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(text.replace("MARKER", str(marker)))
    try:
        code = main([argument.replace("MARKER", str(marker)) for argument in arguments])
    except Exception as error:  # a payload may fail after it has run; only the marker counts
        code = error
    assert not marker.exists(), "the payload ran"
    return code


def refuse(place, capsys, arguments, files=()):
    """Like `attempt`, and requires that the command is refused in one sentence."""
    code = attempt(place, arguments, files)
    err = capsys.readouterr().err
    assert (code, err.count("\n")) == (2, 1), err
    return err


HYDRA = {
    "a callback": (["plan", f"+hydra.callbacks.x={MARK}"], {}, "hydra.callbacks.x"),
    "a forced callback": (["plan", f"++hydra.callbacks.x={MARK}"], {}, "hydra.callbacks.x"),
    "a callback in a file": (
        ["plan", *OWN],
        {"mine/experiment/mine.yaml": f"{HEAD}hydra: {{callbacks: {{x: {MARK}}}}}\n"},
        "hydra.callbacks.x._target_",
    ),
    "a callback of a group": (
        ["plan", *OWN],
        {
            "mine/hydra/callbacks/evil.yaml": f"x: {MARK}\n",
            "mine/experiment/mine.yaml": f"{HEAD}defaults: [{{override /hydra/callbacks: evil}}]\n",
        },
        "hydra.callbacks.x._target_",
    ),
    "a group moved to the callbacks": (
        ["plan", "--config-dir", "mine", "+prompt@hydra.callbacks.x=evil"],
        {"mine/prompt/evil.yaml": f"{MARK}\n"},
        "hydra.callbacks.x",
    ),
    "logging": (["plan", "hydra/job_logging=stdout"], {}, "hydra/job_logging"),
    "logging in a file": (
        ["plan", *OWN],
        {"mine/experiment/mine.yaml": f"{HEAD}hydra: {{job_logging: {HANDLER}}}\n"},
        "hydra.job_logging.",
    ),
    "logging of a help": (
        ["plan", "--help", *OWN],
        {"mine/experiment/mine.yaml": f"{HEAD}hydra: {{hydra_logging: {HANDLER}}}\n"},
        None,
    ),
    "logging of a job of a sweep": (
        ["plan", "--multirun", "--config-dir", "mine", "experiment=quickstart,mine"],
        {"mine/experiment/mine.yaml": f"{HEAD}hydra: {{job_logging: {HANDLER}}}\n"},
        "hydra.job_logging.",
    ),
    "a place to search for configs": (
        ["plan", "hydra.searchpath=[pkg://evil_package.conf]"],
        {},
        "hydra.searchpath",
    ),
    "a place to search in a primary config": (
        ["plan", "--config-dir", "mine", "--config-name", "own"],
        {"mine/own.yaml": "defaults: [train, _self_]\nhydra: {searchpath: [pkg://evil_package.conf]}\nsede: 1\n"},
        "sede: unknown key",
    ),
    "a package of configs": (["plan", "--config-path", "pkg://evil_package.conf"], {}, "--config-path is refused"),
    "a plugin in the current folder": (
        ["plan", "sede=1"],
        {"hydra_plugins/evil.py": EVIL},
        "sede: unknown key",
    ),
    "a launcher": (["plan", f"hydra.launcher={MARK}", "--multirun", "seed=1,2"], {}, "hydra.launcher"),
    "a sweeper": (["plan", f"hydra.sweeper={MARK}", "--multirun", "seed=1,2"], {}, "hydra.sweeper"),
    "a folder to run in": (["plan", "hydra.run.dir=MARKER", "hydra.job.chdir=true"], {}, "hydra.run.dir"),
    "a folder in a file": (
        ["plan", *OWN],
        {"mine/experiment/mine.yaml": f"{HEAD}hydra: {{run: {{dir: MARKER}}}}\n"},
        "hydra.run.dir",
    ),
    "a job that was pickled": (["plan", "--experimental-rerun", "job.pickle"], {}, "--experimental-rerun"),
}


@pytest.mark.parametrize("name", HYDRA)
def test_hydra_runs_nothing(name, place, capsys, monkeypatch):
    arguments, files, key = HYDRA[name]
    (place / "job.pickle").write_bytes(pickle.dumps(Marks(str(place / "marker"))))
    monkeypatch.delitem(Singleton._instances, Plugins, raising=False)  # Hydra looks for plugins only once
    if key is None:  # --help composes no such node
        assert attempt(place, arguments, files) == 0
        return
    assert key in refuse(place, capsys, arguments, files)


@pytest.mark.parametrize("variable", ["env_set", "env_copy"])
def test_no_file_changes_the_environment(variable, place, capsys, monkeypatch):
    monkeypatch.setenv("SECRET", "s3cret")
    value = "{MARKED: yes}" if variable == "env_set" else "[SECRET]"
    files = {"mine/experiment/mine.yaml": f"{HEAD}hydra: {{job: {{{variable}: {value}}}}}\n"}
    assert "hydra.job.env_set." in refuse(place, capsys, ["plan", *OWN], files)


SECRETS = {
    "at once": "run_name: ${oc.env:SECRET}",
    "with a default": "prompt: {system: '${oc.env:SECRET,none}'}",
    "within a text": "prompt: {suffix: 'say ${oc.env:SECRET}'}",
    "through another key": "prompt: {system: '${run_name}'}\nrun_name: ${oc.env:SECRET}",
    "read as a value": "prompt: {system: \"${oc.decode:'${oc.env:SECRET}'}\"}",
    "a second time": "prompt: {system: '\\${oc.env:SECRET}'}",
    "by a made-up name": "prompt: {system: '${oc.${model.dtype}:SECRET}'}\nmodel: {dtype: env}",
}


@pytest.mark.parametrize("name", SECRETS)
def test_no_file_reads_the_environment(name, place, capsys, monkeypatch):
    monkeypatch.setenv("SECRET", "s3cret")
    files = {"mine/experiment/mine.yaml": f"{HEAD}{SECRETS[name]}\n"}
    err = refuse(place, capsys, ["plan", *OWN], files)
    assert "${oc.env:SECRET} is refused, no configuration reads the environment" in err
    assert "s3cret" not in err


def test_a_secret_is_not_shown_either(place, capsys, monkeypatch):
    monkeypatch.setenv("SECRET", "s3cret")
    code = main(["plan", "--cfg", "job", "--resolve", "run_name=${oc.env:SECRET}"])
    captured = capsys.readouterr()
    assert code == 2
    assert "s3cret" not in captured.out + captured.err


UNPICKLED = (
    "{_target_: lightning_mmrl.workers.serving.serve, payload: PICKLE, "
    "connection: {_target_: lightning_mmrl.rewards.lenient_format.LenientFormat}, "
    "limits: {_target_: lightning_mmrl.workers.serving.Limits}}"
)
TARGETS = {
    "a function of ours that runs a file": "{_target_: lightning_mmrl.rewards.user_function._module, place: evil.py}",
    "a function of ours that imports": "{_target_: lightning_mmrl.registry.targets._importable, target: evil.x}",
    "the command itself": (
        "{_target_: lightning_mmrl.cli.main.main, arguments: [plan, '+hydra.callbacks.x=" + MARK + "']}"
    ),
    "a writer of files": "{_target_: lightning_mmrl.training.console.Path.touch, self: MARKER}",
    "a pickle for a worker": UNPICKLED,
    "what builds targets": (
        "{_target_: lightning_mmrl.registry.targets.build, path: x, "
        "node: {_target_: lightning_mmrl.rewards.user_function._module, place: evil.py}}"
    ),
    "another kind": "{_target_: lightning_mmrl.data.synthetic.arithmetic.ARITHMETIC, directory: MARKER, scale: 0.05}",
    "below a reward": (
        "{_target_: lightning_mmrl.rewards.hard_format_result.HardFormatResult, format: "
        "{_target_: lightning_mmrl.rewards.user_function._module, place: evil.py}, result: "
        "{_target_: lightning_mmrl.rewards.lenient_format.LenientFormat}}"
    ),
    "arguments without names": "{_target_: lightning_mmrl.rewards.token_length.TokenLength, _args_: [MARKER]}",
    "a function of the user's": f"{{_target_: {FUNCTION}, function: 'evil.py:reward'}}",
    "a function of a package": f"{{_target_: {FUNCTION}, function: 'evil_package:reward'}}",
    "a module of ours by its alias": "{_target_: lightning_mmrl.app.stages.os.system, command: 'touch MARKER'}",
    "a target that was a text": f"'\\${{oc.decode:\"{{_target_: {FUNCTION}, function: evil.py:reward}}\"}}'",
}


@pytest.mark.parametrize("name", TARGETS)
def test_no_target_runs_what_is_no_reward(name, place, capsys):
    pickled = base64.b64encode(pickle.dumps(Marks(str(place / "marker")))).decode()
    node = TARGETS[name].replace("PICKLE", f"!!binary {pickled}")
    text = f"{HEAD}stages: {{reason: {{rewards: {{components: {{mine: {node}}}, weights: {{mine: 1.0}}}}}}}}\n"
    err = refuse(place, capsys, ["train", *OWN], {"mine/experiment/mine.yaml": text})
    assert PART in err


@pytest.mark.parametrize(
    ("key", "target"),
    [
        ("stages.reason.optimizer", "torch.optim.lr_scheduler.LambdaLR"),
        ("stages.reason.optimizer", "torch.optim.swa_utils.AveragedModel"),
        ("stages.reason.schedule", "lightning_mmrl.rewards.token_length.TokenLength"),
        ("stages.reason.module", "lightning_mmrl.stages.evaluate.EvaluationModule"),
        ("stages.reason.algorithm.loss", "lightning_mmrl.algorithms.losses.aggregation.TokenMean"),
        ("model.build", "lightning_mmrl.data.synthetic.emotions.synthesize_emotions"),
        ("model.family.encoder", "lightning_mmrl.models.families.qwen2.Qwen2.from_checkpoint"),
        ("data.build", "lightning_mmrl.models.tiny.build_tiny_omni"),
        ("rollout", "lightning_mmrl.rollout.canary.Canary"),
    ],
)
def test_a_target_stands_at_a_place_of_its_kind(key, target, place, capsys):
    err = refuse(place, capsys, ["plan", f"{key}={{_target_: {target}}}"])
    assert f"{key}._target_ is '{target}', which is no " in err
    assert "; the nearest one is '" in err
    assert "--allow-targets" not in err, "no flag opens what is of this package or of a dependency"


@pytest.fixture(scope="module")
def saved():
    config = compose(["experiment=quickstart", "tracking=none"])
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def foreign_run(place, saved, text):
    """The folder of a foreign run: a rollout table, and a configuration with changes."""
    rollouts = place / "theirs" / "stages" / "02-reason" / "rollouts"
    rollouts.mkdir(parents=True)
    row = RolloutRow(
        sample=Sample(id="p", messages=(Message(role="user", content="?"),), solution="angry"),
        completions=(Completion(text="angry", num_tokens=1, truncated=False),) * 2,
        scores=(Score(total=0.0, components={}),) * 2,
        policy_version=0,
    )
    write_table(rollouts / "iteration_000001.jsonl", [row])
    changed = OmegaConf.merge(OmegaConf.create(saved), OmegaConf.create(text))
    (place / "theirs" / "config.yaml").write_text(OmegaConf.to_yaml(changed))
    return rollouts


def parts(node):
    return f"stages: {{reason: {{rewards: {{components: {{mine: {node}}}, weights: {{mine: 1.0}}}}}}}}"


SAVED = {
    "a function in a file": (
        parts(f"{{_target_: {FUNCTION}, function: 'evil.py:reward'}}"),
        "add --allow-targets evil.py",
    ),
    "a function in a package": (
        parts(f"{{_target_: {FUNCTION}, function: 'evil_package:reward'}}"),
        "add --allow-targets evil_package",
    ),
    "a function of ours": (parts(TARGETS["a function of ours that runs a file"]), "which is no reward"),
    "a place to search": ("hydra: {searchpath: [pkg://evil_package.conf]}\nsede: 1", "sede: unknown key"),
    "a callback": (f"hydra: {{callbacks: {{x: {MARK}}}}}", "hydra.callbacks.x._target_: is refused"),
    "the flag": (
        "allow_targets: [evil_package]\n" + parts(f"{{_target_: {FUNCTION}, function: 'evil_package:reward'}}"),
        "allow_targets: no key and no file opens code",
    ),
    "the environment": ("prompt: {system: '${oc.env:HOME}'}", "is refused, no configuration reads the environment"),
}


@pytest.mark.parametrize("name", SAVED)
def test_the_run_of_somebody_else_is_rescored_without_its_code(name, place, capsys, saved):
    text, sentence = SAVED[name]
    table = foreign_run(place, saved, text.replace("MARKER", str(place / "marker")))
    assert sentence in refuse(place, capsys, ["reward-test", str(table)])


def test_a_reward_on_the_command_line_needs_the_flag_as_well(place, capsys, saved):
    table = foreign_run(place, saved, "{}")
    override = f"+{PART}={{_target_: {FUNCTION}, function: 'evil.py:reward'}}"
    arguments = ["reward-test", str(table), override, WEIGHT]
    assert f"{PART}.function is 'evil.py:reward'" in refuse(place, capsys, arguments)
    assert main([*arguments, "--allow-targets", "evil.py"]) == 0
    assert (place / "marker").exists(), "a payload that does nothing proves nothing"
