"""A decoder that says what its process took in memory; a module of its own, so that workers can import it."""

import resource
from pathlib import Path

from lightning_mmrl.data.media.guard import decode
from lightning_mmrl.errors import MediaError


def weigh(task):
    """Why a medium cannot be decoded, or "decoded", and by how many MiB the process grew above what it has now."""
    now = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() // 2**20
    try:
        decode(task)
        said = "decoded"
    except MediaError as error:
        said = str(error)
    # `ru_maxrss` would be the parent's peak, which a started process inherits.
    peak = Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]
    return said, int(peak) // 1024 - now
