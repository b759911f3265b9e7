"""`mmrl predict CHECKPOINT [FILE ...]`: answers one question about files, or about text alone, with its reasoning."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from lightning_mmrl.cli.data_options import add_decode_bounds, check_bounds
from lightning_mmrl.errors import ConfigError
from lightning_mmrl.prompts.template import DEFAULT_QUESTION
from lightning_mmrl.registry.own_code import FLAG, opened, split_prefixes


def run(arguments: Sequence[str]) -> int:
    """Runs the command and returns its exit code."""
    options = _parser().parse_intermixed_args(arguments)
    if not options.files and options.audio is None and options.question is None:
        raise ConfigError("there is nothing to ask about; name a video, picture or sound file, or give --question")
    if options.question is not None and not options.question.strip():
        raise ConfigError(f"--question is {options.question!r}, which is empty; say what to ask or leave it out")
    if options.max_new_tokens is not None and options.max_new_tokens < 1:
        raise ConfigError(f"--max-new-tokens is {options.max_new_tokens}; it must be at least 1")
    check_bounds(options, ("deadline", "memory_mb"))

    # Loaded here, so that argument errors do not load torch.
    from lightning_mmrl.app.predict import answer_question
    from lightning_mmrl.prompts.scanner import scan
    from lightning_mmrl.training.console import report_console

    with opened(split_prefixes(options.allow_targets)):
        completion, media = answer_question(
            options.checkpoint,
            options.files,
            question=DEFAULT_QUESTION if options.question is None else options.question,
            sound=options.audio,
            hear=not options.no_audio,
            max_new_tokens=options.max_new_tokens,
            deadline_s=options.deadline,
            memory_mb=options.memory_mb,
        )
    files: dict[Path, list[str]] = {}
    for path, ref in media:
        files.setdefault(path, []).append(ref.kind)
    about = "; ".join(f"{' and '.join(kinds)} of {path}" for path, kinds in files.items()) or "text alone"
    answer = scan(completion.text)
    lines = [
        f"about:     {about}",
        f"reasoning: {answer.think if answer.think is not None else '-'}",
        f"answer:    {answer.answer if answer.answer is not None else '-'}",
    ]
    lines += [] if answer.valid else [f"the answer is not in the expected format: {answer.problem}"]
    console = report_console()
    for line in lines:
        console.print(line, soft_wrap=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mmrl predict",
        description="Answer one question and show the reasoning. The model gets the pictures and the sound of each "
        "file; without a file the question is about text alone.",
    )
    parser.add_argument("checkpoint", type=Path, help="a stage's handoff folder")
    parser.add_argument("files", type=Path, nargs="*", metavar="FILE", help="a video, picture or sound, or several")
    parser.add_argument("--question", help=f"what to ask (default: {DEFAULT_QUESTION})")
    parser.add_argument("--audio", type=Path, help="a sound file that replaces the sound of the videos")
    parser.add_argument("--no-audio", action="store_true", help="leave out the sound of videos")
    parser.add_argument("--max-new-tokens", type=int, help="longest answer in tokens (default: as in its evaluation)")
    add_decode_bounds(parser)
    parser.add_argument(
        FLAG, action="append", default=[], metavar="PREFIX", help="own code that builds the model, such as my_package"
    )
    return parser
