"""`mmrl evaluate CHECKPOINT`: evaluates any checkpoint on the configured sets, with intervals."""

import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_mmrl.cli.hydra_app import VALUED_FLAGS, run_with_config, take_flags
from lightning_mmrl.cli.launch import on_all_ranks
from lightning_mmrl.curriculum.artifacts import ADAPTER_CONFIG
from lightning_mmrl.curriculum.baseline import (
    AskedSet,
    Baseline,
    base_of_run,
    find_baseline,
    refuse_other_questions,
    unpaired,
)
from lightning_mmrl.curriculum.checkpoints import Checkpoint, located, require_checkpoint
from lightning_mmrl.errors import ConfigError, DataError, StageError
from lightning_mmrl.files import write_json
from lightning_mmrl.protocols.plain import TrackedRun
from lightning_mmrl.rollout.vllm.readiness import require_engine
from lightning_mmrl.settings.run import RunSettings
from lightning_mmrl.tracking.store import deliver_leftovers, settle_tracking

if TYPE_CHECKING:
    from lightning_mmrl.app.assembly import Assembly
    from lightning_mmrl.curriculum.compare import Comparison

GAINS = "gains.json"
HELP = """mmrl evaluate - evaluate a checkpoint on the configured sets, with 95 % intervals

usage: mmrl evaluate CHECKPOINT [--baseline RUN] [--base MODEL] [KEY=VALUE ...] [--allow-targets PREFIX]

CHECKPOINT      a stage's handoff folder, any Hugging Face folder of the model family, a hub id, or the folder or hub id
                of a LoRA adapter (peft's adapter_config.json and adapter_model.safetensors), merged into its base
--baseline RUN  also show paired gains over an earlier evaluation: a run folder (its last evaluated stage), RUN:STAGE
                (RUN:base is the base model of the run), or a folder with evaluation.json. Without it, a handoff is
                compared with the base model of its own run, if that was evaluated on the same sets
--base MODEL    the model that an adapter belongs to, if it is not where adapter_config.json says
--allow-targets lets the configuration use code of your own, as for mmrl train

KEY=VALUE       overrides, as for mmrl train; the ones that matter most here:
  experiment=NAME or data=NAME model=NAME   the sets, their task, the prompt and the model family
  rollout=vllm                              vLLM answers instead of the model itself (rollout=hf); it must be installed
  trainer.devices=2                         two processes share the sets; or start the processes by torchrun or srun
  +evaluation.sets.NAME=FILE, evaluation.limit=N, evaluation.max_new_tokens=N, evaluation.batch_size=N

Results go to ${output_dir}/${run_name}/evaluations/NAME and are printed: evaluation.json, one jsonl of judged answers
for each set, gains.json. Judged batches are kept as they come: the same command continues an evaluation that was
interrupted or killed, and gives the same results; with another checkpoint, setting, manifest or code it starts afresh.

examples:
  mmrl evaluate runs/quickstart/stages/02-reason/handoff experiment=quickstart
  mmrl evaluate runs/quickstart/stages/02-reason/handoff experiment=quickstart --baseline runs/quickstart:cold_start
  mmrl evaluate runs/mine/stages/00-sft/handoff/adapter experiment=smollm2 trainer.devices=2
  mmrl evaluate Qwen/Qwen2.5-Omni-3B experiment=own_clips model=qwen2_5_omni_3b data.root=emotions rollout=vllm
"""


def run(arguments: Sequence[str]) -> int:
    """Runs the command and returns its exit code.

    Raises:
        StageError: The checkpoint can be no model and no adapter, or the baseline is no evaluation.
    """
    if any(argument in ("-h", "--help") for argument in arguments):
        print(HELP)
        return 0
    flags, rest = take_flags(arguments, valued=("--baseline", "--base"))
    checkpoint, others = take_checkpoint(rest)
    require_checkpoint(checkpoint)
    baseline = find_baseline(flags["--baseline"]) if "--baseline" in flags else None
    base = Path(flags["--base"]) if "--base" in flags else None
    task = partial(evaluate, checkpoint=checkpoint, baseline=baseline, base=base)
    codes = run_with_config(lambda config: on_all_ranks(task, config, "evaluate", arguments), "mmrl evaluate", others)
    return max(codes, default=0)


def take_checkpoint(arguments: Sequence[str]) -> tuple[Path, list[str]]:
    """Separates the checkpoint, which is the first argument that is no flag, value of a flag or override.

    A path to the folder of a model or an adapter is no override, even if it contains `=`.

    >>> take_checkpoint(["--config-dir", "mine", "experiment=quickstart", "./lr=0.1/handoff", "seed=1"])
    (PosixPath('lr=0.1/handoff'), ['--config-dir', 'mine', 'experiment=quickstart', 'seed=1'])

    Raises:
        ConfigError: There is no checkpoint.
    """
    is_value = False
    for index, argument in enumerate(arguments):
        is_override = argument.startswith("~") or re.match(r"[+]{0,2}[A-Za-z_][\w.@/:-]*=", argument) is not None
        is_folder = any(Path(argument, name).is_file() for name in ("config.json", ADAPTER_CONFIG))
        is_other = is_value or argument.startswith("-") or (is_override and not is_folder)
        is_value = not is_value and argument in VALUED_FLAGS
        if not is_other:
            return Path(argument), [*arguments[:index], *arguments[index + 1 :]]
    print(HELP, file=sys.stderr)
    raise ConfigError("CHECKPOINT is missing; name a folder or a hub id")


def evaluate(config: RunSettings, checkpoint: Path, baseline: Baseline | None = None, base: Path | None = None) -> None:
    """Evaluates one checkpoint and prints its results and its gains over a baseline."""
    require_engine(config, evaluates=True)
    # Loaded here: a bad configuration is refused before torch is imported.
    from lightning_mmrl.app.assembly import Assembly, quiet_libraries
    from lightning_mmrl.app.evaluation import CheckpointEvaluator
    from lightning_mmrl.app.run import check_all_targets
    from lightning_mmrl.app.run_folder import EVALUATIONS, evaluation_lock, locked, writable
    from lightning_mmrl.models.folder import found_file
    from lightning_mmrl.training.console import ConsoleProgress
    from lightning_mmrl.training.group import joined
    from lightning_mmrl.training.interruption import Interruption

    config = settle_tracking(config)
    quiet_libraries()
    check_all_targets(config)
    name = name_of(checkpoint)
    with (
        Interruption() as interruption,
        joined(config.trainer, interruption) as group,
        ConsoleProgress(quiet=not group.leads) as console,
    ):
        parts = Assembly(config=config, console=console, group=group)
        with group.first():
            found = located(checkpoint, found_file, base)
            if not found.place.is_dir():
                parts.encoder(found.place)  # an id that the hub lacks is refused before a dataset is generated
            directory = writable(Path(config.output_dir)) / config.run_name / EVALUATIONS / name
            parts.ensure_data()
            over = _comparable(parts, checkpoint, found, baseline) if group.leads else None
        evaluator = CheckpointEvaluator(parts, last_stage=name, afresh=True)
        with interruption.together(group.ranks):
            if not group.leads:
                evaluator.evaluate(found, directory, name, None)
                return
            with locked(evaluation_lock(directory)), _run_of_mlflow(config, name) as run:
                (directory / GAINS).unlink(missing_ok=True)
                metrics = evaluator.evaluate(found, directory, name, run)
                if run is not None:
                    run.log_metrics(metrics, step=0)
    _report(parts, name, directory, over)


def name_of(checkpoint: Path) -> str:
    """Returns the name of an evaluation: that of the stage whose handoff it is of, or the last part of a path or id.

    >>> name_of(Path("runs/a/stages/02-reason/handoff")), name_of(Path("runs/a/stages/02-reason/handoff/adapter"))
    ('02-reason', '02-reason-adapter')
    """
    if checkpoint.parent.name == "handoff":
        return f"{checkpoint.parent.parent.name}-{checkpoint.name}"
    return checkpoint.absolute().parent.name if checkpoint.name == "handoff" else checkpoint.absolute().name


def _comparable(parts: "Assembly", checkpoint: Path, found: Checkpoint, baseline: Baseline | None) -> Baseline | None:
    """The baseline, once it is known to have answers to the same questions; by default the base model of the run.

    Raises:
        StageError: The baseline that the user names has none.
    """
    from lightning_mmrl.data.sources import source_digest
    from lightning_mmrl.evaluation.thinking import NO_THINK
    from lightning_mmrl.registry.tasks import task_of_result

    config = parts.config
    kept, asked = Path(config.data.media.cache_dir), {}
    for name, each in config.sets().items():
        denied = [NO_THINK] if config.evaluation.no_think else []
        for variant in ("", *(f"-{one}" for one in (*config.evaluation.ablations, *denied))):
            digest = source_digest(each.path, each.format, kept) or ""
            asked[f"{name}{variant}"] = AskedSet(task=task_of_result(name, parts.tasks), digest=digest)
    over = baseline or (base_of_run(checkpoint) if found.facts is not None else None)
    if over is None:
        return None
    try:
        refuse_other_questions(over, asked)
    except StageError as error:
        if baseline is not None:
            raise
        parts.console.say(f"no gain over the base model of the run is shown: {error}")
        return None
    return over


def _report(parts: "Assembly", name: str, directory: Path, over: Baseline | None) -> None:
    """Prints the results and the gains, and writes the gains.

    Raises:
        StageError: The results cannot be paired with the baseline's.
    """
    from lightning_mmrl.cli.modality_table import print_modality
    from lightning_mmrl.cli.tables import by_task, gains_table, print_breakdowns, print_thinking, results_table
    from lightning_mmrl.training.console import report_console

    comparison, problem = _compared(parts, name, directory, over)
    console = report_console()
    for results, gains in by_task(comparison):
        console.print(results_table(results))
        print_breakdowns(console, name, results)
        if over is not None and gains:
            console.print(gains_table(results[0].task, gains, over.name))
    if over is not None and comparison.gains:
        apart = {gain.name: unpaired(gain.name, (directory, over.folder)) for gain in comparison.gains}
        for each, ids in apart.items():
            if ids:
                some = ", ".join(ids[:5]) + (", ..." if len(ids) > 5 else "")
                console.print(f"{each}: {len(ids)} samples that only one side judged are no part of its gain ({some})")
        gains = [gain.plain() | {"unpaired": apart[gain.name]} for gain in comparison.gains]
        write_json(directory / GAINS, {"baseline": str(over.folder), "gains": gains})
    print_thinking(console, comparison)
    print_modality(directory, f"of {name}", console)
    deliver_leftovers(parts.config, console.print)
    console.print(f"predictions and figures in {directory}", soft_wrap=True)
    if over is not None and problem is not None:
        raise StageError(
            f"--baseline {over.name} cannot be paired ({problem}), and only the results above were written; evaluate "
            "both on the same manifests"
        )


def _compared(parts: "Assembly", name: str, directory: Path, over: Baseline | None) -> tuple["Comparison", str | None]:
    """The results, with those of the baseline on the same sets and the gains; and why there are no gains."""
    from lightning_mmrl.curriculum.compare import compare_stages
    from lightning_mmrl.evaluation.intervals import ClusterBootstrap
    from lightning_mmrl.evaluation.sampled import SAMPLED
    from lightning_mmrl.registry.tasks import task_of_result

    bootstrap, task_of = ClusterBootstrap(settings=parts.config.evaluation), partial(task_of_result, tasks=parts.tasks)
    own = compare_stages({name: directory}, {}, task_of, bootstrap)
    if over is None:
        return own, None
    folders = {over.name: over.folder, name: directory}
    try:
        both = compare_stages(folders, {name: over.name}, task_of, bootstrap)
    except DataError as error:
        return own, str(error)
    # Samples of two evaluations are comparable only if both were drawn alike, which nobody has checked.
    both = replace(both, gains=[gain for gain in both.gains if not gain.name.endswith(f"-{SAMPLED}")])
    if not both.gains:
        return own, "it judged none of these samples"
    sets = {each.name for each in own.results}
    return replace(both, results=[each for each in both.results if each.name in sets]), None


@contextmanager
def _run_of_mlflow(config: RunSettings, name: str) -> Iterator[TrackedRun | None]:
    """Yields the run that `mlflow run` opened for this process, if any; metrics and predictions are logged to it."""
    from lightning_mmrl.app.trackers import open_tracker
    from lightning_mmrl.tracking.status import status_of

    if config.tracking.uri is None or not os.environ.get("MLFLOW_RUN_ID"):
        yield None
        return
    tracker = open_tracker(config)
    try:
        run = tracker.open_run(f"evaluate {name}")
        with status_of(run):
            yield run
    finally:
        tracker.close()
