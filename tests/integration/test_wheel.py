"""The built wheel, installed where no checkout is: its command runs, with the configurations that it brings along."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
import virtualenv

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SOURCES = ("lightning_mmrl", "configs", "pyproject.toml", "README.md", "LICENSE")
"""All that the wheel is built from."""


def run(command, folder, **environment):
    """Output of a command that must succeed; nothing of this process's search path reaches it."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "MMRL"))}
    done = subprocess.run(
        command, cwd=folder, env=inherited | environment, capture_output=True, text=True, check=False, timeout=200
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy of the sources, since a build may leave files beside them."""
    folder = tmp_path_factory.mktemp("build")
    for name in SOURCES:
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / name)
    search_path = {"PYTHONPATH": os.environ["PYTHONPATH"]} if "PYTHONPATH" in os.environ else {}
    run([sys.executable, "-m", "hatchling", "build", "--target", "wheel"], folder, **search_path)
    [built] = (folder / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """An environment that has the wheel, and the packages of this one but for the checkout.

    Python reads the `.pth` files of its own site-packages alone. The editable install has one beside the borrowed
    packages, and it is not followed.
    """
    folder = tmp_path_factory.mktemp("installed")
    environment = folder / "environment"
    virtualenv.cli_run([str(environment), "--app-data", str(folder / "app-data"), "--no-download", "--quiet"])
    [packages] = environment.glob("lib/python*/site-packages")
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    run([environment / "bin" / "python", "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel], folder)
    return environment / "bin"


def test_the_package_comes_from_the_wheel(installed, tmp_path):
    program = "import lightning_mmrl; print(lightning_mmrl.__file__)"
    found = Path(run([installed / "python", "-c", program], tmp_path).strip())
    assert found.is_relative_to(installed.parent)
    assert not found.is_relative_to(ROOT)


def test_the_command_plans_the_quickstart(installed, tmp_path):
    assert "plan" in run([installed / "mmrl", "--help"], tmp_path)
    said = run([installed / "mmrl", "plan", "experiment=quickstart"], tmp_path)
    assert all(stage in said for stage in ("pretrain", "cold_start", "reason"))
    assert list(tmp_path.iterdir()) == []


def test_every_configuration_is_shipped_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    shipped = {name.removeprefix("lightning_mmrl/configs/") for name in names if "/configs/" in name}
    assert shipped == {path.relative_to(ROOT / "configs").as_posix() for path in (ROOT / "configs").rglob("*.yaml")}
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"lightning_mmrl"}
