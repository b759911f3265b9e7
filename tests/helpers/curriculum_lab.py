"""The orchestrator against fakes: one run directory, and stages that write down where they came from."""

from dataclasses import replace

from lightning_mmrl.curriculum.callbacks import Callbacks
from lightning_mmrl.curriculum.graph import place_among_trained, plan_stages
from lightning_mmrl.curriculum.handoff import REQUIRED, check_handoff
from lightning_mmrl.curriculum.manifest import Manifest
from lightning_mmrl.curriculum.orchestrator import Curriculum, StageOrchestrator
from lightning_mmrl.registry.kinds import kind_of
from lightning_mmrl.settings.data import SourceSettings, StageDataSettings
from lightning_mmrl.settings.sample import SampleSettings
from lightning_mmrl.settings.stage import BASE, StageSettings
from lightning_mmrl.types.records import HANDOFF, WEIGHTS, Training

NAMES = ["warm", "cold_start", "reason"]


class FakeRun:
    """A tracked run that remembers, and ends once."""

    def __init__(self, name, run_id, parent_id, tags):
        self.name, self.id, self.parent_id, self.tags = name, run_id, parent_id, dict(tags or {})
        self.status, self.metrics = "RUNNING", []

    def log_metrics(self, metrics, step):
        self.metrics.append((dict(metrics), step))

    def set_tags(self, tags):
        self.tags |= tags

    def finish(self, status):
        assert self.status == "RUNNING"
        self.status = status


class FakeTracker:
    """Opens runs whose ids say in which attempt they were opened."""

    def __init__(self, attempt):
        self.attempt, self.runs, self.num_closed = attempt, [], 0

    def __call__(self):
        return self

    def open_run(self, name, *, parent_id=None, run_id=None, tags=None):
        self.runs.append(FakeRun(name, run_id or f"run-{self.attempt}.{len(self.runs)}", parent_id, tags))
        return self.runs[-1]

    def close(self):
        self.num_closed += 1

    @property
    def statuses(self):
        return {run.name: run.status for run in self.runs}


class Job:
    """A stage whose weights are the names of all stages they went through, after `+` those of the data it read."""

    def __init__(self, lab, spec, inputs, directory):
        self.lab, self.spec, self.inputs, self.directory = lab, spec, inputs, directory

    def run(self):
        state = self.directory / "state" / ("step-00000010" if self.spec.trains else "part-000000.jsonl")
        verb = "train" if self.spec.trains else "sample"
        self.lab.happened.append(f"{'continue' if state.exists() else verb} {self.spec.name}")
        if self.lab.saves_states:
            state.mkdir(parents=True, exist_ok=True)
        self.lab.perhaps_fail(verb, self.spec.name)
        return Training(metrics={"loss": 0.5}, num_steps=200, num_skipped=1, changed=self.lab.changed)

    def export(self, artifact, directory):
        before = (self.inputs[WEIGHTS] / "model.safetensors").read_text()
        data = [folder / "own.jsonl" for key, folder in sorted(self.inputs.items()) if key != WEIGHTS]
        text = f"{before}{''.join('+' + path.read_text() for path in data)}>{self.spec.name}{self.lab.salt}"
        if artifact == HANDOFF:
            for name in REQUIRED:
                (directory / name).write_text("{}")
        (directory / ("model.safetensors" if artifact == HANDOFF else f"{artifact}.jsonl")).write_text(text)
        self.lab.perhaps_fail("export", self.spec.name)
        self.lab.perhaps_fail(f"export {artifact}", self.spec.name)
        return {"labels": ["sad"], **self.lab.facts.get((self.spec.name, artifact), {})}


class Lab:
    """One run directory, a base model, and fakes that record; `failures` maps a place to what it raises.

    Stages called `draw...` make data, and `reads` maps stages to the stages whose data they read.
    """

    def __init__(self, folder):
        self.directory, self.base = folder / "run", folder / "base"
        self.base.mkdir(parents=True)
        (self.base / "model.safetensors").write_text("base")
        self.failures, self.happened, self.said, self.reads, self.shown = {}, [], [], {}, []
        self.salt, self.saves_states, self.changed = "", False, True
        self.recorded, self.base_evaluation = [], ""
        self.facts, self.when_empty = {}, "end"  # facts maps a stage and its artifact to facts for the seal
        self.tracker = FakeTracker(0)

    def perhaps_fail(self, place, stage):
        if (place, stage) in self.failures:
            raise self.failures[place, stage]

    def build(self, spec, inputs, directory, run):
        self.perhaps_fail("build", spec.name)
        return Job(self, spec, inputs, directory)

    def evaluate(self, checkpoint, directory, stage, run):
        self.happened.append(f"evaluate {stage}")
        self.perhaps_fail("evaluate", stage)
        assert stage == BASE or check_handoff(checkpoint)
        return {"test/uar": 0.25}

    def settings(self, name, start, gate):
        own = {each: SourceSettings(stage=each, artifact="own") for each in self.reads.get(name, ())}
        if name.startswith("draw"):
            return SampleSettings(kind="sample", start_from=start, data=StageDataSettings(sources=own))
        data = StageDataSettings(sources=own)
        return StageSettings(kind="sft", start_from=start, gate=gate, data=data, when_empty=self.when_empty)

    def run(self, order=NAMES, changed=(), gates=None, selection=None, evaluation="", **starts):
        stages = {name: self.settings(name, starts.get(name, "previous"), (gates or {}).get(name)) for name in order}
        planned = plan_stages(order, stages, kind_of)
        specs = [
            replace(
                spec,
                digest="changed" if spec.name in changed else "same",
                content={
                    "stage.num_steps": 300 if spec.name in changed else 200,
                    "seed": 0,
                    "starts_from": spec.source or "base",
                    "index": place_among_trained(spec, planned),
                },
                evaluation=evaluation,
            )
            for spec in planned
        ]
        self.tracker, self.happened, self.said, self.shown = FakeTracker(self.tracker.attempt + 1), [], [], []
        orchestrator = StageOrchestrator(
            Curriculum(name="lab", stages=specs, base=lambda spec: self.base, base_evaluation=self.base_evaluation),
            self.directory,
            build_stage=self.build,
            evaluate=self.evaluate,
            tracker=self.tracker,
            callbacks=Callbacks(
                on_start=lambda parent: self.happened.append(f"start {parent.id}"),
                on_made=self.show,
                on_evaluated=self.record,
            ),
            say=self.said.append,
        )
        return orchestrator.run(selection)

    def show(self, spec, folders):
        self.shown.append((spec.name, sorted(folders)))
        self.perhaps_fail("show", spec.name)

    def record(self, parent):
        manifest = Manifest.read(self.directory)
        evaluated = [name for name, stage in manifest.stages.items() if "evaluate" in stage.result.seconds]
        self.recorded.append([*(["base"] if manifest.base else []), *evaluated])

    def weights(self, folder):
        return (self.directory / "stages" / folder / "handoff" / "model.safetensors").read_text()

    @property
    def finished(self):
        return list(Manifest.read(self.directory).stages)
