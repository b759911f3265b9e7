"""Handoffs as folders to share: complete, loaded by plain transformers, with a card that tells the truth."""

import json
from dataclasses import replace
from typing import Any

import foreign
import omni
import pytest
import torch
import transformers
import yaml

from lightning_mmrl.curriculum.artifacts import SEAL, write_artifact
from lightning_mmrl.curriculum.handoff import check_handoff
from lightning_mmrl.curriculum.manifest import FinishedStage, Manifest
from lightning_mmrl.curriculum.publish import evaluated_tasks, model_card, publish
from lightning_mmrl.errors import StageError
from lightning_mmrl.models.export import export_checkpoint
from lightning_mmrl.models.families.qwen2_5_omni import OmniThinker
from lightning_mmrl.models.policy import Policy
from lightning_mmrl.types.batches import ScoringBatch
from lightning_mmrl.types.records import Artifact, StageResult

FACTS = {
    **foreign.FACTS,
    "prompt": {"system": "Be brief.", "suffix": "", "prefill": "<think>"},
    "family": "qwen2_5_omni",
}


@pytest.fixture
def model(tmp_path):
    return omni.load(omni.build(tmp_path / "base"), dtype=torch.float32)


@pytest.fixture
def run(tmp_path, model):
    """Two finished stages; the handoff of the second one is there."""
    encoder, policy = model
    handoff = tmp_path / "runs" / "first" / "stages" / "01-reason" / "handoff"
    digest = write_artifact(handoff, lambda folder: export_checkpoint(policy.model, encoder, folder), FACTS)
    stages = {}
    chain = [("cold_start", "sft", "base-hash", "cold-hash"), ("reason", "rl", "cold-hash", digest)]
    for name, kind, before, after in chain:
        metrics = {f"{name}/train/loss": 0.5, f"{name}/test/uar": 0.8125, f"{name}/test/recall/sad": 0.25}
        result = StageResult(
            name=name,
            artifacts={"handoff": Artifact(path="-", digest=after)},
            inputs={"weights": before},
            metrics=metrics,
            seconds={},
        )
        content = {"stage.kind": kind, "stage.num_steps": 300, "starts_from": "base", "model.checkpoint": "org/model"}
        trained = {f"{name}/train/loss": 0.5}
        stages[name] = FinishedStage(digest="-", content=content, result=result, training_metrics=trained)
    Manifest(stages=stages).write(tmp_path / "runs" / "first")
    return handoff


def test_plain_transformers_loads_it_with_equal_log_probs(run, model, tmp_path):
    encoder, policy = model
    card = publish(run, tmp_path / "shared").read_text()
    imported = next(line for line in card.splitlines() if line.startswith("from transformers import"))
    kind = getattr(transformers, imported.rpartition(" ")[2])
    backbone: Any = OmniThinker(kind.from_pretrained(tmp_path / "shared"))
    loaded = Policy(backbone, banned_token_ids=encoder.banned_token_ids())
    ids, mask = omni.ragged_completions(encoder, 8)
    batch = ScoringBatch(prompts=omni.prompts(encoder), completion_ids=ids, completion_mask=mask, group_size=2)
    assert torch.equal(loaded(batch).logprobs, policy(batch).logprobs)
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "shared")
    assert processor.chat_template == encoder.processor.chat_template
    assert check_handoff(tmp_path / "shared")["labels"] == ["angry", "sad"]


def test_the_card_has_metadata_stages_scores_and_lineage(run, tmp_path):
    card = publish(run, tmp_path / "shared", name="Emotions", license_id="apache-2.0").read_text()
    _, metadata, text = card.split("---\n", 2)
    data = yaml.safe_load(metadata)
    assert (data["license"], data["tags"]) == ("apache-2.0", ["lightning_mmrl", "sft", "rl"])
    assert [result["dataset"]["name"] for result in data["model-index"][0]["results"]] == ["test"]
    assert data["model-index"][0]["results"][0]["metrics"] == [{"type": "uar", "value": 0.8125}]
    assert "\n# Emotions\n" in text
    assert "without a cover picture or an edit list that cuts something off. Ask `mmrl predict` about others." in text
    assert "- System prompt: `Be brief.`" in text
    assert "| reason | rl | base | 300 | - |" in text
    assert "| test | 81.2 |" in text
    digest = json.loads((run / SEAL).read_text())["digest"]
    assert f"- This checkpoint: `{digest}`\n- Stage reason started from `cold-hash`" in text
    assert "- Stage cold_start started from `base-hash`\n- Base model: `org/model`" in text


def test_the_card_has_the_steps_that_a_budget_allowed_and_not_the_nominal_ones(run, tmp_path):
    folder = tmp_path / "runs" / "first"
    stages = dict(Manifest.read(folder).stages)
    limit = {"budget.flops": 1e12, "budget.after": ["cold_start"]}
    old = stages["reason"]
    stages["reason"] = replace(old, content={**old.content, **limit}, result=replace(old.result, num_steps=7))
    Manifest(stages=stages).write(folder)
    text = publish(run, tmp_path / "shared").read_text()
    assert "| reason | rl | base | 7 | - |" in text
    assert "| cold_start | sft | base | 300 | - |" in text


def test_a_hand_over_without_its_run_has_a_card_without_scores(run, tmp_path):
    alone = tmp_path / "alone"
    run.rename(alone)
    text = publish(alone, tmp_path / "shared").read_text()
    assert "## Stages" not in text
    assert "model-index" not in text


def test_nothing_is_overwritten_and_nothing_half_written(run, tmp_path, monkeypatch):
    (tmp_path / "shared").mkdir()
    with pytest.raises(StageError, match="shared exists; name a folder that does not"):
        publish(run, tmp_path / "shared")
    (run / "config.json").write_text("{}")
    with pytest.raises(StageError, match=r"config\.json is missing or changed"):
        publish(run, tmp_path / "other")
    assert not list(tmp_path.glob("other*"))


SUMS = {"task": {"type": "mathematics", "headline": "accuracy", "scores": ["accuracy", "valid_format"]}}


def card_of(run, tmp_path, entry, labels, **metrics):
    """The metadata and the text of a card whose last stage has these metrics on the set `test`."""
    facts = {**check_handoff(run), "labels": labels}
    config = json.loads((run / "config.json").read_text())
    result = StageResult(
        name="reason",
        artifacts={"handoff": Artifact(path="-", digest=facts["digest"])},
        inputs={"weights": "-"},
        metrics={f"reason/test/{key}": value for key, value in metrics.items()},
        seconds={},
    )
    folder = tmp_path / "evaluation"
    folder.mkdir()
    (folder / "evaluation.json").write_text(json.dumps({"test": entry}))
    stage = FinishedStage(digest="-", content={}, result=result, training_metrics={})
    tasks = evaluated_tasks(folder, labels)
    text = model_card("Sums", facts, config, [stage], tasks=tasks)
    return yaml.safe_load(text.split("---\n")[1])["model-index"][0]["results"], text


def test_the_card_of_a_model_without_labels_speaks_of_its_own_task(run, tmp_path):
    found, text = card_of(run, tmp_path, SUMS, ["0", "1"], valid_format=0.5, accuracy=0.25, unjudged=0.0)
    assert [result["task"]["type"] for result in found] == ["mathematics"]
    assert found[0]["metrics"] == [{"type": "accuracy", "value": 0.25}, {"type": "valid_format", "value": 0.5}]
    assert "| set | accuracy | valid_format |" in text
    assert "| test | 25.0 | 50.0 |" in text
    assert not [word for word in ("UAR", "uar", "WAR", "motion", "Labels") if word in text]


@pytest.mark.parametrize(
    ("labels", "kind"), [(["angry", "sad"], "emotion-recognition"), (["circle", "square"], "classification")]
)
def test_the_card_of_closed_labels_says_whether_they_are_emotions(run, tmp_path, labels, kind):
    found, text = card_of(run, tmp_path, {}, labels, uar=0.25, war=0.5, accuracy=1.0)
    assert found[0]["task"]["type"] == kind
    assert [metric["type"] for metric in found[0]["metrics"]] == ["war", "uar"]
    assert f"- Labels: {', '.join(labels)}" in text
    assert ("Which emotion?" in text) == (kind == "emotion-recognition")
