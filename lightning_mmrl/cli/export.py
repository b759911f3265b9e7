"""`mmrl export HANDOFF DIRECTORY`: copies a checkpoint to a folder to share, with a model card, or registers it too."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from lightning_mmrl.curriculum.manifest import FILE as MANIFEST
from lightning_mmrl.curriculum.manifest import Manifest
from lightning_mmrl.errors import ConfigError
from lightning_mmrl.types.redaction import redact, redact_addresses, remember
from lightning_mmrl.types.text import printable

_SQLITE = "sqlite:"


def run(arguments: Sequence[str]) -> int:
    """Runs the command and returns its exit code."""
    options = _parser().parse_args(arguments)
    if options.tracking_uri is not None and options.register is None:
        raise ConfigError("--tracking-uri names the store of --register NAME; give both, or neither")
    if options.register is not None and (not options.register.strip() or set(options.register) & set("/:'\"")):
        raise ConfigError(f"--register {options.register!r}: a name has no slash, colon or quote, and is not empty")
    handoff: Path = options.handoff.absolute()
    made_by = None if options.register is None else _made_by(handoff, options.tracking_uri)

    # Loaded here, so that argument errors load no libraries.
    from lightning_mmrl.curriculum.publish import publish

    again = made_by is not None and options.directory.is_dir() and _same(handoff, options.directory)
    if again:
        print(f"{options.directory} has this handoff already")
    else:
        card = publish(handoff, options.directory, name=options.name, license_id=options.license)
        print(f"{options.directory} is complete; read and amend {card} before you share it")
    if made_by is not None:
        _register(handoff, options.directory, str(options.register), made_by)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mmrl export",
        description="Copy a stage's handoff to a folder to share: safetensors, processor, chat template, generation "
        "config, and a model card with its stages, scores and lineage. Plain transformers loads it.",
    )
    parser.add_argument(
        "handoff", type=Path, help="a stage's handoff folder, such as runs/NAME/stages/02-reason/handoff"
    )
    parser.add_argument("directory", type=Path, help="where the copy goes; it appears when it is complete")
    parser.add_argument("--name", help="title of the model card (default: the directory's name)")
    parser.add_argument("--license", metavar="ID", help="license identifier for the card, such as apache-2.0")
    parser.add_argument(
        "--register",
        metavar="NAME",
        help="also upload the copy to MLflow, and make it a version of the registered model NAME; called again with "
        "the same handoff, it continues, and makes no second version",
    )
    parser.add_argument(
        "--tracking-uri", metavar="URI", help="the store of --register (default: MLFLOW_TRACKING_URI, or the run's)"
    )
    return parser


def _made_by(handoff: Path, tracking_uri: str | None) -> dict[str, Any]:
    """Finds the tracked run that made a handoff, and the store that it is in, before anything is copied.

    Raises:
        ConfigError: The handoff is not in the folder of its run; the run was not tracked in MLflow; or only the folder
            names the server, which must not get this user's credentials.
    """
    folder = handoff.parents[2] if len(handoff.parents) > 2 else handoff
    stages = Manifest.read(folder).stages if (folder / MANIFEST).is_file() else {}
    found = [
        stage
        for stage in stages.values()
        if stage.result.handoff is not None and (folder / stage.result.handoff.path).resolve() == handoff.resolve()
    ]
    if not found:
        raise ConfigError(
            f"{handoff} is not the handoff of a finished stage in a run folder, so its tracked run is not known; name "
            "one, such as runs/NAME/stages/02-reason/handoff"
        )
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    noted = config["tracking"]["uri"]
    given = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    if given is None and noted is not None and not noted.startswith(_SQLITE):
        raise ConfigError(
            f"the run was tracked at {redact(noted)}, which only its folder names; if that is your server, give "
            f"--tracking-uri {redact(noted)}"
        )
    if given is None and noted is None:
        raise ConfigError(
            f"{folder} was not tracked in MLflow; export it without --register, and log the copy yourself"
        )
    remember(given or "")
    return {
        "uri": given or noted,
        "experiment": config["tracking"]["experiment"],
        "stage": found[0].result.name,
        "run_id": found[0].result.tracking_id,
    }


def _same(handoff: Path, directory: Path) -> bool:
    """Whether a folder is the copy of a handoff that an earlier call made."""
    from lightning_mmrl.curriculum.lineage import checked_handoff

    return checked_handoff(handoff)["seal"] == checked_handoff(directory)["seal"]


def _register(handoff: Path, copied: Path, name: str, made_by: dict[str, Any]) -> None:
    from lightning_mmrl.curriculum.lineage import checked_handoff
    from lightning_mmrl.tracking.logged_models import Asked
    from lightning_mmrl.tracking.registry import register
    from lightning_mmrl.tracking.store import absolute_sqlite

    uri = absolute_sqlite(made_by["uri"])
    digest = checked_handoff(copied)["digest"]
    asked = Asked(name=made_by["stage"], handoff=handoff, digest=digest, copied=copied)
    version, model_id = register(uri, made_by["experiment"], name, asked, run_id=made_by["run_id"])
    print(printable(f"version {version} of {name} in {redact_addresses(uri)}: models:/{name}/{version}, {model_id}"))
