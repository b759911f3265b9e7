"""Run folders on disk as `mmrl train` leaves them, made in a test without a model."""

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import yaml

from lightning_mmrl.curriculum.artifacts import sealed, write_artifact
from lightning_mmrl.curriculum.manifest import EvaluatedBase, FinishedStage, Manifest
from lightning_mmrl.data.rollout_table import RolloutRow, write_table
from lightning_mmrl.evaluation.intervals import ClusterBootstrap
from lightning_mmrl.evaluation.records import Judgement
from lightning_mmrl.evaluation.tasks.closed_labels import ClosedLabels
from lightning_mmrl.settings.run import EvaluationSettings
from lightning_mmrl.types.costs import RankCosts, StageCosts
from lightning_mmrl.types.records import (
    HANDOFF,
    WEIGHTS,
    Artifact,
    Completion,
    MediaRef,
    Message,
    Sample,
    Score,
    StageResult,
)

LABELS = ("happy", "sad")
FEW = ClusterBootstrap(settings=EvaluationSettings(num_resamples=20))


@dataclass
class RunFolder:
    """Writes a run of `order` stages piece by piece; each method leaves what that part of a run leaves."""

    folder: Path
    order: tuple[str, ...] = ("cold_start", "reason")
    ablations: tuple[str, ...] = ()
    manifest: Manifest = field(default_factory=Manifest)

    def __post_init__(self):
        self.folder.mkdir(parents=True)
        settings = {
            "run_name": self.folder.name,
            "seed": 3,
            "order": list(self.order),
            "model": {"checkpoint": "models/tiny"},
            "data": {"root": "data/emotions"},
            "evaluation": {"ablations": list(self.ablations)},
            "stages": {name: {"kind": "sft" if name == "cold_start" else "rl"} for name in self.order},
        }
        (self.folder / "config.yaml").write_text(yaml.safe_dump(settings))
        start = {"time": 0.0, "commit": "0123456789abcdef", "versions": {"torch": "2.13.0"}}
        (self.folder / "starts.jsonl").write_text(json.dumps(start) + "\n")
        self.save()

    def save(self):
        self.manifest.write(self.folder)

    def place(self, stage):
        return self.folder / "stages" / f"{self.order.index(stage):02d}-{stage}"

    def finish(self, stage, *, kind="sft", reads=None, made=None, routing=None, costs=None, start="base"):
        """Finishes a stage; `made` maps artifacts of data to their counts, without it the stage made weights."""
        place = self.place(stage)
        artifacts = {}
        for name, counts in (made or {HANDOFF: None}).items():
            target = place / HANDOFF if name == HANDOFF else place / "artifacts" / name
            facts = {} if counts is None else {"counts": counts}
            facts |= {} if routing is None else {"routing": routing}
            digest = write_artifact(target, lambda to, name=name: _fill(to, f"{stage} {name}"), facts)
            path = str(target.relative_to(self.folder))
            artifacts[name] = Artifact(path=path, digest=digest, seal=sealed(target)["seal"])
        result = StageResult(
            name=stage,
            artifacts=artifacts,
            inputs=reads or {WEIGHTS: "0" * 64},
            metrics={},
            seconds={"train": 61.0, "evaluate": 2.5} if made is None else {"run": 4.0},
            num_steps=7,
            costs=costs,
        )
        content = {"seed": 3, "stage.kind": kind, "data.train.jsonl": "abcdef0123456789", "starts_from": start}
        evaluation = "e" if HANDOFF in artifacts else None
        done = FinishedStage(digest="d", content=content, result=result, training_metrics={}, evaluation=evaluation)
        self.manifest = Manifest(stages={**self.manifest.stages, stage: done}, base=self.manifest.base)
        self.save()
        return {name: made.digest for name, made in artifacts.items()}

    def evaluate(self, stage, answers, name="test", labels=LABELS, texts=None):
        """Writes the evaluation of a stage, or of `base`, on one set."""
        place = self.folder / "base" if stage == "base" else self.place(stage)
        judged = [judgement(number, truth, predicted) for number, (truth, predicted) in enumerate(answers)]
        judged = [
            replace(each, text=text) for each, text in zip(judged, texts or [x.text for x in judged], strict=True)
        ]
        task = ClosedLabels(labels=labels)
        entry = {
            "num_samples": len(judged),
            "left_out": [],
            "metrics": task.metrics(judged),
            "intervals": {key: asdict(each) for key, each in FEW.intervals(judged, task).items()},
        }
        folder = place / "evaluation"
        folder.mkdir(parents=True, exist_ok=True)
        summary = folder / "evaluation.json"
        known = json.loads(summary.read_text()) if summary.exists() else {}
        summary.write_text(json.dumps({**known, name: entry}))
        (folder / f"{name}.jsonl").write_text("".join(f"{each.to_json()}\n" for each in judged))
        if stage == "base":
            base = EvaluatedBase(digest="0" * 64, evaluation="e", path="base/evaluation", metrics={})
            self.manifest = Manifest(stages=self.manifest.stages, base=base)
            self.save()

    def compare(self, stage, over, low, high, name="test"):
        difference = {"estimate": (low + high) / 2, "low": low, "high": high, "level": 0.95, "num_resamples": 20}
        gain = {"stage": stage, "over": over, "name": name, "difference": {**difference, "unit": "clip"}}
        (self.folder / "comparison.json").write_text(json.dumps({"results": [], "gains": [gain]}))

    def log(self, stage, key, values):
        path = self.place(stage) / "metrics.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            for step, value in enumerate(values, start=1):
                metrics = {f"{stage}/{key}": value}
                file.write(json.dumps({"step": step, "time": 0.0, "metrics": metrics}) + "\n")

    def roll(self, stage, rows, table="iteration_000001"):
        write_table(self.place(stage) / "rollouts" / f"{table}.jsonl", rows)


def judgement(number, truth, predicted):
    return Judgement(
        sample_id=f"test-{number}",
        speaker=None,
        truth=truth,
        predicted=predicted,
        valid_format=predicted is not None,
        text=f"<answer>{predicted}</answer>",
    )


def rollout(
    number, texts=("<answer>happy</answer>", "<answer>sad</answer>"), rewards=(1.0, 0.0), label="happy", **more
):
    """A row of a rollout table; a reward of None was not scored."""
    media = MediaRef(kind="video", path=f"clips/{number}.mp4")
    return RolloutRow(
        sample=Sample(
            id=f"train-{number}",
            messages=(Message(role="user", content="<video>Which emotion?"),),
            media=(media,),
            solution=label,
        ),
        completions=tuple(Completion(text=text, num_tokens=len(text.split()), truncated=False) for text in texts),
        scores=tuple(
            Score(total=0.0, components={}, valid=False, reason="the verifier timed out")
            if reward is None
            else Score(total=reward, components={"label": reward}, valid=True)
            for reward in rewards
        ),
        policy_version=number,
        pass_component="label",
        **more,
    )


def some_costs():
    ranks = (RankCosts(seconds={"generate": 40.0, "optimize": 20.0, "push": 0.1}, tokens={"generated": 5120}),)
    return StageCosts(num_steps=7, ranks=ranks)


def whole_run(folder):
    """A finished run with all parts: base, cold start, RL with rollouts, evaluations without sound, gains, costs."""
    run = RunFolder(folder, ablations=("silent",))
    run.evaluate("base", [("happy", None), ("sad", None)])
    weights = run.finish("cold_start")[HANDOFF]
    run.evaluate("cold_start", [("happy", "happy"), ("sad", "happy")])
    run.finish("reason", kind="rl", reads={WEIGHTS: weights}, costs=some_costs(), start="cold_start")
    run.evaluate("reason", [("happy", "happy"), ("sad", "sad")])
    run.evaluate("reason", [("happy", "happy"), ("sad", "happy")], name="test-silent")
    run.compare("reason", "cold_start", 0.1, 0.9)
    run.log("reason", "rollout/reward_mean", [0.25, 0.5, 0.75])
    run.roll("reason", [rollout(number) for number in range(3)])
    return run


def _fill(folder, text):
    (folder / "content.txt").write_text(text)
