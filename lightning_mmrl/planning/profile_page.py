"""The page of a profile: where the time of each stage goes, and which key would change it."""

from collections.abc import Iterator, Sequence

from lightning_mmrl.planning.advice import advice
from lightning_mmrl.settings.run import RunSettings
from lightning_mmrl.types.costs import WAIT
from lightning_mmrl.types.profile import Operator, StageProfile

MOST_ADVICE = 5


def page(config: RunSettings, profiles: Sequence[StageProfile]) -> str:
    """The page in Markdown, one part for each stage."""
    found = [
        f"# Profile of {config.run_name}",
        "",
        "A stage's first step is left out, the next ones are timed without the profiler, and the last one is traced.",
        "Traces open at https://ui.perfetto.dev or chrome://tracing; phases are the ranges `mmrl/...` in them.",
    ]
    for profile in profiles:
        found += ["", *_part(profile, config)]
    return "\n".join(found) + "\n"


def _part(profile: StageProfile, config: RunSettings) -> Iterator[str]:
    costs, stage = profile.costs, config.stages[profile.stage]
    steps = max(1, costs.num_steps)
    yield f"## {profile.stage} ({stage.kind}): {profile.step_s:.2f} s a step, over {costs.num_steps} steps"
    yield ""
    yield "| phase | s a step | share | waited in it |"
    yield "| --- | --- | --- | --- |"
    total = costs.total_s or 1.0
    for phase, seconds in costs.seconds.items():
        waits = costs.waits.get(phase, 0.0)
        waited = f"{waits / total:.1%}" if waits else "-"
        yield f"| {phase} | {seconds / steps:.3f} | {seconds / total:.1%} | {waited} |"
    yield ""
    tokens = ", ".join(f"{count / steps:,.0f} {kind}" for kind, count in costs.tokens.items() if count)
    yield f"- Tokens a step: {tokens or 'none'}"
    mfu = costs.mfu()
    unknown = "unknown: trainer.gpu_teraflops has no peak of the device, or the sizes of the model are not known"
    yield f"- MFU: {unknown if mfu is None else f'{mfu:.1%}'}"
    if len(costs.ranks) > 1:
        shares = ", ".join(f"{rank.wait_share:.0%}" for rank in costs.ranks)
        yield f"- Waiting for other ranks, rank by rank: {shares} ({costs.seconds.get(WAIT, 0.0) / steps:.3f} s a step)"
    if profile.state_s:
        yield f"- A state takes {profile.state_s:.2f} s, and is written every {config.state.every_n_steps} steps"
    yield f"- Trace: {profile.trace}"
    yield from _operators("Operators of the traced step", profile.operators)
    yield from _operators("Waits of the host for the device in the traced step", profile.syncs)
    yield from ("", "Which key would change it:", "")
    told = advice(profile, stage, config)[:MOST_ADVICE]
    yield from (f"- {each.share:.0%} of a step {each.text}" for each in told)
    if not told:
        yield "- none: no phase that a key shortens is large; the operators above say what the time is spent on"


def _operators(title: str, operators: Sequence[Operator]) -> Iterator[str]:
    if operators:
        yield from ("", f"| {title} | calls | s |", "| --- | --- | --- |")
        yield from (f"| {each.name} | {each.calls} | {each.seconds:.3f} |" for each in operators)
