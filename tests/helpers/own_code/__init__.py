"""A package of a user: what `--allow-targets own_code` opens, and what it must not open because it is only imported.

One file for each kind of part: rewards.py, losses.py, algorithms.py (all other parts of an RL stage), families.py,
tasks.py, trackers.py, kinds.py (a kind of stage). `PARTS` of tests/integration/test_own_code.py lists what is run.
"""

import os
import subprocess
from functools import partial

from lightning_mmrl.rewards.token_length import TokenLength
from own_code.rewards import Brevity

__all__ = ["Brevity", "TokenLength", "os", "subprocess", "touch"]

touch = partial(subprocess.run, ["true"])
