"""The run in a few sentences: score, gains, the weakest label, a typical wrong answer, what it looks at, and cost."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lightning_mmrl.report.answers import read_answers, right
from lightning_mmrl.report.markup import Html, duration, joined, number, tag
from lightning_mmrl.report.run_files import CLOSED_LABELS, Evaluated, RunFiles, variants_of, whole_of
from lightning_mmrl.report.scores import RECALL, ablations, interval, labels_of, percent

ONE_RUN = "Intervals are of the answers of this run; another seed may end elsewhere (mmrl seeds compares several runs)."
TOKENS = "completion tokens are those that training scored, generated tokens those that were sampled"
CHANGED = 0.1
"""Least change of a label's recall that is told."""
MOST_CHARACTERS = 300
"""Characters of the typical wrong answer."""
INPUTS = {"silent": "without sound", "blank": "without pictures", "text_only": "with text alone"}
"""Variants of the inputs in words; another one is called by its name."""
SPANS = {"train": "training", "run": "making data", "evaluate": "evaluation"}
"""Spans of time that are added up, in words."""


def glance_section(runs: Sequence[RunFiles]) -> Html | None:
    """A few sentences about each run; None if no stage was evaluated and none is finished."""
    parts: list[Html] = []
    for run in runs:
        facts = [tag("div", tag("dt", name), *(tag("dd", each) for each in told)) for name, told in _facts(run) if told]
        if facts:
            parts += [tag("h3", run.name)] if len(runs) > 1 else []
            parts.append(tag("dl", *facts, class_="glance"))
    return joined(parts) if parts else None


def _facts(run: RunFiles) -> Iterator[tuple[str, Sequence[object]]]:
    last = _last(run)
    yield "Score", [_score(each) for each in last]
    gains = [gain for gain in run.gains if whole_of(run, gain["name"]) == gain["name"]]
    yield "Gains", [*(_gain(gain, run) for gain in gains), *([ONE_RUN] if gains else [])]
    if last:
        yield "Changed labels", [told for each in last for told in _changed(each, run)]
        yield "Weakest label", _weakest(last[0], run)
        yield "Typical wrong answer", _typical(last[0], run)
        yield "Looks and listens", _without(last[0], run)
        yield "Thinks", _thought(run, last[0])
    yield "Cost", _cost(run)
    if any(each.headline == CLOSED_LABELS for each in last):
        yield "Terms", [f"{CLOSED_LABELS} is the mean over labels of the share of their samples that is right", TOKENS]


def _last(run: RunFiles) -> list[Evaluated]:
    """The last evaluated stage on its whole sets."""
    whole = [each for each in run.evaluated if whole_of(run, each.name) == each.name]
    return [each for each in whole if each.stage == whole[-1].stage]


def _score(each: Evaluated) -> str:
    found = each.intervals.get(each.headline) or {}
    value, labels = percent(each.metrics.get(each.headline)), labels_of(each)
    told = f"{each.stage} on {each.name}: {each.headline} {value} % {interval(found) if found else ''}".rstrip()
    units = f", {found['num_units']} {found['unit']}s" if found.get("num_units") and found.get("unit") != "clip" else ""
    chance = f"; a guess among {len(labels)} labels is right in {percent(1 / len(labels))} %" if labels else ""
    return f"{told}; {number(each.num_samples)} answers{units}{chance}"


def _gain(gain: Mapping[str, Any], run: RunFiles) -> str:
    own = gain["difference"]
    clear = "helped" if own["low"] > 0 else "harmed" if own["high"] < 0 else "no clear change"
    gained = f"{100 * own['estimate']:+.1f} points {interval(own, '+')}"
    told = f"{gain['stage']} on {gain['name']}: {clear}, {gain['headline']} {gained} over {gain['over']}"
    each = _evaluated(run, gain["stage"], gain["name"])
    answers = {one.predicted for one in (read_answers(each, run) or ())} if each is not None else set()
    constant = len(answers) == 1 and each is not None and each.num_samples > 1 and labels_of(each)
    return f"{told}; it answers {next(iter(answers)) or 'nothing readable'} to everything" if constant else told


def _evaluated(run: RunFiles, stage: str, name: str) -> Evaluated | None:
    return next((each for each in run.evaluated if (each.stage, each.name) == (stage, name)), None)


def _changed(each: Evaluated, run: RunFiles) -> list[str]:
    """The labels whose recall the last stage moved far, which its gain hides."""
    over = next((gain["over"] for gain in run.gains if (gain["stage"], gain["name"]) == (each.stage, each.name)), None)
    before = None if over is None else _evaluated(run, over, each.name)
    if before is None:
        return []
    pairs = {
        name: (before.metrics[RECALL + name], each.metrics[RECALL + name])
        for name in labels_of(each)
        if RECALL + name in before.metrics
    }
    moved = sorted((own - old, name, old, own) for name, (old, own) in pairs.items() if abs(own - old) >= CHANGED)
    told = [f"{name} {percent(old)} to {percent(own)} % ({100 * by:+.1f})" for by, name, old, own in moved]
    return [f"right answers by {each.stage} on {each.name}, against {over}: {', '.join(told)}"] if told else []


def _weakest(each: Evaluated, run: RunFiles) -> list[str]:
    recalls = {label: each.metrics[RECALL + label] for label in labels_of(each)}
    if len(recalls) < 2:
        return []
    label = min(recalls, key=lambda label: recalls[label])
    answers = [one for one in read_answers(each, run) or () if one.truth == label]
    wrong = Counter(one.predicted for one in answers if one.predicted != label).most_common(1)
    taken = f"; most often answered {wrong[0][0] or 'unreadably'} ({wrong[0][1]} of {len(answers)})" if wrong else ""
    return [f"{label}: {percent(recalls[label])} % right on {each.name}{taken}"]


def _typical(each: Evaluated, run: RunFiles) -> list[object]:
    """The most frequent wrong text of the most frequent confusion."""
    wrong = [one for one in read_answers(each, run) or () if not right(one, each.headline)]
    if not wrong:
        return []
    (truth, predicted), count = Counter((one.truth, one.predicted) for one in wrong).most_common(1)[0]
    texts = Counter(one.text for one in wrong if (one.truth, one.predicted) == (truth, predicted))
    text, times = texts.most_common(1)[0]
    shown = text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]} ..."
    kinds = f"{count} of {len(wrong)} wrong answers on {each.name} take {truth} for {predicted or 'nothing readable'}"
    told: list[object] = [f"{kinds}; {times} of these {count} read:", tag("code", shown)]
    own = [one for one in read_answers(each, run) or () if one.truth == truth and right(one, each.headline)]
    if own and truth in labels_of(each):
        usual, number_of = Counter(one.text for one in own).most_common(1)[0]
        told += [f"{number_of} of {len(own)} right answers to {truth} read:", tag("code", usual[:MOST_CHARACTERS])]
    return told


def _without(each: Evaluated, run: RunFiles) -> list[str]:
    """What the last stage loses when an input is taken away or replaced."""
    whole, told = each.metrics.get(each.headline), []
    for variant in ablations(run):
        one = variants_of(run, each).get(variant)
        if one is None:
            continue
        value = one.metrics.get(each.headline)
        if whole is not None and value is not None:
            told.append(f"{INPUTS.get(variant, variant)} {percent(value)} % ({100 * (value - whole):+.1f} points)")
    return [f"{each.stage} on {each.name}: with everything {percent(whole)} %, {', '.join(told)}"] if told else []


def _thought(run: RunFiles, each: Evaluated) -> list[str]:
    """What thoughts gain over forced answers without one."""
    forced = variants_of(run, each).get("no_think")
    own = (forced.more.get("thinking") or {}).get("difference") if forced is not None else None
    if own is None:
        return []
    gained = f"{100 * own['estimate']:+.1f} points {interval(own, '+')}"
    return [f"{each.stage} on {each.name}: {gained} over answers that are forced without a thought"]


def _cost(run: RunFiles) -> list[str]:
    done = [stage.result for stage in run.stages if stage.result is not None]
    if not done:
        return []
    seconds, tokens = Counter[str](), Counter[str]()
    for result in done:
        seconds.update({name: span for name, span in result.seconds.items() if name in SPANS})
        tokens.update(result.costs.tokens if result.costs is not None else {})
    spans = [f"{duration(span)} of {SPANS[name]}" for name, span in seconds.items()]
    counted = [f"{number(count)} {name} tokens" for name, count in tokens.items() if count]
    return [f"{duration(sum(seconds.values()))} in {len(done)} finished stages: {', '.join([*spans, *counted])}"]
