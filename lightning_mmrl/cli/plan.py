"""`mmrl plan`: shows the stages that `mmrl train` would run, from the configuration alone; torch is not loaded."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.table import Table

from lightning_mmrl.cli.cost_lines import show_costs
from lightning_mmrl.cli.hydra_app import run_with_config, take_flags
from lightning_mmrl.cli.memory_table import show_memory
from lightning_mmrl.config.budget import counted_before, limits, uncounted, with_budget
from lightning_mmrl.config.epochs import num_samples, with_steps
from lightning_mmrl.config.specs import manifest_digests, stage_specs
from lightning_mmrl.curriculum.attempt import STATES, Attempt, stage_folder
from lightning_mmrl.curriculum.changes import same_content
from lightning_mmrl.curriculum.manifest import Manifest
from lightning_mmrl.curriculum.selection import is_stale
from lightning_mmrl.errors import ConfigError
from lightning_mmrl.planning.clips import CLIP, Clip
from lightning_mmrl.planning.memory import Lengths
from lightning_mmrl.planning.refusals import refuse_misfits
from lightning_mmrl.registry.kinds import kind_of
from lightning_mmrl.settings.run import RunSettings
from lightning_mmrl.settings.stage import NodeSettings, StageSettings
from lightning_mmrl.tracking.store import tell_leftovers
from lightning_mmrl.training.console import report_console
from lightning_mmrl.training.state_store import StateStore
from lightning_mmrl.types.records import WEIGHTS, StageSpec
from lightning_mmrl.types.redaction import redact

PROMPT_TOKENS = "--prompt-tokens"
"""Flag for the length of a prompt in the memory estimate."""


def run(arguments: Sequence[str]) -> int:
    """Runs the command and returns its exit code."""
    flags, rest = take_flags(arguments, valued=(PROMPT_TOKENS, CLIP))
    tokens, lengths = flags.get(PROMPT_TOKENS), Lengths()
    if tokens is not None:
        if not tokens.isdecimal() or int(tokens) < 1:
            raise ConfigError(f"{PROMPT_TOKENS} is {tokens!r}; it must be a whole number of tokens, at least 1")
        lengths = Lengths(prompt=int(tokens))
    clip = Clip.parse(flags[CLIP]) if CLIP in flags else None
    run_with_config(partial(plan, lengths=lengths, clip=clip), "mmrl plan", rest)
    return 0


def plan(config: RunSettings, lengths: Lengths, clip: Clip | None = None) -> None:
    """Prints stages, sizes, batch arithmetic, memory and the places of all outputs.

    Raises:
        ConfigError: A stage does not fit the devices of `trainer.gpu_memory_gb`.
    """
    console = report_console(width=140)
    directory = Path(config.output_dir) / config.run_name
    manifest, specs = Manifest.read(directory), stage_specs(config, manifest_digests(config))
    stages = with_budget(config, {name: with_steps(config, name) for name in config.trained})
    table = Table(title=f"{config.run_name}: {len(config.order)} stages")
    for name in ("stage", "kind", "starts from", "data", "samples", "steps", "per step", "passes", "state"):
        table.add_column(name)
    for spec in specs:
        stage = stages.get(spec.name) or config.stages[spec.name]
        sources = stage.data.located(config.dataset(stage.data.dataset)).values()
        samples = num_samples(sources, Path(config.data.media.cache_dir))
        base = stage.checkpoint or (f"base model {config.model.checkpoint_but_build}" if spec.reads_weights else "-")
        read = ", ".join(f"{edge.artifact} of {edge.stage}" for key, edge in spec.inputs.items() if key != WEIGHTS)
        trained = isinstance(stage, StageSettings)
        steps = (str(stage.num_steps or "?"), passes(stage, samples)) if trained else ("-", "1.00")
        table.add_row(
            spec.name, stage.kind, spec.source or base, data_names(stage) or read, str(samples or "?"),
            steps[0], kind_of(stage, spec.name).describe(stage), steps[1], state(spec, manifest, directory),
        )  # fmt: skip
    console.print(table)
    for name, stage in stages.items():
        for line in [*adapters(stage), *conditions(stage)]:
            console.print(f"{name:<12} {line}")
    for line in budget_lines(config):
        console.print(line, soft_wrap=True)
    for spec in specs:
        if not spec.trains:
            console.print(f"{spec.name:<12} makes {', '.join(spec.outputs)}; trains nothing")
    known = show_memory(console, config, list(config.trained), lengths, clip)
    show_costs(console, config, stages, known)
    sets = ", ".join(f"{name} ({each.manifest})" for name, each in config.evaluation.sets.items())
    console.print(f"evaluated after each stage on {sets}")
    for data in config.all_data.values():
        to_generate = data.build is not None and not Path(data.root).is_dir()
        console.print(f"dataset      {data.root}{' (will be generated)' if to_generate else ''}")
    if config.model.build is not None:
        built = (Path(config.model.checkpoint) / "config.json").is_file()
        console.print(f"base model   {config.model.checkpoint}{'' if built else ' (will be built)'}", soft_wrap=True)
    console.print(f"run folder   {directory}")
    tell_leftovers(config, console.print)
    console.print(f"tracking     {redact(config.tracking.uri or 'none')}")
    refuse_misfits(config, known)


def state(spec: StageSpec, manifest: Manifest, directory: Path) -> str:
    """Says in words in which state `mmrl train` would find a stage."""
    finished = manifest.stages.get(spec.name)
    if finished is None:
        folder = stage_folder(directory, spec)
        attempt, step = Attempt.read(folder), StateStore(folder / STATES).newest_step()
        if attempt is None:
            return "to run"
        if not same_content(attempt.content, spec.content):
            return f"{'begun' if step is None else f'at step {step}, begun'} with another configuration"
        if step is not None:
            return f"to continue after step {step}"
        return f"to continue after {len(list((folder / STATES).glob('part-*.jsonl')))} batches"
    if not same_content(finished.content, spec.content):
        return "finished, configured differently"
    if is_stale(spec, manifest):
        return "to run again: an input was replaced"
    if spec.trains and finished.evaluation != spec.evaluation:
        return "to evaluate"
    return "finished, had nothing to do" if finished.result.idle else "finished"


def data_names(stage: NodeSettings) -> str:
    """The manifest of a stage, or its sources with their shares if they have weights; empty without either."""
    if stage.data.manifest:
        return stage.data.manifest
    weights = {name: source.weight for name, source in stage.data.sources.items()}
    total = sum(weight for weight in weights.values() if weight is not None)
    shares = [name if weight is None else f"{name} {weight / total:.0%}" for name, weight in weights.items()]
    return ", ".join(shares) + (" by size" if len(weights) > 1 and not total else "")


def conditions(stage: StageSettings) -> list[str]:
    """Returns a line for each phase, the early end, the evaluation sets and the gate, as far as a stage has them."""
    stop, gate = stage.stop_when, stage.gate
    cooldown = f", after {stage.cooldown_steps} more steps" if stage.cooldown_steps else ""
    lines = []
    for phase in {} if stage.algorithm is None else stage.algorithm.phases.values():
        given = {
            "completions per prompt": phase.group_size,
            "tokens at most": phase.max_new_tokens,
            "temperature": phase.temperature,
        }
        changes = ", ".join(f"{value:g} {name}" for name, value in given.items() if value is not None)
        lines.append(f"from iteration {phase.after + 1}: {changes or 'as before'}")
    lines += [] if stop is None else [f"ends early once {stop}, checked every {stage.validate_every} steps{cooldown}"]
    chosen = stage.evaluation_sets
    lines += [] if chosen is None else [f"evaluated on {', '.join(chosen) or 'no set'}"]
    return lines if gate is None else [*lines, f"must reach {gate}, or the curriculum ends there"]


def budget_lines(config: RunSettings) -> list[str]:
    """Returns a line for each stage that the budget ends, and one about what the budget does not count, if anything."""
    budget, missing = config.budget, uncounted(config)
    lines = []
    for name, limit in limits(config).items():
        stage, counted = config.trained[name], [*counted_before(config, name), name]
        together = f" of {', '.join(counted[:-1])} and {name} together" if counted[1:] else ""
        nominal = f"{stage.num_epochs:g} passes" if stage.num_steps is None else f"{stage.num_steps} steps"
        lines.append(
            f"{name:<12} ends by the budget, at {limit:.6g} {'' if budget is None else budget.measure}{together}; its "
            f"schedules go by the share that is spent, as over {nominal}"
        )
    return lines if missing is None else [*lines, f"budget       {missing}"]


def adapters(stage: StageSettings) -> list[str]:
    """Returns a line about the adapter that is trained in place of the weights, if there is one."""
    adapter = stage.adapter
    if adapter is None:
        return []
    dropout = f", dropout {adapter.dropout:g}" if adapter.dropout else ""
    size = f"rank {adapter.r}, alpha {adapter.alpha}{dropout}"
    return [f"trains an adapter: {size}, on {', '.join(adapter.wanted)} linear layers of {', '.join(adapter.groups)}"]


def passes(stage: StageSettings, samples: int | None) -> str:
    """Number of passes that a stage makes over its data."""
    if samples and stage.num_steps is not None:
        return f"{stage.num_steps * stage.data.batch_size / samples:.2f}"
    return "?" if stage.num_epochs is None else f"{stage.num_epochs:g}"
