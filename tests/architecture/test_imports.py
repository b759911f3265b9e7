"""Who imports whom, and what an import loads."""

import os
import pkgutil
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import lightning_mmrl

ROOT = Path(__file__).parents[2]
LINT = Path(sys.executable).parent / "lint-imports"
TORCH_FREE = (
    "errors",
    "files",
    "machine",
    "types.records",
    "protocols.plain",
    "prompts",
    "rewards",
    "workers",
    "curriculum.graph",
)


def run(command: list[str], folder: Path = ROOT) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def torch_free_modules() -> list[str]:
    names = [info.name for info in pkgutil.walk_packages(lightning_mmrl.__path__, "lightning_mmrl.")]
    prefixes = tuple(f"lightning_mmrl.{name}" for name in TORCH_FREE)
    return [name for name in names if name in prefixes or name.startswith(tuple(f"{prefix}." for prefix in prefixes))]


def loaded_by(statement: str) -> set[str]:
    done = run([sys.executable, "-c", f"import sys; {statement}; print(*sys.modules)"])
    assert done.returncode == 0, done.stderr
    return {name.partition(".")[0] for name in done.stdout.split()}


def test_importing_the_package_loads_nothing_heavy():
    assert not loaded_by("import lightning_mmrl") & {"torch", "lightning", "transformers", "mlflow", "hydra", "numpy"}


def test_torch_free_modules_leave_torch_unloaded():
    modules = torch_free_modules()
    assert {"lightning_mmrl.types.records", "lightning_mmrl.protocols.plain"} <= set(modules)
    heavy = {"torch", "lightning", "transformers", "torchmetrics"}
    assert not loaded_by(f"import {', '.join(modules)}") & heavy
    assert "torch" in loaded_by("import lightning_mmrl.ops.masked")


@pytest.mark.slow  # `make lint` checks them too
def test_the_contracts_hold():
    done = run([str(LINT), "--no-cache", "--no-logo"])
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_the_contracts_catch_what_they_forbid(tmp_path):
    shutil.copytree(ROOT / "lightning_mmrl", tmp_path / "lightning_mmrl", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    intruders = {
        "ops/intruder.py": "import lightning_mmrl.stages",
        "algorithms/intruder.py": "import transformers",
        "models/intruder.py": "import lightning_mmrl.data",
        "rewards/intruder.py": "import torch",
        "data/intruder.py": "import vllm\nimport mlflow\nimport decord\nimport math_verify",
        "rollout/intruder.py": "import av\nimport hydra\nimport lightning\nimport peft",
    }
    for name, source in intruders.items():
        (tmp_path / "lightning_mmrl" / name).write_text(source)
    done = run([str(LINT), "--no-cache", "--no-logo"], tmp_path)
    assert done.returncode != 0
    assert "0 kept, 11 broken" in done.stdout, done.stdout
