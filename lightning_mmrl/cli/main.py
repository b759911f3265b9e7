"""The `mmrl` command: one line per subcommand, each loaded only when it is called."""

import importlib
import os
import select
import sys
import threading
import traceback
from collections.abc import Sequence
from types import TracebackType

from lightning_mmrl import __version__
from lightning_mmrl.errors import MmrlError
from lightning_mmrl.files import take_missing
from lightning_mmrl.machine import refusal
from lightning_mmrl.types.redaction import redact, remember
from lightning_mmrl.types.text import printable

COMMANDS = {
    "train": "run a curriculum, or continue or report one",
    "folds": "run a curriculum on every fold of a set, and report the mean over folds",
    "compare": "train arms over one experiment, at an equal budget, and compare them over seeds",
    "serve": "start a vLLM server for a run with rollout=vllm_server",
    "profile": "train a few steps of each stage, and show where their time goes",
    "plan": "show the stages, batches and memory of a run without training",
    "evaluate": "evaluate a checkpoint on the configured sets",
    "judge": "have a language model judge the answers of a run",
    "predict": "answer one question about files or text: the reasoning and the answer",
    "export": "copy a checkpoint to share, with a model card",
    "lineage": "show the stages, data and experts that led to a checkpoint",
    "report": "write one page that shows a run, or two side by side",
    "seeds": "combine runs of several seeds: means, gains and their intervals over seeds",
    "data": "validate, describe, show, convert and generate datasets",
    "cache": "show or prune a cache of encoded media",
    "reward-test": "rerun rewards on a saved rollout table and show the changes",
    "tracking": "show or deliver entries that wait for the tracking server",
    "doctor": "check this machine: versions, devices, decoders, disk, tracking",
}

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
EXIT_READER_LEFT = 141
"""Exit code if the reader of the output has left, as in `mmrl --help | head -1`; shells use the same number."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a subcommand and returns the exit code."""
    if arguments is None:
        _shield_children()
        sys.excepthook, threading.excepthook = _uncaught, _in_a_thread
    try:
        code = _run(list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        if not _reader_left():
            raise
        return EXIT_READER_LEFT


def _run(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0 if argv else EXIT_BAD_INPUT
    if argv[0] == "--version":
        print(f"mmrl {__version__}")
        return 0
    if argv[0] not in COMMANDS:
        print(f"mmrl: unknown command {argv[0]!r}; choose one of {', '.join(COMMANDS)}", file=sys.stderr)
        return EXIT_BAD_INPUT
    remember(*argv)
    command = importlib.import_module(f"lightning_mmrl.cli.{argv[0].replace('-', '_')}")
    try:
        return command.run(argv[1:])
    except Exception as error:
        found = None if isinstance(error, MmrlError) else refusal(error)
        if found is None and not isinstance(error, MmrlError):
            raise
        where = "" if _rank() == "0" else f" (rank {_rank()})"
        print(f"mmrl {argv[0]}{where}: {printable(redact(error if found is None else found.error()))}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt as interrupt:
        # Read as attributes: importing the class `Interrupted` would load torch.
        signal, code = str(interrupt) or "SIGINT", getattr(interrupt, "exit_code", EXIT_INTERRUPTED)
        if _rank() == "0":
            print(f"mmrl {argv[0]}: interrupted by {signal}; the same command continues", file=sys.stderr)
        return code
    finally:
        for line in take_missing():
            print(f"mmrl {argv[0]}: {printable(redact(line))}", file=sys.stderr)


def _uncaught(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    """Prints a traceback without credentials; its lines may repeat an address or a header that holds some."""
    print(redact("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr)


def _in_a_thread(failed: threading.ExceptHookArgs) -> None:
    """Reports an error that ended a thread: one line if the machine refused something, a traceback otherwise."""
    if issubclass(failed.exc_type, SystemExit):
        return
    found = None if failed.exc_value is None else refusal(failed.exc_value)
    name = "a thread" if failed.thread is None else f"the thread {failed.thread.name}"
    if found is None:
        print(f"mmrl: {name} ends:", file=sys.stderr)
        _uncaught(failed.exc_type, failed.exc_value, failed.exc_traceback)
        return
    print(f"mmrl: {name} ends: {printable(redact(found.problem))}", file=sys.stderr)


def _shield_children() -> None:
    """Keeps child processes from importing from the current folder, unless this process does so itself.

    Ranks and workers start by `-m` and `-c`, for which Python searches the current folder first: a `yaml.py` in
    somebody else's folder would run in them.
    """
    if not {"", os.getcwd()} & set(sys.path):
        os.environ.setdefault("PYTHONSAFEPATH", "1")


def _rank() -> str:
    """The rank of this process under torchrun or SLURM; "0" without a launcher."""
    return os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or "0"


def _reader_left() -> bool:
    """Whether the broken pipe is standard output, not a pipe to a worker; if so, discards unwritten output."""
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)
    if not any(event & select.POLLERR for _, event in output.poll(0)):
        return False
    # Otherwise Python would write the output again when it exits, and report the failure.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def usage() -> str:
    """The text of `mmrl --help`."""
    lines = [f"  {name:<13}{purpose}" for name, purpose in COMMANDS.items()]
    return "\n".join(
        [
            "mmrl - staged SFT and RL training for multimodal reasoning models",
            "",
            "usage: mmrl COMMAND [arguments]; mmrl COMMAND --help says more",
            "",
            *lines,
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
