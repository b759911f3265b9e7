"""Opens the tracking store of a spool and delivers the spool's entries to it."""

from collections.abc import Callable, Collection
from pathlib import Path

from lightning_mmrl.tracking.connection import connect
from lightning_mmrl.tracking.delivery import MlflowDelivery
from lightning_mmrl.tracking.leftovers import Leftover, flush


def flush_store(
    spool: Path,
    uri: str,
    experiment: str,
    *,
    runs: Collection[str] | None = None,
    say: Callable[[str], object] = lambda line: None,
) -> list[Leftover]:
    """Delivers the entries of a spool and returns the rest; `uri` may carry credentials.

    Raises:
        ConfigError: The store cannot be opened, or another process delivers the same spool.
    """
    return flush(spool, MlflowDelivery(connect(uri, experiment), spool), runs=runs, say=say)
