"""Errors that a user can act on: each names the key or file, the value found and the fix."""


class MmrlError(Exception):
    """Base of the errors that end a command with one clear sentence and exit code 2."""


class ConfigError(MmrlError):
    """A configuration key is unknown, has the wrong type or contradicts another key."""


class DataError(MmrlError):
    """A manifest or dataset folder is missing, malformed or inconsistent."""


class MediaError(MmrlError):
    """A clip, image or sound file cannot be decoded or breaks a limit."""


class RewardError(MmrlError):
    """A reward function failed, ran past its deadline or returned something that is not a number."""


class RolloutError(MmrlError):
    """An engine cannot be loaded, does not answer, or samples from another distribution than the policy's."""


class StageError(MmrlError):
    """A stage cannot start or continue: a checkpoint is missing, incomplete or belongs to another run."""


class GateError(StageError):
    """The metrics of a finished stage do not meet its gate, so the curriculum ended."""


class MachineError(MmrlError):
    """The machine refuses a resource: disk space, permission to write, open files or memory."""


class DiskError(MachineError, OSError):
    """A disk refuses; code that handles a disk's OSError handles this error as well.

    `problem` is a clause that names the file; `remedy` is the user's way out.
    """

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(f"{problem}; {remedy}" if remedy else problem)
        self.problem, self.remedy = problem, remedy


class OutOfMemoryError(MachineError):
    """A device or the host has no memory left; `stage` is the stage that was running, if any."""

    def __init__(self, message: str, stage: str | None = None) -> None:
        super().__init__(message)
        self.stage = stage


FOREIGN_FAILURES = (Exception, SystemExit)
"""Failures of foreign code that must not end the run: any exception and `sys.exit`, but not Ctrl-C."""
