"""Evaluates a checkpoint on the sets of a configuration."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from lightning_mmrl.app.assembly import Assembly
from lightning_mmrl.config.specs import first_trained
from lightning_mmrl.curriculum.lineage import facts_if_sealed
from lightning_mmrl.data.collate import collate_prompts
from lightning_mmrl.data.exclusions import EXCLUSIONS, Exclusions
from lightning_mmrl.data.in_order import eval_loader
from lightning_mmrl.data.manifest import Indexing
from lightning_mmrl.data.prepared import PreparedSet
from lightning_mmrl.data.sources import load_source
from lightning_mmrl.data.stream import StreamedSets, StreamLoader
from lightning_mmrl.errors import StageError
from lightning_mmrl.evaluation.intervals import ClusterBootstrap
from lightning_mmrl.files import write_whole
from lightning_mmrl.protocols.plain import TrackedRun
from lightning_mmrl.protocols.tensors import PromptEncoder
from lightning_mmrl.registry.tasks import task_of_result
from lightning_mmrl.settings.run import EvaluationSetSettings
from lightning_mmrl.settings.stage import BASE, StageSettings
from lightning_mmrl.stages.answers import SUBJECT
from lightning_mmrl.stages.evaluate import SUMMARY, EvaluatedSet, EvaluationModule
from lightning_mmrl.training.callbacks.progress import EvaluationProgress
from lightning_mmrl.training.job import raising_interrupts
from lightning_mmrl.training.memory import free_memory
from lightning_mmrl.training.strategies import ranks_of, sharding_of
from lightning_mmrl.training.trainer import evaluation_trainer, prepare_process


class CheckpointEvaluator:
    """Implements `Evaluator`: evaluates every configured set, and its ablations where they are asked for.

    Args:
        assembly: The parts of the run.
        last_stage: The stage whose ablations are evaluated if `ablation_stages` is `last`.
        afresh: True for an evaluation outside of a run; such an evaluation itself decides which samples it leaves out.
    """

    def __init__(self, assembly: Assembly, last_stage: str, *, afresh: bool = False) -> None:
        self._assembly = assembly
        self._last_stage = last_stage
        self._afresh = afresh

    def __call__(self, checkpoint: Path, directory: Path, stage: str, run: TrackedRun | None) -> Mapping[str, float]:
        """Evaluates a checkpoint; returns the metrics keyed `<set>/<metric>`."""
        free_memory()
        settings, of_stage = self._assembly.config.evaluation, self._stage(stage)
        parts = self._assembly if of_stage is None else self._assembly.of_stage(of_stage)
        chosen = self._assembly.config.sets(None if of_stage is None else of_stage.evaluation_sets)
        prompted = {
            name: parts.with_prompt(self._assembly.config.prompt_of(each, of_stage)) for name, each in chosen.items()
        }
        facts = facts_if_sealed(checkpoint)
        if facts is None and checkpoint.is_absolute() and not checkpoint.exists():
            raise StageError(f"checkpoint {checkpoint} does not exist; give a stage's handoff folder or a hub id")
        if self._afresh and facts is not None and facts.get("prompt") != asdict(parts.config.prompt):
            trained = ", ".join(f"{key} {value!r}" for key, value in facts.get("prompt", {}).items() if value)
            parts.console.say(
                "warning: the handoff was trained with another prompt than the configuration has "
                f"({trained or 'without texts'}); set prompt.* or evaluation.sets.NAME.prompt to evaluate it so"
            )
        if not chosen:
            if parts.group.leads:
                write_whole(directory / SUMMARY, "{}\n")
            return {}
        prepare_process(parts.config.trainer, parts.config.seed)
        with parts.group.first():
            encoder = parts.encoder(checkpoint)
            policy = parts.policy(checkpoint, encoder, 1.0)
            ablate = settings.ablation_stages == "all" or stage == self._last_stage
            variants = ["full", *(settings.ablations if ablate else [])]
            loaders = self._loaders(encoder, chosen, prompted, variants, self._exclusions(directory))
        sets = []
        for name, (samples, _) in loaders.items():
            whole = name if name in chosen else name.rpartition("-")[0]
            evaluator = replace(
                prompted[whole].evaluator(policy, encoder),
                task=task_of_result(name, parts.tasks),
                subject_column=chosen[whole].subject or SUBJECT,
            )
            evaluated = EvaluatedSet(
                name=name, num_samples=len(samples), evaluator=evaluator, left_out=samples.left_out
            )
            sets.append(evaluated)
        module = EvaluationModule(
            policy,
            sets=sets,
            directory=directory,
            bootstrap=ClusterBootstrap(settings=settings),
            ranks=ranks_of(parts.config.trainer),
            sharding=sharding_of(parts.config.trainer),
        )
        progress = EvaluationProgress(parts.console, f"evaluating {stage}")
        trainer = evaluation_trainer(parts.config.trainer, directory=directory, callbacks=[progress])
        with raising_interrupts():
            trainer.test(module, dataloaders=[loader for _, loader in loaders.values()], verbose=False)
        if run is not None:
            run.log_artifact(directory, "evaluation")
        return {
            f"{name}/{key}": value
            for name, result in module.results.items()
            for key, value in result["metrics"].items()
        }

    def _stage(self, name: str) -> StageSettings | None:
        """Returns the stage that made the checkpoint, or `first_trained` for the base model; None outside of a run."""
        config = self._assembly.config
        if self._afresh:
            return None
        return replace(first_trained(config), evaluation_sets=None) if name == BASE else config.trained[name]

    def _exclusions(self, directory: Path) -> Exclusions:
        parts = self._assembly
        if not self._afresh:
            return parts.exclusions
        path = directory / EXCLUSIONS
        if parts.group.leads:
            path.unlink(missing_ok=True)
        return Exclusions(path, decides=parts.group.leads)

    def _loaders(
        self,
        encoder: PromptEncoder,
        sets: Mapping[str, EvaluationSetSettings],
        prompted: Mapping[str, Assembly],
        variants: list[str],
        exclusions: Exclusions,
    ) -> dict[str, tuple[StreamedSets, StreamLoader]]:
        """Samples and loader of each set and each of its variants."""
        parts, settings = self._assembly, self._assembly.config.evaluation
        pipeline = parts.pipeline(encoder)
        indexing = Indexing(folder=pipeline.cache.directory)
        loaders = {}
        for name, each in sets.items():
            prepared = PreparedSet(
                load_source(each.path, each.media_folder, each.format, indexing).samples[: settings.limit],
                media_root=each.media_folder,
                pipeline=pipeline,
                template=prompted[name].template,
                supervised=False,
                exclusions=exclusions,
            )
            prepared.check(each.manifest)
            samples = StreamedSets([(each.manifest, prepared)], parts.monitor)
            for variant in variants:
                loader = eval_loader(
                    samples,
                    partial(collate_prompts, pad_token_id=encoder.pad_token_id),
                    batch_size=settings.batch_size,
                    ranks=parts.group.ranks,
                    decoder=pipeline.decoder,
                    settings=parts.config.data.media,
                    variant=variant,  # type: ignore[arg-type]
                )
                loaders[name if variant == "full" else f"{name}-{variant}"] = samples, loader
        return loaders
