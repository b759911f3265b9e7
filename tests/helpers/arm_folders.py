"""A folder of a comparison as `mmrl compare` leaves it, made in a test without a model."""

import copy
import json
import shutil

from run_folders import RunFolder

from lightning_mmrl.types.costs import RankCosts, StageCosts
from lightning_mmrl.types.records import HANDOFF, WEIGHTS

FOUR = [("happy", "happy"), ("sad", "sad"), ("happy", "sad"), ("sad", "happy")]


def spent(operations, seconds=10.0, num_steps=7):
    ranks = (RankCosts(seconds={"optimize": seconds}, operations={"training": operations, "sampling": 0}),)
    return StageCosts(num_steps=num_steps, ranks=ranks)


class ArmsFolder:
    """Writes `compare.json` and runs of pretrain (apart), cold_start and reason, as `results` orders them.

    Args:
        folder: The folder of the comparison.
        results: For each arm the UAR of each seed; with `folds` a mapping of folds to UARs. None: the run failed.
        operations: What each arm's two counted stages spend together.
        best: How much the weights with the best validation are better; None leaves them out.
    """

    def __init__(self, folder, results, *, operations=None, best=None, folds=None, **keys):
        self.folder, self.folds = folder, folds or [None]
        self.runs = []
        folder.mkdir()
        for arm, seeds in results.items():
            for seed, value in seeds.items():
                for fold in self.folds:
                    given = value if fold is None or value is None else value[fold]
                    self.runs.append(self._run(arm, seed, fold, given, (operations or {}).get(arm, 1000), best))
        stages = ["pretrain", "cold_start", "reason"]
        order = {"order": stages, "trained": stages, "apart": ["pretrain"]}
        self.content = {
            "version": 1,
            "name": folder.name,
            "question": "Which order is better?",
            "exploratory": False,
            "command": ["mmrl", "compare", "compare=orders"],
            "baseline": next(iter(results)),
            "measure": {"set": "test", "metric": None},
            "budget": {"flops": 1000.0},
            "tolerance": 0.02,
            "arms": {arm: {"overrides": [f"x={arm}"], **order, "shares": {"reason": 1.0}} for arm in results},
            "seeds": sorted({seed for seeds in results.values() for seed in seeds}),
            "folds": self.folds,
            "runs": self.runs,
        } | keys
        self.save()

    def copied(self, folder):
        """The same in another folder."""
        shutil.copytree(self.folder, folder)
        other = copy.copy(self)
        other.folder, other.content = folder, copy.deepcopy(self.content)
        return other

    def save(self):
        (self.folder / "compare.json").write_text(json.dumps(self.content))

    def _run(self, arm, seed, fold, value, operations, best):
        name = f"{arm}-seed{seed}{'' if fold is None else f'-{fold}'}"
        entry = {"arm": arm, "seed": seed, "fold": fold, "folder": f"runs/{name}", "shared": ["pretrain"], "best": None}
        place = self.folder / "runs" / name
        shutil.copytree(self._made(operations, value is None), place)
        if value is None:
            return {**entry, "exit_code": 1}
        evaluation = place / "stages" / "02-reason" / "evaluation"
        set_uar(evaluation, value)
        (place / "report.html").write_text("the page of the run")
        if best is not None:
            entry["best"] = f"best/{name}"
            shutil.copytree(evaluation, self.folder / "best" / name)
            set_uar(self.folder / "best" / name, value + best)
        return {**entry, "exit_code": 0}

    def _made(self, operations, fails):
        """A run to copy, which is made once."""
        place = self.folder / "made" / f"{operations}-{fails}"
        if place.is_dir():
            return place
        run = RunFolder(place, order=("pretrain", "cold_start", "reason"))
        weights = run.finish("pretrain", costs=spent(500))[HANDOFF]
        run.evaluate("pretrain", FOUR)
        reads, first = {WEIGHTS: weights}, operations // 5
        weights = run.finish("cold_start", reads=reads, costs=spent(first), start="pretrain")[HANDOFF]
        run.evaluate("cold_start", FOUR)
        if not fails:
            reads, rest = {WEIGHTS: weights}, operations - first
            run.finish("reason", kind="rl", reads=reads, costs=spent(rest), start="cold_start")
            run.evaluate("reason", FOUR)
        return place


def set_uar(evaluation, value):
    path = evaluation / "evaluation.json"
    summary = json.loads(path.read_text())
    summary["test"]["metrics"]["uar"] = value
    path.write_text(json.dumps(summary))
