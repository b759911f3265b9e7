"""The report that `mmrl reward-test` prints."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from lightning_mmrl.data.rollout_table import RolloutRow
from lightning_mmrl.evaluation.rescoring import Rescoring
from lightning_mmrl.evaluation.responses import response_stats
from lightning_mmrl.training.console import report_console
from lightning_mmrl.types.records import Score

LONGEST_TEXT = 400
MOST_REASONS = 3


def print_rescoring(result: Rescoring, rows: Sequence[RolloutRow], *, stage: str, show: int) -> None:
    """Prints totals, components, groups, failures and the responses that changed most."""
    console = report_console()
    changed, total = len(result.changes), result.num_responses
    _say(console, f"{result.num_groups} prompts, {total} responses, rewards of stage {stage}")
    _say(console, f"{changed} of {total} totals changed ({changed / total:.1%})")
    console.print(_components(result))
    old, new = result.old, result.new
    groups = Table(title="Groups: the statistics of advantages")
    for name in ("", "before", "now"):
        groups.add_column(name, justify="left" if not name else "right")
    groups.add_row("groups without variance", f"{old.flat:.1%}", f"{new.flat:.1%}")
    groups.add_row("mean pass rate", _number(old.pass_rate), _number(new.pass_rate))
    groups.add_row("invalid responses", str(old.num_invalid), str(new.num_invalid))
    console.print(groups)
    stats = response_stats([completion for row in rows for completion in row.completions])
    if stats is not None:
        lengths = f"{stats.length_mean:.1f} on average, {stats.length_p95:g} at the 95th percentile"
        _say(console, f"tokens: {lengths}; truncated {stats.truncated:.1%}; with reflection {stats.reflecting:.1%}")
    for when, summary in (("before", old), ("now", new)):
        ranked = sorted(summary.reasons.items(), key=lambda item: -item[1])
        for reason, count in ranked[:MOST_REASONS]:
            _say(console, f"invalid {when}: {count} x {reason}")
        if rest := sum(count for _, count in ranked[MOST_REASONS:]):
            _say(console, f"invalid {when}: {rest} x another reason")
    for change in result.changes[:show]:
        row = rows[change.group]
        completion = row.completions[change.response]
        _say(console, f"\n{row.sample.id}, response {change.response}, solution {row.sample.solution!r}")
        _say(console, f"  before  {_score(change.old)}")
        _say(console, f"  now     {_score(change.new)}")
        text = completion.text if len(completion.text) <= LONGEST_TEXT else completion.text[:LONGEST_TEXT] + "..."
        _say(console, f"  {text!r}{' (truncated)' if completion.truncated else ''}")
    if changed > show:
        _say(console, f"{changed - show} more changed; --show {changed} shows all")


def _components(result: Rescoring) -> Table:
    table = Table(title="Components: mean over valid responses")
    for name in ("component", "before", "now", "went up", "went down", "correlation"):
        table.add_column(name, justify="left" if name == "component" else "right")
    for each in result.components:
        table.add_row(
            each.name,
            _number(each.old_mean),
            _number(each.new_mean),
            str(each.num_up),
            str(each.num_down),
            _number(each.correlation),
        )
    return table


def _score(score: Score) -> str:
    if not score.valid:
        return f"invalid: {score.reason or 'no reason was recorded'}"
    parts = ", ".join(f"{name} {value:g}" for name, value in score.components.items())
    return f"{score.total:g} ({parts})"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _say(console: Console, line: str) -> None:
    console.print(line, soft_wrap=True)
