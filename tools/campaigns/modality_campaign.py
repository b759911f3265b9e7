"""Trains models that only see, only hear or guess, and checks that the modality report tells them apart.

    python tools/campaigns/modality_campaign.py --output-dir /elsewhere/modality

All models but `both`, which is the quickstart after its cold start, go on from there for 50 steps of SFT on the same
580 clips. In the data of `sees`, each picture has the sound of another clip, and in those of `hears`, each sound has
the picture of another clip, so only one of both says anything about the answer; `guesses` learns the answers of other
clips. `honest` is `sees` with thoughts that name only what it sees. `quickstart` is the last stage of the quickstart
and is only reported.

Every model is evaluated on the test split with all ablations, and on the conflicts. A stopped run continues, and a
finished one only reports. Writes modality-campaign.json and .md to the output folder. Exits with 1 unless every
expectation of `EXPECTED` is met: the verdicts, what a model follows, and which deletions change its answers.
"""

import argparse
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seed_runs import train

from lightning_mmrl.data.synthetic.emotions import synthesize_emotions
from lightning_mmrl.data.synthetic.settings import EmotionSetSettings

NUM_STEPS = 50
"""Optimizer steps of each model after the quickstart's cold start, which has 200."""
TRAINED = ("sees", "hears", "guesses", "honest")
Row = dict[str, Any]
_VOICE = re.compile(r" and [^<]*</think>")


@dataclass(frozen=True, kw_only=True)
class Expected:
    """Verdicts on picture and sound, what a model follows, and which deletions change its answers.

    Of the two senses that its thoughts always name, `uses` has the one that it uses first: the interval of changes
    without it lies above that of changes without the other. `faithful` is the sign of the interval of changes with a
    named cue minus changes with an unnamed one. None: nothing is expected.
    """

    looks: str
    listens: str
    follows: str
    uses: tuple[str, str] | None = None
    faithful: int | None = None


EXPECTED = {
    "both": Expected(looks="yes", listens="yes", follows="any"),
    "sees": Expected(looks="yes", listens="not_shown", follows="picture", uses=("picture", "sound")),
    "hears": Expected(looks="not_shown", listens="yes", follows="sound", uses=("sound", "picture")),
    "guesses": Expected(looks="not_shown", listens="not_shown", follows="not_shown"),
    "honest": Expected(looks="yes", listens="not_shown", follows="picture", faithful=1),
}


def main() -> int:
    """Runs the campaign and returns the exit code."""
    options = _options()
    work = options.output_dir
    data = (options.data_root or work / "data").absolute()
    synthesize_emotions(data, settings=EmotionSetSettings(), workers=2)
    places = [f"data.root={data}", f"data.media.cache_dir={work}/cache", "tracking=none", "trainer.num_threads=1"]
    quickstart = options.quickstart
    if quickstart is None:
        quickstart = work / "quickstart"
        train("quickstart", 0, quickstart, [*places, "evaluation.ablations=[]"])
    cold_start = next(quickstart.glob("stages/*-cold_start"))
    manifests = write_manifests(data / "cold_start.jsonl", work / "manifests")
    started = [f"model.checkpoint={cold_start.absolute()}/handoff", "model.build=null"]
    train("quickstart", 0, work / "models", [*places, *started, *arguments(data, manifests), *options.overrides])
    stages = {name: next(work.glob(f"models/stages/*-{name}")) for name in TRAINED}
    runs = {"both": cold_start, **stages, "quickstart": next(quickstart.glob("stages/*-reason"))}
    reports = {
        name: report_of(name, stage / "handoff", work, [*places, f"evaluation.limit={options.limit}"])
        for name, stage in runs.items()
    }
    text = "\n".join(table(reports))
    print(text)
    (work / "modality-campaign.md").write_text(text + "\n", encoding="utf-8")
    (work / "modality-campaign.json").write_text(json.dumps(reports, indent=2) + "\n", encoding="utf-8")
    failures = [line for name, expected in EXPECTED.items() for line in unmet(name, expected, reports[name])]
    print("\n".join(failures) or "every expectation is met")
    return 1 if failures else 0


def write_manifests(source: Path, folder: Path) -> dict[str, Path]:
    """Writes the samples that each model learns from, in place of the cold start's own; returns the files by model."""
    rows = [json.loads(line) for line in source.read_text(encoding="ascii").splitlines()]
    others = random.Random(0).sample(rows, len(rows))
    sees = [{**row, "audios": other["audios"]} for row, other in zip(rows, others, strict=True)]
    hears = [{**row, "videos": other["videos"]} for row, other in zip(rows, others, strict=True)]
    samples = {
        "sees": sees,
        "hears": hears,
        "guesses": [{**row, "messages": other["messages"]} for row, other in zip(rows, others, strict=True)],
        "honest": [_with_face_alone(row) for row in sees],
    }
    folder.mkdir(parents=True, exist_ok=True)
    found = {name: folder / f"{name}.jsonl" for name in TRAINED}
    for name, path in found.items():
        path.write_text("".join(json.dumps(row) + "\n" for row in samples[name]), encoding="ascii")
    return found


def _with_face_alone(row: Row) -> Row:
    question, answer = row["messages"]
    return {**row, "messages": [question, {**answer, "content": _VOICE.sub("</think>", answer["content"])}]}


def arguments(data: Path, manifests: Mapping[str, Path]) -> list[str]:
    """The stages of all models, each from the quickstart's cold start."""
    found = [f"order=[{','.join(TRAINED)}]", "evaluation.base=false", "evaluation.ablations=[]", "evaluation.limit=14"]
    for name, manifest in manifests.items():
        stage = f"stages.{name}"
        own = f"{{manifest:{manifest.name},root:{manifest.parent},media_root:{data}}}"
        found += [f"+stage@{stage}=tiny/cold_start", f"{stage}.start_from=base", f"{stage}.num_steps={NUM_STEPS}"]
        found += [f"{stage}.optimizer.lr=1e-3", f"{stage}.data.manifest=null", f"+{stage}.data.sources.own={own}"]
    return found


def report_of(name: str, handoff: Path, work: Path, places: Sequence[str]) -> dict[str, Any]:
    """The modality report of a model, evaluated if it was not yet, with its metrics on the test split."""
    folder = work / "reports" / name / "evaluations" / handoff.parent.name
    if not (folder / "evaluation.json").is_file():
        keys = ["experiment=quickstart", "modality=with_conflicts", "~evaluation.sets.ood", *places]
        keys += [f"output_dir={work}/reports", f"run_name={name}"]
        command = [sys.executable, "-m", "lightning_mmrl.cli.main", "evaluate", str(handoff), *keys]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        if code := subprocess.run(command, check=False, env=environment).returncode:
            sys.exit(f"the evaluation of {name} ended with exit code {code}")
    metrics = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    return {
        **json.loads((folder / "modality.json").read_text(encoding="utf-8")),
        "consistency": metrics["test"]["metrics"].get("consistency"),
    }


def unmet(name: str, expected: Expected, report: Mapping[str, Any]) -> list[str]:
    """What a report says otherwise than expected, a sentence each."""
    test, conflict = report["sets"]["test"], report["conflicts"]["conflict"]
    found = {
        "looks": test["verdict"]["picture"]["verdict"],
        "listens": test["verdict"]["sound"]["verdict"],
        "follows": conflict["follows"],
    }
    lines = [
        f"{name}: {key} is {value}, expected {getattr(expected, key)}"
        for key, value in found.items()
        if getattr(expected, key) not in (value, "any")
    ]
    changes = test["faithfulness"]
    used, unused = (changes[sense]["named"] for sense in (expected.uses or ("all", "all")))
    if expected.uses is not None and used["low"] <= unused["high"]:
        lines.append(f"{name}: {changes[expected.uses[0]]['says']} {changes[expected.uses[1]]['says']}")
    difference = changes["all"]["difference"]
    if expected.faithful is not None:
        sign = 0 if difference is None else (difference["low"] > 0) - (difference["high"] < 0)
        if sign != expected.faithful:
            lines.append(f"{name}: the sign of the difference of deletions is {sign}, expected {expected.faithful}")
    return lines


def table(reports: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The figures of all models as a table in Markdown."""
    names = list(reports)
    tests = {name: report["sets"]["test"] for name, report in reports.items()}
    rows = [
        (f"UAR, {variant}", {name: shown(test["variants"][variant]) for name, test in tests.items()})
        for variant in tests[names[0]]["variants"]
    ]
    rows += [
        (f"drop, {variant}", {name: shown(test["drops"][variant]) for name, test in tests.items()})
        for variant in tests[names[0]]["drops"]
    ]
    for sense, verb in (("picture", "looks"), ("sound", "listens")):
        rows.append((verb, {name: test["verdict"][sense]["verdict"] for name, test in tests.items()}))
    conflicts = {name: report["conflicts"]["conflict"] for name, report in reports.items()}
    for key in ("follows_picture", "follows_sound", "neither", "unparseable", "names_followed", "names_both"):
        cells = {name: shown(each["shares"].get(key)) for name, each in conflicts.items()}
        rows.append((f"conflict: {key.replace('_', ' ')}", cells))
    rows.append(("conflict: verdict", {name: each["follows"] for name, each in conflicts.items()}))
    for sense in ("picture", "sound", "all"):
        for key in ("named", "unnamed", "difference"):
            cells = {name: shown(test["faithfulness"][sense][key]) for name, test in tests.items()}
            rows.append((f"changes without {sense}: {key}", cells))
    rows.append(("consistency", {name: f"{100 * report['consistency']:.1f}" for name, report in reports.items()}))
    lines = [f"| | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    return lines + [f"| {title} | {' | '.join(cells[name] for name in names)} |" for title, cells in rows]


def shown(interval: Mapping[str, float] | None) -> str:
    """An interval in percent."""
    if interval is None:
        return "-"
    return f"{100 * interval['estimate']:.1f} [{100 * interval['low']:.1f}, {100 * interval['high']:.1f}]"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, required=True, help="runs and results, outside of the checkout")
    parser.add_argument("--data-root", type=Path, help="the quickstart's data, if they exist already")
    parser.add_argument(
        "--quickstart", type=Path, help="the folder of a finished quickstart; without it one is trained"
    )
    parser.add_argument("--limit", type=int, default=350, help="clips of each evaluation (default %(default)s)")
    parser.add_argument("--overrides", nargs="*", default=[], help="more overrides of `mmrl train`")
    options = parser.parse_args()
    options.output_dir = options.output_dir.absolute()
    options.output_dir.mkdir(parents=True, exist_ok=True)
    return options


if __name__ == "__main__":
    sys.exit(main())
