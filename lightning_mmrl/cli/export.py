"""`mmrl export HANDOFF DIRECTORY`: copies a checkpoint to a folder to share, with a model card."""

import argparse
from collections.abc import Sequence
from pathlib import Path


def run(arguments: Sequence[str]) -> int:
    """Runs the command and returns its exit code."""
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
    options = parser.parse_args(arguments)

    # Loaded here, so that argument errors load no libraries.
    from lightning_mmrl.curriculum.publish import publish

    card = publish(options.handoff.absolute(), options.directory, name=options.name, license_id=options.license)
    print(f"{options.directory} is complete; read and amend {card} before you share it")
    return 0
