"""Publishes a handoff as a folder to share: the checkpoint, and a model card with stages, scores and lineage."""

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from lightning_mmrl.curriculum.artifacts import SEAL
from lightning_mmrl.curriculum.card_call import call_of, part_of_text, places_text_otherwise
from lightning_mmrl.curriculum.card_frames import in_words
from lightning_mmrl.curriculum.facts import check_facts
from lightning_mmrl.curriculum.lineage import ancestry, checked_handoff
from lightning_mmrl.curriculum.manifest import FinishedStage
from lightning_mmrl.errors import StageError
from lightning_mmrl.files import folder_beside, follow_umask, read_json, sync, sync_tree, write_whole, writing
from lightning_mmrl.prompts.labels import names_emotions
from lightning_mmrl.types.records import WEIGHTS

CARD = "README.md"
SUMMARY = "evaluation.json"
SCORES = ("war", "uar", "macro_f1", "weighted_f1", "valid_format", "consistency")
"""Metrics that a card shows for a set of closed labels, if the stage has them."""
RECOGNITION, CLASSIFICATION = "emotion-recognition", "classification"
"""Task types of a set of closed labels."""

_ABOUT_THE_CALL = """\
With plain transformers, greedily, and as the model was trained and evaluated: the same frames and their size, the same
sound, the same prompt. Other settings give other answers."""

_ABOUT_FILES = """
The functions for media are short. They give what `mmrl predict` gives for files whose picture and sound start together
and have no gaps, without a cover picture or an edit list that cuts something off. Ask `mmrl predict` about others."""

_ABOUT_POSITIONS = """
In training, the first text token after a clip got the largest position so far + 1. transformers counts from the
longer side of the picture. Both are the same unless a clip has more positions in time than its frames have rows and
columns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SetTask:
    """The task of a set on a card: its type on the hub, and the metrics that are shown."""

    type_name: str
    scores: Sequence[str]
    closed: bool = False


def closed_labels(labels: Sequence[str]) -> SetTask:
    """The task of a closed label set."""
    return SetTask(type_name=RECOGNITION if names_emotions(labels) else CLASSIFICATION, scores=SCORES, closed=True)


def evaluated_tasks(folder: Path, labels: Sequence[str]) -> dict[str, SetTask]:
    """Maps each set to its task, as recorded in a stage's `evaluation` folder; empty if the folder has no results.

    Raises:
        StageError: The results cannot be read.
    """
    if not (folder / SUMMARY).is_file():
        return {}
    found = {}
    for name, entry in read_json(folder / SUMMARY, "evaluate the stage again").items():
        task = entry.get("task")
        own = (
            None
            if task is None
            else SetTask(type_name=str(task["type"]), scores=[str(each) for each in task["scores"]])
        )
        found[name] = own or closed_labels(labels)
    return found


def publish(handoff: Path, target: Path, *, name: str | None = None, license_id: str | None = None) -> Path:
    """Copies a handoff and writes its model card; the folder appears when it is complete.

    Args:
        handoff: A stage's handoff folder.
        target: Folder of the copy.
        name: Title of the card; the target's name by default.
        license_id: Identifier of the license, such as apache-2.0; the base model's license also covers trained models.

    Returns:
        The path of the card.

    Raises:
        StageError: The handoff is incomplete, its seal lacks a fact or contains one that training cannot have written,
            or the target exists.
        DiskError: Writing to disk failed; the partial copy is removed.
    """
    facts = checked_handoff(handoff)
    check_facts(facts, handoff / SEAL)
    if target.exists():
        raise StageError(f"{target} exists; name a folder that does not, or remove it")
    maker = facts.get("lineage", {}).get("stage")
    stages = ancestry(handoff.parents[2], facts["digest"], maker) if len(handoff.parents) > 2 else []
    config = part_of_text(read_json(handoff / "config.json", "restore it"))
    tasks = evaluated_tasks(handoff.with_name("evaluation"), facts["labels"]) if stages else {}
    card = model_card(name or target.name, facts, config, stages, tasks=tasks, license_id=license_id)
    with writing(target), folder_beside(target) as partial:
        # Only the sealed files: a `.git` folder beside them does not belong to the handoff.
        for file in (SEAL, *facts["files"]):
            (partial / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(handoff / file, partial / file)
        write_whole(partial / CARD, card)
        follow_umask(partial)
        sync_tree(partial)
        os.replace(partial, target)
        sync(target.parent)
    return target / CARD


def model_card(
    name: str,
    facts: Mapping[str, Any],
    config: Mapping[str, Any],
    stages: Sequence[FinishedStage],
    *,
    tasks: Mapping[str, SetTask] | None = None,
    license_id: str | None = None,
) -> str:
    """Returns the text of a card: the hub's metadata, how to load and prompt the model, stages, scores, lineage.

    Args:
        name: Title.
        facts: The facts in the handoff's seal.
        config: The model's configuration.
        stages: The stages that led to the handoff; empty if the run is not available.
        tasks: Maps each set to its task; a set that is missing has closed labels.
        license_id: Identifier of the license.
    """
    tasks, closed = tasks or {}, closed_labels(facts["labels"])
    own = [each for each in stages if each.result.handoff and each.result.handoff.digest == facts.get("digest")]
    scores = _scores((own or stages)[-1], tasks, closed) if stages else {}
    results = [
        EvalResult(
            task_type=tasks.get(set_name, closed).type_name,
            dataset_type=set_name,
            dataset_name=set_name,
            metric_type=metric,
            metric_value=round(value, 4),
        )
        for set_name, values in scores.items()
        for metric, value in values.items()
    ]
    data = ModelCardData(
        license=license_id,
        library_name="transformers",
        tags=["lightning_mmrl", *dict.fromkeys(str(stage.content.get("stage.kind", "-")) for stage in stages)],
        model_name=name if results else None,
        eval_results=results or None,
    )
    parts = [
        f"# {name}",
        _call(facts, config),
        _prompting(facts, with_labels=not tasks or any(task.closed for task in tasks.values())),
        _stage_table(stages),
        _score_table(scores),
        _origin(facts, stages),
    ]
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(part for part in parts if part) + "\n"


def _call(facts: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    code = call_of(facts, config)
    fence = "```"
    while fence in code:
        fence += "`"
    files = [_ABOUT_FILES] if "audio_config" in config or "vision_config" in config else []
    positions = [_ABOUT_POSITIONS] if places_text_otherwise(facts, config) else []
    return "\n".join(["## Ask it", "", _ABOUT_THE_CALL, "", f"{fence}python", code, fence, *files, *positions])


def _prompting(facts: Mapping[str, Any], *, with_labels: bool) -> str:
    prompt, media = facts["prompt"], facts["media"]
    parts = {"system": "System prompt", "suffix": "After each question", "prefill": "Begin of the answer"}
    if prompt.get("raw") is not None:
        parts = {"raw": "Text without the chat template", "suffix": parts["suffix"], "prefill": parts["prefill"]}
    parts = {"prefix": "Before each question", **parts} if prompt.get("prefix") else parts
    texts = {title: f"`{prompt[part]}`" if prompt[part] else "none" for part, title in parts.items()}
    lines = ["## Prompt", "", *(f"- {title}: {text}" for title, text in texts.items())]
    lines += [f"- Labels: {', '.join(facts['labels'])}"] if facts["labels"] and with_labels else []
    lines += [f"- Clips: {in_words(media)}, sound at {media['sample_rate_hz']} Hz"]
    return "\n".join([*lines, f"- Longest answer in the evaluation: {facts['max_new_tokens']} tokens"])


def _stage_table(stages: Sequence[FinishedStage]) -> str:
    if not stages:
        return ""
    by_steps = {
        stage.result.name: not {"stage.num_epochs", "budget.after"} & stage.content.keys() and not stage.result.idle
        for stage in stages
    }
    rows = [
        f"| {stage.result.name} | {stage.content.get('stage.kind', '-')} | {stage.content.get('starts_from', '-')} | "
        f"{stage.content.get('stage.num_steps', '-') if by_steps[stage.result.name] else stage.result.num_steps} | "
        f"{stage.content.get('stage.optimizer.lr', '-')} |"
        for stage in stages
    ]
    return "\n".join(
        ["## Stages", "", "| stage | kind | starts from | steps | learning rate |", "|---|---|---|---|---|", *rows]
    )


def _score_table(scores: Mapping[str, Mapping[str, float]]) -> str:
    if not scores:
        return ""
    shown = list(dict.fromkeys(metric for values in scores.values() for metric in values))
    rows = [
        f"| {name} | " + " | ".join(f"{100 * values[key]:.1f}" if key in values else "-" for key in shown) + " |"
        for name, values in scores.items()
    ]
    return "\n".join(["## Scores in %", "", f"| set | {' | '.join(shown)} |", "|---" * (len(shown) + 1) + "|", *rows])


def _origin(facts: Mapping[str, Any], stages: Sequence[FinishedStage]) -> str:
    lines = ["## Lineage", "", f"- This checkpoint: `{facts['digest']}`"]
    for stage in reversed(stages):
        for key, digest in stage.result.inputs.items():
            read = "started from" if key == WEIGHTS else "read"
            lines.append(f"- Stage {stage.result.name} {read} `{digest}`")
    models = [stage.content["model.checkpoint"] for stage in stages if "model.checkpoint" in stage.content]
    lines += [f"- Base model: `{model}`" for model in models[:1]]
    return "\n".join(lines)


def _scores(stage: FinishedStage, tasks: Mapping[str, SetTask], closed: SetTask) -> dict[str, dict[str, float]]:
    """Returns scores by set and metric, from the result's keys `<stage>/<set>/<metric>`, without training metrics.

    The metrics of a set are in the order of its task.
    """
    found: dict[str, dict[str, float]] = {}
    trained = set(stage.training_metrics)
    for key, value in stage.result.metrics.items():
        _, set_name, *rest = key.split("/")
        if key not in trained and len(rest) == 1 and rest[0] in tasks.get(set_name, closed).scores:
            found.setdefault(set_name, {})[rest[0]] = value
    return {
        name: {each: values[each] for each in tasks.get(name, closed).scores if each in values}
        for name, values in found.items()
    }
