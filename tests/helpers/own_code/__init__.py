"""A package of a user: what `--allow-targets own_code` opens, and what it must not open because it is only imported."""

import os
import subprocess
from functools import partial

from lightning_mmrl.rewards.token_length import TokenLength
from own_code.rewards import Brevity

__all__ = ["Brevity", "TokenLength", "os", "subprocess", "touch"]

touch = partial(subprocess.run, ["true"])
