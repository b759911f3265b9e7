"""Samples K completions of each prompt from any checkpoint, scores them, and writes a rollout table and training data.

The stage makes two artifacts: `rollouts`, the table of all completions, and `own`, a manifest of the right answers that
`keep` selects, for a stage of supervised training.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from lightning_mmrl.app.data_kinds import check_each_once, check_media_root, media_root, write_samples
from lightning_mmrl.config.checks.answers import check_answer_selection
from lightning_mmrl.config.checks.values import check_rewards
from lightning_mmrl.config.specs import flattened
from lightning_mmrl.curriculum.graph import usual_inputs
from lightning_mmrl.errors import ConfigError, DataError, StageError
from lightning_mmrl.protocols.plain import StageJob, TrackedRun
from lightning_mmrl.settings.run import RunSettings
from lightning_mmrl.settings.sample import SampleSettings
from lightning_mmrl.types.records import WEIGHTS, ArtifactType, Edge, StageSpec, Training

if TYPE_CHECKING:
    from lightning_mmrl.app.assembly import Assembly
    from lightning_mmrl.data.rollout_table import RolloutRow
    from lightning_mmrl.stages.costs import Rates
    from lightning_mmrl.stages.sample import PartStore, SampleModule, SamplePlan
    from lightning_mmrl.tracking.lightning_logger import RunLogger
    from lightning_mmrl.training.group import RankGroup

OWN, ROLLOUTS = "own", "rollouts"


class SampleKind:
    """Implements `StageKind`."""

    settings = SampleSettings
    supervised = False

    def inputs(self, stage: SampleSettings) -> Mapping[str, Edge]:
        """Weights, and data that other stages made."""
        return usual_inputs(stage)

    def outputs(self, stage: SampleSettings) -> Mapping[str, ArtifactType]:
        """The table of all completions, and the selected answers."""
        return {ROLLOUTS: "table", OWN: "manifest"}

    def describe(self, stage: SampleSettings) -> str:
        """Says in words how many completions each prompt gets, and how many prompts are sampled at once."""
        return f"{stage.num_completions} completions of each prompt, {stage.data.batch_size} prompts at once"

    def check(self, path: str, stage: SampleSettings, config: RunSettings) -> None:
        """Refuses a stage without `sampling` or `rewards`, and keys that only training uses.

        The stage would ignore these keys: balance, modality dropout and the weights of sources. Sources must have one
        media root, rewards must be whole, and the bounds of `keep` must not contradict each other.
        """
        for part in ("sampling", "rewards"):
            if getattr(stage, part) is None:
                raise ConfigError(f"{path}.{part}: is missing; a sample stage needs it, take it from stage/sample")
        assert stage.rewards is not None
        check_rewards(f"{path}.rewards", stage.rewards)
        check_answer_selection(f"{path}.keep", stage.keep)
        check_each_once(path, stage)
        check_media_root(path, stage, config)

    def preflight(self, path: str, stage: SampleSettings) -> None:
        """Builds the rewards, and checks the arguments of the engine."""
        from lightning_mmrl.app.preflight import preflight_engine, preflight_rewards

        preflight_rewards(path, stage.rewards)
        if stage.rollout is not None:
            preflight_engine(f"{path}.rollout", stage.rollout)

    def build(
        self, spec: StageSpec, inputs: Mapping[str, Path], directory: Path, run: TrackedRun, parts: "Assembly"
    ) -> StageJob:
        """Builds the job: a LightningModule that samples, its prompts and its Trainer."""
        # Imported here, since configurations are checked without torch.
        from lightning_mmrl.app.costs import rates
        from lightning_mmrl.app.idle import IdleJob
        from lightning_mmrl.app.rewards import training_rewards
        from lightning_mmrl.app.stages import data_module, data_sources, located_sources
        from lightning_mmrl.curriculum.attempt import STATES
        from lightning_mmrl.data.collate import collate_prompts
        from lightning_mmrl.data.in_order import eval_loader
        from lightning_mmrl.data.stream import StreamedSets
        from lightning_mmrl.stages.sample import PartStore, SampleModule, SamplePlan
        from lightning_mmrl.tracking.lightning_logger import RunLogger
        from lightning_mmrl.training.callbacks.progress import EvaluationProgress
        from lightning_mmrl.training.strategies import ranks_of, sharding_of
        from lightning_mmrl.training.trainer import evaluation_trainer, prepare_process

        path, stage, checkpoint = f"stages.{spec.name}", spec.settings, inputs[WEIGHTS]
        assert isinstance(stage, SampleSettings)
        assert stage.sampling is not None
        assert stage.rewards is not None
        prepare_process(stage.trainer, spec.seed)
        run.log_params(flattened(asdict(stage)))
        sources = data_sources(spec, inputs, parts.config)
        root = media_root(path, located_sources(spec, inputs, parts.config))
        if not sources:
            return IdleJob(write=partial(_write_nothing, media_root=root, leads=parts.group.leads))
        encoder = parts.encoder(checkpoint)
        policy = parts.policy(checkpoint, encoder, stage.sampling.temperature, stage.trainer)
        pipeline = parts.pipeline(encoder)
        kinds = data_module(path, stage, parts.config)
        opened = partial(
            kinds.open_source,
            pipeline=pipeline,
            template=parts.template,
            exclusions=parts.exclusions,
            supervised=False,
        )
        sets = StreamedSets([(source.manifest, opened(source)) for source in sources.values()], parts.monitor)
        store = PartStore(directory=directory / STATES, before=parts.exclusions.flush)
        plan = SamplePlan(settings=stage, seed=spec.seed, places=_places(path, sets.ids), left_out=sets.left_out)
        resources = ExitStack()
        engine = parts.rollout_engine(policy, encoder, stage.sampling, (f"{path}.rollout", stage.rollout))
        resources.callback(engine.close)
        module = SampleModule(
            policy,
            engine,
            resources.enter_context(training_rewards(stage.rewards, f"{path}.rewards", parts)),
            plan=plan,
            parts=store,
            ranks=ranks_of(stage.trainer),
            sharding=sharding_of(stage.trainer),
            rank_local=parts.group.interruption.rank_local,
        )
        loader = partial(
            eval_loader,
            sets,
            partial(collate_prompts, pad_token_id=encoder.pad_token_id),
            batch_size=stage.data.batch_size,
            ranks=parts.group.ranks,
            decoder=pipeline.decoder,
            settings=parts.config.data.media,
        )
        callbacks = [EvaluationProgress(parts.console, parts.title(spec)), *parts.callbacks(spec.name)]
        trainer = evaluation_trainer(stage.trainer, directory=directory, callbacks=callbacks)
        return SampleJob(
            trainer=trainer,
            module=module,
            loader=loader,
            store=store,
            plan=plan,
            media_root=root,
            rates=rates(parts.config, stage, str(checkpoint), stage.rollout),
            log=partial(_log, RunLogger(run, directory), spec.name),
            group=parts.group,
            say=lambda message: parts.console.say(f"{parts.title(spec)}: {message}"),
            resources=resources,
        )


def _log(logger: "RunLogger", stage: str, number: int, metrics: Mapping[str, float]) -> None:
    logger.log_metrics({f"{stage}/{key}": value for key, value in metrics.items()}, number)


def _write_nothing(artifact: str, directory: Path, *, media_root: str, leads: bool) -> Mapping[str, Any]:
    """Writes an artifact of a stage without a prompt, and returns the facts for its seal."""
    if not leads:
        return {}
    if artifact == OWN:
        return write_samples(directory, OWN, [], media_root, {})
    return {"artifact": artifact, "media_root": media_root, "counts": {"kept": 0, "completions": 0}}


def _places(path: str, ids: Sequence[str]) -> dict[str, int]:
    """Maps the id of each prompt to its place.

    Raises:
        DataError: Two prompts have the same id, so that their answers could not be told apart.
    """
    places = {name: place for place, name in enumerate(ids)}
    if len(places) < len(ids):
        twice = next(name for place, name in enumerate(ids) if places[name] != place)
        raise DataError(
            f"{path}.data: two prompts have the id {twice!r}; give each its own, or sample them in two stages"
        )
    return places


@dataclass(frozen=True, kw_only=True)
class SampleJob:
    """Implements `StageJob`: samples all prompts, then writes the two artifacts.

    Attributes:
        trainer: Runs the loop over batches.
        module: Samples and scores, and writes each batch to `store`.
        loader: Returns a loader of the batches from number `first` on.
        store: The files with the rows of the batches that are done, one file (a part) for each batch.
        plan: How much is sampled.
        media_root: Folder that paths of media are relative to.
        rates: What counted work and the devices amount to.
        log: Takes the number of a batch, from 1, and metrics.
        group: The ranks; rank 0 writes.
        say: Shows the user a line.
        resources: Resources to close when sampling ends, whether or not it fails.
    """

    trainer: Any
    module: "SampleModule"
    loader: Callable[..., Any]
    store: "PartStore"
    plan: "SamplePlan"
    media_root: str
    rates: "Rates"
    log: Callable[[int, Mapping[str, float]], None]
    group: "RankGroup"
    say: Callable[[str], None]
    resources: ExitStack

    def run(self) -> Training:
        """Samples the batches that are left, and returns metrics over all prompts, such as the pass rate.

        Raises:
            KeyboardInterrupt: The run was interrupted.
            StageError: The loop ended early, or the parts of an earlier process do not belong to the plan.
        """
        from lightning_mmrl.training.job import raising_interrupts

        done = self.module.num_parts = self.group.broadcast(self._num_parts() if self.group.leads else 0)
        if done:
            self.say(f"continuing after {done} of {self.plan.num_batches} batches")
        with self.resources, raising_interrupts():
            loader = self.loader(first=done)
            self.module.watch(
                self.rates, lambda: loader.waited_s, self.log if self.group.leads else lambda number, metrics: None
            )
            if done < self.plan.num_batches:
                self.trainer.test(self.module, dataloaders=loader, verbose=False)
        metrics = self._metrics() if self.group.leads else {}
        if self.group.leads:
            self.log(self.plan.num_batches, metrics)
        return Training(metrics=metrics, num_steps=self.plan.num_batches, costs=self.module.costs.total)

    def export(self, artifact: str, directory: Path) -> Mapping[str, Any]:
        """Writes the table or the selected answers, and returns the facts for the artifact's seal.

        The facts are the folder that media paths are relative to, and the counts of prompts and answers.

        Raises:
            DataError: A part is damaged.
            DiskError: The disk refuses.
        """
        from lightning_mmrl.data.answer_selection import REASONS, Totals, select_answers
        from lightning_mmrl.data.rollout_table import write_table

        if not self.group.leads:
            return {}
        if artifact == ROLLOUTS:
            for number in range(self.plan.num_batches):
                write_table(self._path(directory, number), self._rows(number))
            prompts = len(self.plan.usable())
            counts = {"kept": prompts, "completions": prompts * self.plan.settings.num_completions}
            return {"artifact": artifact, "media_root": self.media_root, "counts": counts}
        totals = Totals()
        found = list(select_answers(self._all_rows(), self.plan.settings.keep))
        for selection in found:
            totals += selection.totals
        kept = [each.sample for selection in found for each in selection.kept]
        dropped = {each: totals.dropped[each] for each in REASONS if each in totals.dropped}
        return write_samples(directory, OWN, kept, self.media_root, dropped)

    def _num_parts(self) -> int:
        """Returns how many parts an earlier process left, after comparing their prompts with the plan."""
        found, prompts = self.store.num_parts(), self.plan.usable()
        size, completions = self.plan.settings.data.batch_size, self.plan.settings.num_completions
        for number in range(found):
            rows = [(row.sample.id, len(row.completions)) for row in self._rows(number)]
            if rows != [(prompt, completions) for prompt in prompts[number * size : (number + 1) * size]]:
                raise StageError(
                    f"{self.store.path(number)} has other prompts or numbers of completions than the stage asks for "
                    f"now; undo the change, or remove {self.store.directory} to sample again"
                )
        return found

    def _path(self, directory: Path, number: int) -> Path:
        return directory / self.store.path(number).name

    def _rows(self, number: int) -> "Iterator[RolloutRow]":
        from lightning_mmrl.data.rollout_table import iter_table

        return iter_table(self.store.path(number))

    def _all_rows(self) -> "Iterator[RolloutRow]":
        for number in range(self.plan.num_batches):
            yield from self._rows(number)

    def _metrics(self) -> dict[str, float]:
        """Returns shares and means over all prompts and completions."""
        rates, lengths, truncated, valid = [], [], 0, 0
        for row in self._all_rows():
            rates += [row.pass_rate] if row.pass_rate is not None else []
            lengths += [completion.num_tokens for completion in row.completions]
            truncated += sum(completion.truncated for completion in row.completions)
            valid += sum(score.valid for score in row.scores)
        metrics = {
            "rollout/length_mean": fmean(lengths),
            "rollout/truncated": truncated / len(lengths),
            "rollout/invalid_scores": 1 - valid / len(lengths),
        }
        solved = {
            "pass_rate": rates,
            "solved": [rate == 1 for rate in rates],
            "unsolved": [rate == 0 for rate in rates],
        }
        return metrics | {f"rollout/{name}": fmean(values) for name, values in solved.items() if values}


KIND = SampleKind()
