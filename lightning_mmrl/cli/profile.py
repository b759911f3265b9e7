"""`mmrl profile`: trains a few steps of each stage, and shows where their time goes and which key would change it."""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from lightning_mmrl.cli.device_memory import require_memory
from lightning_mmrl.cli.hydra_app import run_with_config, take_flags
from lightning_mmrl.cli.launch import on_all_ranks
from lightning_mmrl.errors import ConfigError
from lightning_mmrl.settings.run import RunSettings

STEPS, OUT, STAGE = "--steps", "--out", "--stage"
HELP = """mmrl profile - train a few steps of each stage, and show where their time goes

usage: mmrl profile OVERRIDES [--steps N] [--out DIR] [--stage NAME] [--allow-targets PREFIX]

OVERRIDES are as for mmrl train, such as experiment=quickstart. Each stage that trains or samples makes N + 2 steps:
the first is left out, N are timed, and the last one is traced by torch.profiler. Stages start from each other, as in
the run itself. A run of the same name is neither read nor changed. Nothing is tracked, validated or evaluated, and no
expert is asked. Generated data, a base model that is built, and the media cache are where mmrl train has them.

  --steps N     timed steps of each stage; 3 by default
  --out DIR     folder of the profile; profiles/RUN_NAME below output_dir by default. It gets profile.md, which is also
                printed, and STAGE.trace.json for each stage, which https://ui.perfetto.dev opens
  --stage NAME  profile this stage alone; stages that it builds on run as short, without a profile

examples:
  mmrl profile experiment=quickstart
  mmrl profile experiment=quickstart --steps 5 --stage reason stages.reason.algorithm.group_size=4
"""


def run(arguments: Sequence[str]) -> int:
    """Runs the command and returns its exit code.

    Raises:
        ConfigError: `--steps` is no whole number of steps, or as in `profiled_stages`.
    """
    if any(argument in ("-h", "--help") for argument in arguments):
        print(HELP)
        return 0
    flags, rest = take_flags(arguments, valued=(STEPS, OUT, STAGE))
    steps = flags.get(STEPS, "3")
    if not steps.isdecimal() or int(steps) < 1:
        raise ConfigError(f"{STEPS} is {steps!r}; it must be a whole number of steps, at least 1")
    out = Path(flags[OUT]) if OUT in flags else None
    task = partial(profile, num_steps=int(steps), out=out, only=flags.get(STAGE))
    codes = run_with_config(lambda config: on_all_ranks(task, config, "profile", arguments), "mmrl profile", rest)
    return max(codes, default=0)


def profile(config: RunSettings, num_steps: int, out: Path | None, only: str | None) -> None:
    """Profiles the stages and prints the page."""
    # Loaded here: a bad configuration is refused before torch is imported.
    from lightning_mmrl.app.profiling import profile_run, profiled_stages
    from lightning_mmrl.training.console import ConsoleProgress
    from lightning_mmrl.training.group import joined
    from lightning_mmrl.training.interruption import Interruption

    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # lines of the profiler's library about itself
    names = profiled_stages(config, only)
    folder = out or Path(config.output_dir) / "profiles" / config.run_name
    with Interruption() as interruption, joined(config.trainer, interruption) as group:
        require_memory(config, print if group.leads else lambda line: None)
        with ConsoleProgress(quiet=not group.leads) as console:
            text = profile_run(config, console, group, folder=folder, names=names, steps=num_steps)
        if group.leads:
            print(text)
            print(f"profile in {folder}")
