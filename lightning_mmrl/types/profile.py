"""What `mmrl profile` found out about a stage, in plain numbers."""

from dataclasses import dataclass

from lightning_mmrl.types.costs import StageCosts


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """An operator or a call of the CUDA runtime in the traced step: how often it ran, and its own seconds."""

    name: str
    calls: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StageProfile:
    """Some steps of a stage.

    Attributes:
        stage: The name of the stage.
        costs: The costs of the steps that were timed without the profiler.
        state_s: Seconds of writing one state.
        operators: The operators of the traced step that took the most time, on the device if it is a GPU.
        syncs: Calls with which the host waited for the device in the traced step; none on a CPU.
        trace: File name of the trace, below the folder of the profile.
        truncated: Share of the completions of the last step that the length limit ended; None if it sampled none.
        memory_share: Share of the device's memory that the stage took at its peak; None on a CPU.
    """

    stage: str
    costs: StageCosts
    state_s: float = 0.0
    operators: tuple[Operator, ...] = ()
    syncs: tuple[Operator, ...] = ()
    trace: str = ""
    truncated: float | None = None
    memory_share: float | None = None

    @property
    def step_s(self) -> float:
        """Seconds of a timed step."""
        return self.costs.total_s / max(1, self.costs.num_steps)
