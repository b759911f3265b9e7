"""Evaluates a checkpoint on the sets of a configuration."""

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from lightning_mmrl.app.asked import Asked, Result, all_asked, check_thoughts
from lightning_mmrl.app.assembly import Assembly
from lightning_mmrl.app.kept_answers import KeptAnswers, bound_of, bound_set, kept_answers
from lightning_mmrl.config.specs import first_trained
from lightning_mmrl.curriculum.checkpoints import Checkpoint, located
from lightning_mmrl.data.collate import collate_prompts
from lightning_mmrl.data.exclusions import EXCLUSIONS, Exclusions
from lightning_mmrl.data.in_order import eval_loader
from lightning_mmrl.data.manifest import Indexing
from lightning_mmrl.data.pipeline import MediaPipeline
from lightning_mmrl.data.prepared import PreparedSet
from lightning_mmrl.data.schema import LoadedManifest
from lightning_mmrl.data.shuffling import SWAPPED, Shuffle
from lightning_mmrl.data.sources import load_source
from lightning_mmrl.data.stream import StreamedSets, StreamLoader
from lightning_mmrl.evaluation.intervals import ClusterBootstrap
from lightning_mmrl.evaluation.sampled import SampledAnswers
from lightning_mmrl.evaluation.thinking import NO_THINK
from lightning_mmrl.files import write_whole
from lightning_mmrl.models.folder import found_file
from lightning_mmrl.models.policy import Policy
from lightning_mmrl.protocols.plain import TrackedRun
from lightning_mmrl.protocols.tensors import PromptEncoder, RolloutEngine
from lightning_mmrl.settings.algorithm import SamplingSettings
from lightning_mmrl.settings.data import PromptSettings
from lightning_mmrl.settings.rollout import POLICY_ITSELF, engine_node
from lightning_mmrl.settings.run import EvaluationSetSettings
from lightning_mmrl.settings.stage import BASE, StageSettings
from lightning_mmrl.stages.answers import SUBJECT, AnswerEvaluator
from lightning_mmrl.stages.evaluate import SUMMARY, EvaluatedSet, EvaluationModule, Keeping
from lightning_mmrl.stages.judged import PROGRESS, Batches, JudgedBatches
from lightning_mmrl.stages.sampled_answers import SampledEvaluator
from lightning_mmrl.training.callbacks.progress import EvaluationProgress
from lightning_mmrl.training.job import raising_interrupts
from lightning_mmrl.training.memory import free_memory
from lightning_mmrl.training.strategies import ranks_of, sharding_of
from lightning_mmrl.training.trainer import evaluation_trainer, prepare_process


@dataclass(frozen=True, slots=True, kw_only=True)
class _Loaded:
    """A model, and what it is asked for each result (`test`, `test-silent`)."""

    policy: Policy
    encoder: PromptEncoder
    pipeline: MediaPipeline
    results: Mapping[str, Result]
    bound: Mapping[str, Any]
    kept: KeptAnswers


class CheckpointEvaluator:
    """Implements `Evaluator`: evaluates every configured set, and its ablations where they are asked for.

    Judged batches are kept on disk, so that an evaluation which was interrupted continues.

    Args:
        assembly: The parts of the run.
        last_stage: The stage whose ablations are evaluated if `ablation_stages` is `last`.
        afresh: True for an evaluation outside of a run; such an evaluation itself decides which samples it leaves out,
            and the engine of `rollout` gives the answers. Within a run the policy itself does.

    Raises:
        ConfigError: Answers without a thought are asked for, and the prompt of a set asks for no thought.
    """

    def __init__(self, assembly: Assembly, last_stage: str, *, afresh: bool = False) -> None:
        self._assembly = assembly
        self._last_stage = last_stage
        self._afresh = afresh
        if assembly.config.evaluation.no_think:
            for stage in [None] if afresh else assembly.config.trained.values():
                check_thoughts(assembly.config, assembly.tasks, stage)

    def __call__(self, checkpoint: Path, directory: Path, stage: str, run: TrackedRun | None) -> Mapping[str, float]:
        """Evaluates a checkpoint; returns the metrics keyed `<set>/<metric>`."""
        return self.evaluate(located(checkpoint, found_file), directory, stage, run)

    def evaluate(
        self, checkpoint: Checkpoint, directory: Path, stage: str, run: TrackedRun | None
    ) -> Mapping[str, float]:
        """Evaluates a checkpoint whose files are found and checked."""
        free_memory()
        of_stage = self._stage(stage)
        parts = self._assembly if of_stage is None else self._assembly.of_stage(of_stage)
        chosen = self._assembly.config.sets(None if of_stage is None else of_stage.evaluation_sets)
        prompted = {
            name: parts.with_prompt(self._assembly.config.prompt_of(each, of_stage)) for name, each in chosen.items()
        }
        if self._afresh:
            self._warn_of_prompt(checkpoint)
        if not chosen:
            if parts.group.leads:
                write_whole(directory / SUMMARY, "{}\n")
            return {}
        prepare_process(parts.config.trainer, parts.config.seed)
        with parts.group.first():
            loaded = self._loaded(checkpoint, directory, stage, parts, prompted)
        kept = parts.group.broadcast(self._fitting(loaded, stage, directory))  # the other ranks looked for none
        loaders = self._loaders(loaded, kept)
        with self._engine(parts, loaded) as engine:
            sets = [
                EvaluatedSet(
                    name=name,
                    num_samples=len(each.samples),
                    evaluator=self._evaluator(loaded, each, engine),
                    left_out=each.samples.left_out,
                    kept=kept.get(name, ()),
                    has_loader=name in loaders,
                    whole=each.asked.whole,
                    shuffled=each.shuffled,
                    thinks_in=each.asked.whole if each.asked.variant == NO_THINK else None,
                )
                for name, each in loaded.results.items()
            ]
            module = self._judged(loaded, directory, sets, list(loaders.values()), stage)
        if run is not None:
            run.log_artifact(directory, "evaluation")
        return {
            f"{name}/{key}": value
            for name, result in module.results.items()
            for key, value in result["metrics"].items()
        }

    def _loaded(
        self,
        checkpoint: Checkpoint,
        directory: Path,
        stage: str,
        parts: Assembly,
        prompted: Mapping[str, Assembly],
    ) -> _Loaded:
        """Loads the model, opens the manifests, and on rank 0 looks for answers of an earlier evaluation."""
        config, chosen = self._assembly.config, self._assembly.config.sets(prompted)
        encoder = parts.encoder(checkpoint.place)
        policy = parts.policy(checkpoint.place, encoder, 1.0)
        if checkpoint.adapter is not None:
            policy.merge(checkpoint.adapter, encoder.engine_prefix)
        pipeline = self._assembly.pipeline(encoder)
        indexing = Indexing(folder=pipeline.cache.directory)
        sources = {
            name: load_source(each.path, each.media_folder, each.format, indexing) for name, each in chosen.items()
        }
        further = config.evaluation.ablation_stages == "all" or stage == self._last_stage
        asked = all_asked(self._assembly, prompted, further=further)
        bound, kept = {}, KeptAnswers(batches={})
        if parts.group.leads:
            of_results = {
                name: {
                    **bound_set(config, chosen[each.whole], each.parts.config.prompt, sources[each.whole].digest),
                    **each.decisive(),
                }
                for name, each in asked.items()
            }
            bound = bound_of(config, checkpoint, self._engine_node(), of_results)
            kept = kept_answers(directory, bound, lambda line: parts.console.say(f"evaluating {stage}: {line}"))
        holds = kept.goes_on or kept.batches.keys() >= asked.keys()  # all answers are there, and nothing is read again
        exclusions = self._exclusions(directory, anew=not holds)
        return _Loaded(
            policy=policy,
            encoder=encoder,
            pipeline=pipeline,
            results=self._results(asked, chosen, sources, pipeline, exclusions),
            bound=bound,
            kept=kept,
        )

    def _fitting(self, loaded: _Loaded, stage: str, directory: Path) -> Batches:
        """The kept batches that are of the samples which they would be of now; tells the user about them."""
        samples = {name: (each.samples, each.asked.batch_size) for name, each in loaded.results.items()}
        found = loaded.kept.fitting(samples)
        number = sum(len(batches) for batches in found.values())
        if number and loaded.kept.goes_on:
            self._assembly.console.say(f"evaluating {stage}: goes on after {number} batches, which are judged already")
        elif number:
            self._assembly.console.say(
                f"evaluating {stage}: the answers on {', '.join(found)} are those of an earlier evaluation with the "
                f"same checkpoint, settings, data and code; remove {directory} to ask again"
            )
        return found

    def _judged(
        self, loaded: _Loaded, directory: Path, sets: list[EvaluatedSet], loaders: list[StreamLoader], stage: str
    ) -> EvaluationModule:
        """Has the trainer pass through all batches that are not judged yet, and returns the module with the results."""
        parts = self._assembly
        keeping = Keeping(batches=JudgedBatches(directory / PROGRESS), bound=loaded.bound)
        if parts.group.leads:
            keeping.batches.begin(loaded.bound, {each.name: each.kept for each in sets})
        module = EvaluationModule(
            loaded.policy,
            sets=sets,
            directory=directory,
            bootstrap=ClusterBootstrap(settings=parts.config.evaluation),
            ranks=ranks_of(parts.config.trainer),
            sharding=sharding_of(parts.config.trainer),
            keeping=keeping,
        )
        if not loaders:
            module.on_test_epoch_end()  # Lightning passes over a test without a batch
            return module
        progress = EvaluationProgress(parts.console, f"evaluating {stage}")
        trainer = evaluation_trainer(parts.config.trainer, directory=directory, callbacks=[progress])
        with raising_interrupts():
            trainer.test(module, dataloaders=loaders, verbose=False)
        return module

    def _engine_node(self) -> dict[str, Any]:
        """The node of the engine that answers; empty for the policy itself."""
        node = engine_node(self._assembly.config.rollout)
        return node if self._afresh and node["_target_"] != POLICY_ITSELF else {}

    @contextmanager
    def _engine(self, parts: Assembly, loaded: _Loaded) -> Iterator[RolloutEngine | None]:
        """One engine for all sets; None for the policy itself. It is closed at the end."""
        if not self._engine_node():
            yield None
            return
        sampling = SamplingSettings(max_new_tokens=parts.config.evaluation.max_new_tokens)
        plain = parts.with_prompt(PromptSettings())  # each set's evaluator adds its own prefill
        with closing(plain.rollout_engine(loaded.policy, loaded.encoder, sampling)) as engine:
            yield engine

    def _stage(self, name: str) -> StageSettings | None:
        """Returns the stage that made the checkpoint, or `first_trained` for the base model; None outside of a run."""
        config = self._assembly.config
        if self._afresh:
            return None
        return replace(first_trained(config), evaluation_sets=None) if name == BASE else config.trained[name]

    def _warn_of_prompt(self, checkpoint: Checkpoint) -> None:
        parts, facts = self._assembly, checkpoint.facts
        asked = [parts.config.prompt, *(parts.config.prompt_of(each) for each in parts.config.sets().values())]
        if facts is None or facts.get("prompt") in [asdict(prompt) for prompt in asked]:
            return
        trained = ", ".join(f"{key} {value!r}" for key, value in facts.get("prompt", {}).items() if value)
        parts.console.say(
            "warning: the handoff was trained with another prompt than the configuration has "
            f"({trained or 'without texts'}); set prompt.* or evaluation.sets.NAME.prompt to evaluate it so"
        )

    def _exclusions(self, directory: Path, *, anew: bool) -> Exclusions:
        parts = self._assembly
        if not self._afresh:
            return parts.exclusions
        path = directory / EXCLUSIONS
        if parts.group.leads and anew:
            path.unlink(missing_ok=True)
        return Exclusions(path, decides=parts.group.leads)

    def _results(
        self,
        asked: Mapping[str, Asked],
        sets: Mapping[str, EvaluationSetSettings],
        sources: Mapping[str, LoadedManifest],
        pipeline: MediaPipeline,
        exclusions: Exclusions,
    ) -> dict[str, Result]:
        """Opens the samples of each result; results with one set and one prompt share them."""
        settings, streams, found = self._assembly.config.evaluation, {}, {}
        for name, each in asked.items():
            of_set, key = sets[each.whole], (each.whole, id(each.parts))
            if key not in streams:
                prepared = PreparedSet(
                    sources[each.whole].samples[: settings.limit],
                    media_root=of_set.media_folder,
                    pipeline=pipeline,
                    template=each.parts.template,
                    supervised=False,
                    exclusions=exclusions,
                )
                prepared.check(of_set.manifest)
                streams[key] = prepared, StreamedSets([(of_set.manifest, prepared)], self._assembly.monitor)
            prepared, samples = streams[key]
            mixed = each.variant in SWAPPED
            found[name] = Result(
                asked=each,
                samples=samples,
                shuffle=Shuffle(prepared.samples, each.task.truth, each.variant) if mixed else None,
            )
        return found

    def _loaders(self, loaded: _Loaded, kept: Batches) -> dict[str, StreamLoader]:
        """The loader of each result that has batches which are not judged yet."""
        parts, found = self._assembly, {}
        for name, each in loaded.results.items():
            found[name] = eval_loader(
                each.samples,
                partial(collate_prompts, pad_token_id=loaded.encoder.pad_token_id),
                batch_size=each.asked.batch_size,
                ranks=parts.group.ranks,
                decoder=loaded.pipeline.decoder,
                settings=parts.config.data.media,
                shown=each.shown,
                first=len(kept.get(name, ())),
            )
        return {name: loader for name, loader in found.items() if len(loader)}

    def _evaluator(
        self, loaded: _Loaded, result: Result, engine: RolloutEngine | None
    ) -> AnswerEvaluator | SampledEvaluator:
        """Answers and judges one result; several answers to a question are sampled by the policy itself."""
        asked, settings = result.asked, self._assembly.config.evaluation
        usual = asked.parts.evaluator(loaded.policy, loaded.encoder, engine)
        if not isinstance(asked.task, SampledAnswers):
            thoughtless = asked.variant == NO_THINK
            subject = self._assembly.config.evaluation.sets[asked.whole].subject or SUBJECT
            return replace(usual, task=asked.task, subject_column=subject, thoughtless=thoughtless)
        return SampledEvaluator(
            engine=asked.parts.engine(loaded.policy, loaded.encoder, settings.max_new_tokens, settings.top_p),
            task=asked.task,
            policy=loaded.policy,
            settings=settings,
            run_seed=self._assembly.config.seed,
            rank_local=usual.rank_local,
        )
