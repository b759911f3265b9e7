"""Commands that cannot run end with one sentence and exit code 2, write nothing, and most do not load torch."""

import json
import re
import subprocess
import sys

import pytest

from lightning_mmrl import __version__
from lightning_mmrl.cli.main import COMMANDS, main

PPO_CLIP = "lightning_mmrl.algorithms.losses.ppo_clip.PPOClip"

# Each command is refused before torch is imported.
TORCH_FREE = {
    "sede=1": "sede: unknown key; did you mean 'seed'?",
    "+sede=1": "sede: unknown key; did you mean 'seed'?",
    "seed=abc": "seed is abc; it must be a whole number",
    "model=tiny_omi": "model=tiny_omi: no such option; did you mean 'tiny_omni'?",
    "stages.reason.module._target_=os.system": "stages.reason.module._target_ is 'os.system'",
    "data=emotions_jsonl": "data.root: has no value",
    "stages.reason.algorithm.group_size=1": "stages.reason.algorithm.group_size is 1; it must be at least 2",
    "stages.reason.algorithm.update.num_minibatches=5": "num_minibatches is 5; it must be a divisor of data.batch_size",
    "order=[raeson]": "order[0]: unknown stage 'raeson'; stages defines cold_start, reason",
    "order=[]": "order is empty",
    "order=[reason,reason]": "order[1]: stage 'reason' appears twice",
    "stages.cold_start.start_from=reason": "start_from is 'reason', which comes later in the order; choose one of base",
    "stages.cold_start.data.modality_dropout.silent=1.5": "stages.cold_start.data.modality_dropout is 1.5",
    "--config-dir=/no/such/folder": "--config-dir /no/such/folder: is no folder; name the folder",
    "+seed=1": "seed: is there already; change it without the plus: seed=...",
    "stages.reason.lr=1": "did you mean 'stages.reason.optimizer.lr'?",
    "algorithm@stages.raeson=rloo": "did you mean 'algorithm@stages.reason'?",
    "+algorithm@stages.cold_start=rloo": "stages.cold_start.algorithm: belongs to rl stages",
    "model=null": "model=null: model needs the name of an option; known are",
    "tracking.loggers=[cvs]": "tracking.loggers is 'cvs', which is no choice; did you mean 'csv'?",
    "++stages.reason.gate={metric: test/uar}": "stages.reason.gate has neither at_least nor at_most; give one",
    "stages.reason.adapter={r: 0}": "stages.reason.adapter.r is 0; it must be at least 1",
    "run_name=a\u00e9": "is not an override; write KEY=VALUE, close every bracket and quote",
}

SCRIPT = """
import contextlib, io, json, sys
from lightning_mmrl.cli.main import main
found = {}
for arguments in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(arguments)
    found[" ".join(arguments)] = [code, out.getvalue(), err.getvalue()]
heavy = sorted({"torch", "lightning", "transformers", "mlflow"} & set(sys.modules))
print(json.dumps([found, heavy]))
"""


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """An empty working folder that must stay empty."""
    for name in ("HYDRA_FULL_ERROR", "TRANSFORMERS_VERBOSITY"):  # commands set them for their process
        monkeypatch.setenv(name, "1" if name == "HYDRA_FULL_ERROR" else "error")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert list(tmp_path.iterdir()) == []


def refused(capfd, *arguments):
    """The sentence of a refusal; only the sizes of the steps may come before it."""
    assert main(arguments) == 2
    out, err = capfd.readouterr()
    assert all(re.fullmatch(r"\w+: \d+ x \d+ (targets|prompts x \d+ = .*)", line) for line in out.splitlines())
    assert err.count("\n") == 1
    assert err.startswith(f"mmrl {arguments[0]}: ")
    return err


def test_bad_configurations_are_refused_and_plans_shown_without_torch(empty):
    commands = [["train", override] for override in TORCH_FREE] + [["plan", "experiment=quickstart"]]
    command = [sys.executable, "-c", SCRIPT, json.dumps(commands)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found, heavy = json.loads(done.stdout)
    assert heavy == []
    code, plan, errors = found.pop("plan experiment=quickstart")
    assert (code, errors) == (0, "")
    assert "quickstart" in plan
    for override, sentence in TORCH_FREE.items():
        code, out, err = found[f"train {override}"]
        assert (code, out) == (2, ""), override
        assert err.startswith("mmrl train: "), override
        assert sentence in err
        assert err.count("\n") == 1, err


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        (
            "+stages.reason.optimizer.lrr=1",
            "stages.reason.optimizer.lrr: torch.optim.AdamW has no such parameter; did you mean 'lr'?",
        ),
        ("+stages.cold_start.module.x=1", "stages.cold_start.module.x: "),
        ("stages.reason.schedule.warmup_steps=-5", "stages.reason.schedule: warmup_steps is -5; it must be at least 0"),
        ("data.build.settings.seed=-1", "synthetic emotion setting seed is -1; it must be 0 or more"),
        (
            f"stages.reason.algorithm.loss={{_target_: {PPO_CLIP}, clip_low: -1.0}}",
            "stages.reason.algorithm.loss: clip_low is -1.0",
        ),
        (
            "stages.reason.module._target_=lightning_mmrl.stages.sft.SFTModule",
            "stages.reason.module._target_ is lightning_mmrl.stages.sft.SFTModule, which does not fit there",
        ),
        (
            "data.module._target_=lightning_mmrl.data.datamodules.VideoDataModul",
            "which is no data module; the nearest one is 'lightning_mmrl.data.datamodules.VideoDataModule'",
        ),
        (
            "stages.cold_start.adapter={targets: atention}",
            "stages.cold_start.adapter.targets is 'atention', which is no linear layer of these groups; did you mean",
        ),
        ("stages.reason.schedule._target_=lightning_mmrl.nothing.Here", "stages.reason.schedule._target_ is "),
        ("stages.reason.schedule._target_=lightning_mmrl.curriculum.manifest.os.abort", "which is no schedule"),
        ("output_dir=/dev/null/x", "output_dir /dev/null/x cannot be written (Not a directory); choose another"),
    ],
)
def test_train_refuses_what_only_imports_can_show(override, sentence, empty, capfd):
    assert sentence in refused(capfd, "train", "experiment=quickstart", override)


def test_train_refuses_data_that_are_not_there(empty, tmp_path_factory, capfd):
    outputs = tmp_path_factory.mktemp("outputs")
    where = [f"output_dir={outputs}", "data=emotions_jsonl"]
    assert "data.root /none does not exist" in refused(capfd, "train", *where, "data.root=/none")
    assert f"manifest {outputs}/cold_start.jsonl does not exist" in refused(
        capfd, "train", *where, f"data.root={outputs}"
    )
    assert list(outputs.iterdir()) == []


@pytest.mark.parametrize("arguments", [[], ["seed=1"], ["--cfg", "job"]])
def test_evaluate_needs_a_checkpoint(arguments, empty, capsys):
    assert main(["evaluate", *arguments]) == 2
    err = capsys.readouterr().err
    assert err.endswith("mmrl evaluate: CHECKPOINT is missing; name a folder or a hub id\n")
    assert "usage: mmrl evaluate CHECKPOINT" in err


@pytest.mark.parametrize("checkpoint", ["none/handoff", "/none", "a/b/c", "none"])
def test_evaluate_refuses_a_checkpoint_before_it_generates_data_for_it(checkpoint, empty, capfd):
    err = refused(capfd, "evaluate", checkpoint, "experiment=quickstart")
    assert f"checkpoint {checkpoint} is no Hugging Face folder; give a stage's handoff folder or a hub id" in err


def test_evaluate_refuses_a_name_that_the_hub_does_not_know(empty, capfd):
    assert main(["evaluate", "no-such/model", "experiment=quickstart"]) == 2
    assert "'no-such/model' cannot be loaded" in capfd.readouterr().err


def test_predict_refuses_a_folder_that_is_no_hand_over(empty, capfd):
    assert "none is not a finished artifact, such as a handoff: mmrl.json is missing" in refused(
        capfd, "predict", "none", "clip.mp4"
    )
    assert "there is nothing to ask about; name a video, picture or" in refused(capfd, "predict", "none")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["predict"], "the following arguments are required: checkpoint"),
        (["predict", "handoff", "clip.mp4", "--max-new-tokens", "many"], "invalid int value: 'many'"),
        (["data"], "the following arguments are required: COMMAND"),
        (["data", "sync"], "invalid choice: 'sync'"),
        (["data", "synth"], "the following arguments are required: directory"),
        (["data", "synth", "x", "--scale", "big"], "invalid float value: 'big'"),
    ],
)
def test_arguments_are_checked(arguments, sentence, empty, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert sentence in capsys.readouterr().err


def test_data_needs_a_worker(empty, capfd):
    assert "--workers is 0; it must be at least 1" in refused(capfd, "data", "synth", "x", "--workers", "0")


def test_an_unknown_command_is_refused_with_the_known_ones(empty, capsys):
    assert main(["trian"]) == 2
    assert f"unknown command 'trian'; choose one of {', '.join(COMMANDS)}" in capsys.readouterr().err


def test_no_command_shows_the_usage(empty, capsys):
    assert main([]) == 2
    assert "usage: mmrl COMMAND" in capsys.readouterr().out


def test_an_interrupt_says_how_to_go_on(empty, monkeypatch, capsys):
    def interrupted(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("lightning_mmrl.cli.data.run", interrupted)
    assert main(["data"]) == 130
    assert "interrupted by SIGINT; the same command continues" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["-h", "--help"])
@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)])
def test_help_prints(command, flag, empty, capsys):
    try:
        code = main([*command, flag])
    except SystemExit as end:
        code = end.code
    assert code == 0
    out = capsys.readouterr().out
    assert "usage: mmrl" in out
    if command == ["train"]:
        assert re.search(r"experiment: .*quickstart", out)


def test_version_prints(empty, capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"mmrl {__version__}\n"
