"""Refuses a run that the devices of this machine have no room for, before weights are loaded."""

import os
from collections.abc import Callable

from lightning_mmrl.cli.doctor_machine import memory_limit
from lightning_mmrl.planning.refusals import require_room
from lightning_mmrl.settings.run import RunSettings


def require_memory(config: RunSettings, say: Callable[[str], object]) -> None:
    """Holds the plan of every stage against the memory of this rank's device; on a CPU against a rank's share of it.

    Args:
        config: The configuration.
        say: Gets a warning if a stage fits only with shorter prompts than the plan assumes.

    Raises:
        ConfigError: A stage cannot fit.
    """
    warning = require_room(config, device_memory(config.trainer.accelerator, config.trainer.devices))
    if warning is not None:
        say(warning)


def device_memory(accelerator: str, devices: int) -> tuple[int, str] | None:
    """Bytes for one rank and words for where they are; None if they are not known."""
    import torch

    if accelerator != "cpu" and torch.cuda.is_available():
        number = int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count()
        facts = torch.cuda.get_device_properties(number)
        return facts.total_memory, f"cuda:{number} ({facts.name})"
    if accelerator not in ("auto", "cpu") or (accelerator == "auto" and torch.backends.mps.is_available()):
        return None
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = memory_limit()
    where = "this machine" if devices == 1 else f"each of {devices} ranks on this machine"
    return min(memory, limit or memory) // devices, where
