"""The checks of `mmrl doctor` that load a library (torch, decoders, MLflow), in processes that can be killed."""

import importlib
import os
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lightning_mmrl.cli.doctor_findings import Finding, in_worker, ok, problem, warning
from lightning_mmrl.cli.doctor_packages import check_pins, installed_version, reinstall_command
from lightning_mmrl.workers.pool import CallResult

LOAD_DEADLINE_S = 60.0
"""Seconds to load a library; torch takes long to load from a cold disk."""

DECODE_DEADLINE_S = 20.0
DRIVER = Path("/proc/driver/nvidia/version")
GIB = 2**30
MLFLOW_SERVER = "mlflow server --host 127.0.0.1 --port 5000"


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A CUDA device."""

    name: str
    memory_bytes: int
    capability: str
    bfloat16: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchFacts:
    """Version, build and devices as torch reports them; `cuda` is None for a CPU build."""

    version: str
    cuda: str | None
    devices: tuple[Device, ...]
    complaints: tuple[str, ...]


def check_torch() -> list[Finding]:
    """Checks torch, its torchvision and its devices."""
    loaded, vision = in_worker(load_torch, ["torch", "torchvision"], LOAD_DEADLINE_S)
    again = reinstall_command("torch", "torchvision")
    if loaded.error is not None:
        return [problem("torch", f"does not load ({loaded.error})", again)]
    facts: TorchFacts = loaded.value
    build = "CPU build" if facts.cuda is None else f"built for CUDA {facts.cuda}"
    found = [ok("torch", f"{facts.version}, {build}")]
    if vision.error is None:
        found.append(ok("torchvision", f"{vision.value} loads"))
    else:  # torchvision was built for another torch; only importing it shows this
        detail = f"{installed_version('torchvision')} does not load with torch {facts.version} ({vision.error})"
        found.append(problem("torchvision", detail, again))
    return [*found, *check_pins("torchvision"), *device_findings(facts, driver_version())]


def device_findings(facts: TorchFacts, driver: str | None) -> list[Finding]:
    """Returns findings about the CUDA devices, or the reason why torch sees none although there is a driver."""
    found = []
    for index, device in enumerate(facts.devices):
        size = f"{device.memory_bytes / GIB:.0f} GiB"
        detail = f"{device.name}, {size}, capability {device.capability}, driver {driver or 'unknown'}"
        if device.bfloat16:
            found.append(ok(f"cuda:{index}", f"{detail}, bfloat16"))
        else:
            fix = "model.dtype=float32 trainer.precision=32-true"
            found.append(warning(f"cuda:{index}", f"{detail}, no bfloat16", fix))
    if found:
        return found
    if driver is None:
        return [ok("devices", "no CUDA device; training runs on the CPU (trainer=cpu)")]
    if facts.cuda is None:
        detail = f"NVIDIA driver {driver} is there, but torch {facts.version} is a CPU build"
        return [warning("devices", detail, reinstall_command("torch", "torchvision"))]
    why = "; ".join(facts.complaints) or f"CUDA_VISIBLE_DEVICES is {os.environ.get('CUDA_VISIBLE_DEVICES')!r}"
    detail = f"NVIDIA driver {driver} is there, but torch sees no device ({why})"
    return [warning("devices", detail, f"nvidia-smi; unset CUDA_VISIBLE_DEVICES; a driver for CUDA {facts.cuda}")]


def check_decoders() -> list[Finding]:
    """Checks each decoder: writes a file of its kind, and decodes it."""
    with tempfile.TemporaryDirectory(prefix="mmrl-doctor-") as folder:
        items = [(name, Path(folder)) for name in DECODERS]
        outcomes = in_worker(run_decoder, items, DECODE_DEADLINE_S)
    return [
        _from_outcome(name, outcome, f"uv pip install --reinstall {name}")
        for name, outcome in zip(DECODERS, outcomes, strict=True)
    ]


def check_math_verify() -> list[Finding]:
    """Checks that math-verify parses LaTeX, which fails with a wrong version of the ANTLR runtime."""
    [outcome] = in_worker(verify_fraction, [r"$\frac{1}{2}$"], DECODE_DEADLINE_S)
    fix = "uv pip install --reinstall 'math-verify[antlr4-9-3]'"
    if outcome.error is not None:
        return [problem("math-verify", outcome.error, fix)]
    if not outcome.value:
        return [problem("math-verify", "does not see that 1/2 and 0.5 are equal", fix)]
    return [ok("math-verify", f"{installed_version('math-verify')} works in a worker")]


def check_tracking(uri: str) -> list[Finding]:
    """Checks MLflow and the tracking address."""
    version, address = in_worker(call_health, [("mlflow_version", ()), ("check_address", (uri,))], LOAD_DEADLINE_S)
    server = uri.startswith("http")
    fix = f"{MLFLOW_SERVER}, or tracking=none" if server else "tracking.uri=sqlite:////a/local/folder/mlflow.db"
    return [
        _from_outcome("mlflow", version, "uv pip install --reinstall mlflow"),
        _from_outcome("tracking", address, fix),
    ]


def check_hub(folder: Path, offline: bool) -> list[Finding]:
    """Checks whether hub ids can be downloaded, and how many models have been downloaded already."""
    models = sum(1 for _ in folder.glob("models--*"))
    if not offline:
        return [ok("hub", f"online, {models} models in {folder}; HF_HUB_OFFLINE=1 forbids downloads")]
    if models:
        return [ok("hub", f"offline (HF_HUB_OFFLINE), {models} models in {folder}")]
    detail = f"offline (HF_HUB_OFFLINE), and {folder} holds no model: hub ids cannot be found"
    return [warning("hub", detail, "unset HF_HUB_OFFLINE, or model.checkpoint=/a/folder; tiny models need neither")]


def driver_version() -> str | None:
    """The version of the NVIDIA driver, None without one."""
    if shutil.which("nvidia-smi"):
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
        except (OSError, subprocess.TimeoutExpired):  # there is a driver, but it hangs
            return "unknown (nvidia-smi does not answer)"
        if done.returncode == 0 and done.stdout.strip():
            return done.stdout.split()[0]
    return "of unknown version" if DRIVER.exists() else None


DECODERS = ("decord", "av", "soundfile", "pillow")


def run_decoder(item: tuple[str, Path]) -> str:
    """Checks one decoder; runs in a worker."""
    from lightning_mmrl.data.media.selfcheck import DECODERS as CHECKS

    name, folder = item
    return CHECKS[name](folder)


def verify_fraction(text: str) -> bool:
    """Whether math-verify finds a text equal to 0.5; runs in a worker, as math-verify's timeout needs a main thread."""
    library = importlib.import_module("math_verify")
    return bool(library.verify(library.parse("0.5"), library.parse(text)))


def call_health(item: tuple[str, tuple[str, ...]]) -> str:
    """Calls a function of `tracking.health`; runs in a worker."""
    from lightning_mmrl.tracking import health

    name, arguments = item
    function: Callable[..., str] = getattr(health, name)
    return function(*arguments)


def load_torch(name: str) -> TorchFacts | str:
    """Loads torch, or torchvision, and returns its facts or its version; runs in a worker."""
    if name == "torchvision":
        return importlib.import_module(name).__version__
    import torch

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    devices = []
    for index in range(count):
        properties = torch.cuda.get_device_properties(index)
        with torch.cuda.device(index):
            bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
        devices.append(
            Device(
                name=properties.name,
                memory_bytes=properties.total_memory,
                capability=f"{properties.major}.{properties.minor}",
                bfloat16=bfloat16,
            )
        )
    return TorchFacts(
        version=torch.__version__,
        cuda=torch.version.cuda,
        devices=tuple(devices),
        complaints=tuple(str(each.message).strip().splitlines()[0] for each in caught),
    )


def _from_outcome(name: str, outcome: CallResult, fix: str) -> Finding:
    return ok(name, outcome.value) if outcome.error is None else problem(name, outcome.error, fix)
