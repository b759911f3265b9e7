"""`mmrl data`: validates, describes, shows, converts and generates datasets."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_mmrl.cli.data_convert import add_conversions, add_source_options, check_source_options
from lightning_mmrl.cli.data_folds import add_folds
from lightning_mmrl.cli.data_from_csv import add_from_csv
from lightning_mmrl.cli.data_options import add_guard, guard_of, label_set
from lightning_mmrl.cli.data_prepare import add_prepare
from lightning_mmrl.errors import ConfigError
from lightning_mmrl.files import write_json
from lightning_mmrl.registry.own_code import FLAG, opened, split_prefixes

if TYPE_CHECKING:
    from lightning_mmrl.settings.run import RunSettings

ENCODING_NOT_CHECKED = (
    "encoding not checked: add --for experiment=NAME to find samples that a training would refuse or leave out"
)
EXIT_PROBLEMS = 1
"""Exit code if the data have problems, which are reported; a bad argument gives 2."""


def run(arguments: Sequence[str]) -> int:
    """Runs the command and returns its exit code."""
    parser = argparse.ArgumentParser(prog="mmrl data", description="Make and inspect datasets; see docs/data.md.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_inspections(commands)
    add_conversions(commands)
    add_from_csv(commands)
    add_prepare(commands)
    add_folds(commands)
    synth = commands.add_parser("synth", help="generate a dataset with known answers: media files and manifests")
    synth.add_argument("directory", type=Path, help="where the set goes; it appears when it is complete")
    synth.add_argument("--task", default="emotions", metavar="NAME", help="task to generate (default %(default)s)")
    synth.add_argument("--seed", type=int, default=0, help="seed; the same seed gives the same bytes (default 0)")
    synth.add_argument("--scale", type=float, default=1.0, help="multiplies the size of every split (default 1.0)")
    synth.add_argument("--workers", type=int, default=2, help="rendering processes (default 2)")
    synth.add_argument("--overwrite", action="store_true", help="replace a set made with other settings")
    synth.set_defaults(call=_synth)
    options = parser.parse_args(arguments)
    return options.call(options)


def _add_inspections(commands: Any) -> None:
    """Adds `validate`, and `stats`, which decodes nothing."""
    validate = commands.add_parser(
        "validate",
        help="decode all media and report every bad line",
        description="Read every line and decode every medium; with --for also encode every sample as an experiment "
        "would. The exit code is 0 if all is usable, 1 if there are problems.",
    )
    stats = commands.add_parser(
        "stats",
        help="the same tables without decoding",
        description="Read every line and find every file without decoding. Exit codes are the same as for validate.",
    )
    for parser in (validate, stats):
        parser.add_argument(
            "manifests", type=Path, nargs="+", metavar="MANIFEST", help="one file per split, in any known format"
        )
        add_source_options(parser)
        parser.add_argument("--labels", metavar="A,B", help="label set; any other solution is a problem")
        parser.add_argument("--json", type=Path, metavar="FILE", help="also write the whole report to this file")
        parser.add_argument(
            "--show", type=int, default=20, metavar="N", help="bad lines to print (default %(default)s)"
        )
    validate.add_argument(
        "--for",
        dest="experiment",
        nargs="+",
        action="extend",
        metavar="OVERRIDE",
        help="encode as a training with these overrides would, such as --for experiment=own_clips model=...; its "
        "data.media sets the limits",
    )
    validate.add_argument("--config-dir", metavar="DIR", help="a folder of your own configs for --for")
    validate.add_argument(
        FLAG, action="append", default=[], metavar="PREFIX", help="code of your own that --for may name"
    )
    add_guard(validate)
    validate.set_defaults(call=_validate)
    stats.set_defaults(call=lambda options: _inspect(options, decode=False), experiment=None, config_dir=None)


def _validate(options: argparse.Namespace) -> int:
    with opened(split_prefixes(options.allow_targets)):
        return _inspect(options, decode=True)


def _inspect(options: argparse.Namespace, *, decode: bool) -> int:
    if options.show < 0:
        raise ConfigError(f"--show is {options.show}; it must be at least 0")
    check_source_options(options)
    if options.json is not None and not options.json.parent.is_dir():
        raise ConfigError(f"--json {options.json}: its folder does not exist; create it or name another file")
    guard = guard_of(options) if decode else None
    if options.config_dir is not None and not options.experiment:
        raise ConfigError("--config-dir is given without --for; add --for experiment=NAME")
    config = _experiment(options) if options.experiment else None
    # Loaded here, so that argument errors do not load the decoders.
    from lightning_mmrl.cli.data_tables import print_report, warning_lines
    from lightning_mmrl.data.inspection import decode_inventory, take_inventory
    from lightning_mmrl.data.report import summarize
    from lightning_mmrl.training.console import ConsoleProgress

    notes = [ENCODING_NOT_CHECKED] if decode else []
    with ConsoleProgress() as console:
        check = None
        if config is not None and guard is not None:
            from lightning_mmrl.app.encoding_checks import EncodingCheck

            check = EncodingCheck(config, options.media_root, console)
            guard = replace(guard, settings=check.parts.config.data.media, own=check.own_sizes)
            notes = [check.note(options.manifests)]
        inventory = take_inventory(options.manifests, options.media_root, label_set(options.labels), options.format)
        if guard is not None:
            inventory = decode_inventory(
                inventory, guard, lambda done, total: console.update("decoding media", done, total)
            )
        if check is not None:
            inventory = check.run(inventory)
    report = summarize(inventory)
    lines = [*inventory.notes, *warning_lines(report.warnings, options.show), *notes]
    print_report(report, options.show, lines)
    if options.json is not None:
        _write_json(options.json, {**report.as_json(), "encoding_checked": check is not None})
    return 0 if report.sound else EXIT_PROBLEMS


def _experiment(options: argparse.Namespace) -> "RunSettings":
    """The configuration that --for composes; its data.root is --media-root unless an override sets it.

    Raises:
        ConfigError: The configuration is refused, or a flag sets a limit that the experiment sets already.
    """
    given = [name for name in ("max_duration_s", "max_pixels", "max_bytes") if getattr(options, name) is not None]
    if given:
        flag = given[0].replace("_", "-")
        raise ConfigError(f"--{flag} is given with --for, whose data.media.{given[0]} counts; set that after --for")
    from lightning_mmrl.cli.hydra_app import run_with_config

    overrides = list(options.experiment)
    if not any(override.lstrip("+").startswith("data.root=") for override in overrides):
        overrides.append(f"data.root={json.dumps(str(options.media_root))}")
    own = [] if options.config_dir is None else ["--config-dir", options.config_dir]
    [config] = run_with_config(lambda config: config, "mmrl data validate", [*own, *overrides])
    return config


def _write_json(path: Path, content: dict[str, Any]) -> None:
    try:
        if path.exists() and not path.is_file():  # a pipe or a device is written to, never replaced
            path.write_text(json.dumps(content, indent=2) + "\n", encoding="ascii")
        else:
            write_json(path.resolve(), content, shared=True)
    except OSError as error:
        raise ConfigError(f"--json {path} cannot be written ({error.strerror or error}); name another file") from error


def _synth(options: argparse.Namespace) -> int:
    if options.workers < 1:
        raise ConfigError(f"--workers is {options.workers}; it must be at least 1")
    # Loaded here, so that argument errors do not load numpy.
    from lightning_mmrl.data.synthetic.tasks import TASKS
    from lightning_mmrl.suggestions import did_you_mean
    from lightning_mmrl.training.console import ConsoleProgress

    if options.task not in TASKS:
        raise ConfigError(f"--task {options.task}: no such task{did_you_mean(options.task, TASKS)}")
    with ConsoleProgress() as console:
        folder = TASKS[options.task](
            options.directory,
            seed=options.seed,
            scale=options.scale,
            workers=options.workers,
            overwrite=options.overwrite,
            on_progress=lambda done, total: console.update(f"generating {options.task}", done, total),
        )
    print(folder)
    return 0
