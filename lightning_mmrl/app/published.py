"""What a tracked run says of itself: origin, key parameters, how to reproduce it; its scores, page and tables."""

import os
import platform
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import torch

from lightning_mmrl.app.starts import CHECKOUT, commit_of, versions
from lightning_mmrl.config.specs import flattened
from lightning_mmrl.files import dispensable, write_whole
from lightning_mmrl.protocols.plain import DescribedRun, TrackedRun
from lightning_mmrl.report.page import FILE as PAGE
from lightning_mmrl.report.run_files import SUMMARY, read_run
from lightning_mmrl.report.tables import FOLDER, headlines, write_tables
from lightning_mmrl.settings.run import RunSettings
from lightning_mmrl.settings.stage import BASE
from lightning_mmrl.tracking.null import NullRun
from lightning_mmrl.types.redaction import redact

PACKAGES = "packages.txt"
"""File in a run folder with the versions of all installed packages."""
KEYS = (
    *("kind", "start_from", "checkpoint", "module", "num_steps", "num_epochs", "max_grad_norm", "data.batch_size"),
    *("optimizer", "optimizer.lr", "optimizer.weight_decay", "schedule", "sampling.temperature"),
    *("sampling.max_new_tokens", "algorithm.group_size", "algorithm.advantage", "algorithm.loss"),
    *("algorithm.aggregation", "algorithm.kl.coefficient", "algorithm.update.num_epochs"),
    *("algorithm.update.num_minibatches", "trainer.devices", "trainer.strategy", "trainer.precision"),
)
"""Keys of a stage that are parameters of the parent run; a node is shown by the last name of its `_target_`."""

_OF_TRAIN = ("--from-stage", "--only-stage", "--until-stage", "--allow-changes")


def describe(config: RunSettings, parent: TrackedRun, directory: Path, command: Sequence[str]) -> None:
    """Tells the tracker the key parameters of a run, its machine, its packages, and how to reproduce it."""
    parent.log_params({**key_parameters(config), **environment()})
    with dispensable("a list of packages", directory):
        installed = {(str(each.metadata["Name"]), each.version) for each in distributions()}
        lines = [f"{name}=={number}\n" for name, number in sorted(installed, key=lambda each: each[0].lower())]
        write_whole(directory / PACKAGES, "".join(lines))
        parent.log_artifact(directory / PACKAGES, "config")
    if isinstance(parent, DescribedRun):
        parent.describe(redact(description(config, directory, command)))


def key_parameters(config: RunSettings) -> dict[str, Any]:
    """The parameters of the parent run, under the names that they have on the command line."""
    found = {
        "run_name": config.run_name,
        "seed": config.seed,
        "order": ",".join(config.order),
        "model": _last_name(config.model.family["backbone"]),
        "model.checkpoint": config.model.checkpoint,
        "model.dtype": config.model.dtype,
        "data.root": config.data.root,
        "evaluation.sets": ",".join(config.evaluation.sets),
    }
    for name in config.order:
        stage = asdict(config.stages[name])
        flat = flattened(stage)
        flat |= {
            key.removesuffix("._target_"): str(value).rpartition(".")[2]
            for key, value in flat.items()
            if key.endswith("._target_")
        }
        found |= {f"stages.{name}.{key}": flat[key] for key in KEYS if flat.get(key) is not None}
    return {key: value for key, value in found.items() if value is not None}


def environment() -> dict[str, Any]:
    """Versions of what a run computes with, and the machine."""
    found: dict[str, Any] = {f"version.{name}": number for name, number in versions().items()}
    found |= {
        "machine.host": platform.node(),
        "machine.processor": _processor(),
        "machine.num_processors": len(os.sched_getaffinity(0)),
        "machine.memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "machine.num_gpus": torch.cuda.device_count(),
    }
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0)
        found |= {"machine.gpu": gpu.name, "machine.gpu_memory_gib": round(gpu.total_memory / 2**30, 1)}
        found |= {"version.cuda": torch.version.cuda}
    return found


def description(config: RunSettings, directory: Path, command: Sequence[str]) -> str:
    """The commands that reproduce a run, show it and evaluate its last stage that trains, as Markdown.

    Args:
        config: The run.
        directory: Its folder.
        command: The arguments of `mmrl`; without any, there is no command to reproduce it.
    """
    commit = commit_of(CHECKOUT)
    at = f"at commit `{commit}`" if commit else f"with lightning_mmrl {versions()['lightning_mmrl']}"
    commands = [["mmrl", *command]] if command else []
    commands.append(["mmrl", "report", str(directory)])
    if config.trained:
        last = list(config.trained)[-1]
        handoff = str(directory / "stages" / f"{config.order.index(last):02d}-{last}" / "handoff")
        commands += [["mmrl", "evaluate", handoff, *_without_own_flags(command[1:])]] if command else []
        commands += [["mmrl", "lineage", handoff], ["mmrl", "export", handoff, "FOLDER", "--register", "NAME"]]
    # Indented code, because an override may hold the characters that end a fenced block.
    lines = [f"    {' '.join(shlex.join(each).split())}" for each in commands]
    ask = 'mlflow.pyfunc.load_model("models:/MODEL_ID").predict([{"file": "clip.mp4"}])'
    return "\n".join(
        [
            f"Stages {', '.join(config.order)}; seed {config.seed}; {at}.",
            "",
            f"To reproduce, show, evaluate and share it, in {Path.cwd()}:",
            "",
            *lines,
            "",
            f"Among the artifacts, config/config.yaml is the whole configuration, {PAGE} the page of the run, and "
            f"{FOLDER} has scores, confusion matrices and sampled answers. Each trained stage is a logged model, which "
            "answers from the folder of the run:",
            "",
            f"    {ask}",
        ]
    )


def publish(config: RunSettings, directory: Path, parent: TrackedRun) -> None:
    """Sends the headlines of all evaluated stages, the page and the tables; what was sent before changes nothing.

    `headline/SET/STAGE` is the headline of a stage on a set; `headline/SET` has one point for each stage, so its latest
    value is that of the last stage. Both carry the time at which the stage was evaluated.
    """
    if isinstance(parent, NullRun):
        return
    run = read_run(directory)
    steps = {BASE: 0} | {name: place for place, name in enumerate(config.trained, start=1)}
    times = {each.stage: (each.folder / SUMMARY).stat().st_mtime for each in run.evaluated}
    for (stage, name), value in headlines(run).items():
        values = {f"headline/{name}": value, f"headline/{name}/{stage}": value}
        parent.log_metrics(values, steps.get(stage, 0), times[stage])
    if (directory / PAGE).is_file():
        parent.log_artifact(directory / PAGE)
    for table in write_tables(run):
        if isinstance(parent, DescribedRun):
            parent.log_table(table, FOLDER)
        else:
            parent.log_artifact(table, FOLDER)


def _without_own_flags(command: Sequence[str]) -> list[str]:
    """The arguments without those flags of `mmrl train` that choose stages."""
    kept, skip = [], False
    for argument in command:
        name, equals, _ = argument.partition("=")
        if not skip and name not in _OF_TRAIN:
            kept.append(argument)
        skip = not skip and name in _OF_TRAIN[:3] and not equals
    return kept


def _last_name(node: Any) -> str:
    return (
        str(node.get("_target_") if isinstance(node, Mapping) else node)
        .removesuffix(".from_checkpoint")
        .rpartition(".")[2]
    )


def _processor() -> str:
    """The name of the processor, as Linux has it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
