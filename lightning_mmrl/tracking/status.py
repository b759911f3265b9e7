"""The status with which a tracked run ends."""

from collections.abc import Iterator
from contextlib import contextmanager

from lightning_mmrl.protocols.plain import TrackedRun


@contextmanager
def status_of(run: TrackedRun) -> Iterator[None]:
    """Finishes a tracked run when the block ends.

    The status is KILLED after a KeyboardInterrupt, FAILED after any other exception, and FINISHED otherwise.
    """
    try:
        yield
    except KeyboardInterrupt:
        run.finish("KILLED")
        raise
    except BaseException:
        run.finish("FAILED")
        raise
    run.finish("FINISHED")
