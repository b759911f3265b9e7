"""Every mix of modalities over two ranks: no hang, and the gradients of one process.

    python tools/campaigns/rank_campaign.py --out runs/ranks

All 15 non-empty subsets of text, image, video and audio, dealt out to two ranks in one way or, with `--all-deals`, in
every way that differs (`deals`), for SFT and for GRPO with one and with two updates, replicated and sharded. A case
that has its result below `--out` is not run again. The summary is one line per recipe and strategy: cases, hangs and
the largest relative error of a gradient.
"""

import argparse
import itertools
import json
import os
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers")]
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import omni  # noqa: E402
import rank_cases  # noqa: E402
import ranks  # noqa: E402

TOLERANCE = 1e-6
WATCHDOG_S = 60


def deals(subset):
    """How a subset of modalities is dealt out to two ranks, as the modalities of each.

    Rank 0 has one of them and rank 1 the rest or all, for every one; and both have all.

    >>> list(deals(("text", "audio")))[:2]
    [(('text',), ('audio',)), (('text',), ('text', 'audio'))]
    """
    for one in subset:
        rest = tuple(each for each in subset if each != one)
        if rest:
            yield (one,), rest
            yield (one,), subset
    yield subset, subset


def samples_of(deal):
    """Contents of a batch whose halves are the ranks'; the shorter half repeats its modalities."""
    size = max(map(len, deal))
    return [rank_cases.MODALITIES[part] for parts in deal for part in itertools.islice(itertools.cycle(parts), size)]


def cases(checkpoint, all_deals):
    """All cases."""
    for count in range(1, len(rank_cases.MODALITIES) + 1):
        for subset in itertools.combinations(rank_cases.MODALITIES, count):
            for deal in itertools.islice(dict.fromkeys(deals(subset)), None if all_deals else 1):
                name = "|".join("+".join(parts) for parts in deal)
                for recipe in rank_cases.RECIPES:
                    case = rank_cases.one_step(f"{name}-{recipe}", recipe, checkpoint, samples_of(deal))
                    yield {**case, "watchdog_s": WATCHDOG_S}


def worst_error(found, expected):
    """The largest error of a gradient on any rank."""
    return max(error for each in found for error in rank_cases.errors(each["gradients"], expected).values())


def run(case, folder):
    """The errors of a case by strategy; None for one that did not end by itself."""
    expected = rank_cases.run_stage(case, folder)["gradients"]
    errors = {}
    for strategy in rank_cases.STRATEGIES:
        job = {**case, "strategy": strategy}
        try:
            found = ranks.launch([job], folder / strategy, timeout_s=4 * WATCHDOG_S)[case["name"]]
        except (RuntimeError, TimeoutError) as error:
            print(f"{case['name']} {strategy}: {str(error)[-500:]}")
            errors[strategy] = None
            continue
        errors[strategy] = worst_error(found, expected)
    return errors


def run_together(chosen, folder):
    """The same for several cases whose ranks are started once; they end at the first case that hangs."""
    expected = {case["name"]: rank_cases.run_stage(case, folder)["gradients"] for case in chosen}
    jobs = rank_cases.on_strategies(chosen)
    found = ranks.launch(jobs, folder, timeout_s=WATCHDOG_S * len(jobs))
    return {
        name: {each: worst_error(found[f"{name}-{each}"], gradients) for each in rank_cases.STRATEGIES}
        for name, gradients in expected.items()
    }


def summary(results):
    """Lines of the summary."""
    table = defaultdict(list)
    for name, errors in results.items():
        for strategy, error in errors.items():
            table[name.rpartition("|")[2].partition("-")[2], strategy].append(error)
    for (recipe, strategy), errors in sorted(table.items()):
        ended = [error for error in errors if error is not None]
        worst = max(ended, default=float("nan"))
        yield f"{recipe:12} {strategy:6} {len(errors):4} cases {len(errors) - len(ended)} hangs, worst {worst:.1e}"


def main():
    """Runs what is missing and prints the summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--limit", type=int, default=None, help="run only so many of the missing cases")
    parser.add_argument("--all-deals", action="store_true", help="deal out every subset in every way")
    parser.add_argument("--together", type=int, default=12, help="cases for which the ranks are started once")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    record = arguments.out / "results.jsonl"
    lines = record.read_text(encoding="utf-8").splitlines() if record.exists() else []
    results = dict(json.loads(line) for line in lines)
    checkpoint = arguments.out / "omni"
    if not checkpoint.exists():
        omni.build(checkpoint)
    missing = [case for case in cases(str(checkpoint), arguments.all_deals) if case["name"] not in results][
        : arguments.limit
    ]
    for start in range(0, len(missing), arguments.together):
        chosen = missing[start : start + arguments.together]
        try:
            fresh = run_together(chosen, arguments.out / "work")
        except (RuntimeError, TimeoutError):
            fresh = {case["name"]: run(case, arguments.out / "work") for case in chosen}
        results |= fresh
        with record.open("a", encoding="utf-8") as stream:
            stream.writelines(json.dumps(item) + "\n" for item in fresh.items())
        print(f"{len(results)} cases", flush=True)
    print("\n".join(summary(results)))
    bad = [name for name, errors in results.items() if any(e is None or e > TOLERANCE for e in errors.values())]
    print(f"{len(bad)} of {len(results)} cases are wrong" + "".join(f"\n  {name}" for name in bad))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
