"""The comparison of lmms-eval's answers with those of an evaluation, and the task that is written for it."""

import json
import runpy
import sys
from types import SimpleNamespace

import lmms_eval_scores
import pytest


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


OURS = [{"text": text, "predicted": text, "truth": "4"} for text in ("4", "5", "4")]
THEIRS = [
    {"doc_id": place, "resps": text, "exact_match": float(text == "4")}
    for place, text in ((2, "4"), (0, "4"), (1, "4"))
]


def test_answers_are_compared_in_the_order_of_the_manifest(tmp_path):
    theirs, ours = write(tmp_path / "theirs.jsonl", THEIRS), write(tmp_path / "ours.jsonl", OURS)
    assert lmms_eval_scores._compared(theirs, ours, 3) == pytest.approx((2 / 3, 1.0, 2 / 3))
    with pytest.raises(SystemExit, match=r"3 samples, and .* 2; give the same --limit"):
        lmms_eval_scores._compared(theirs, ours, 2)


def test_the_task_reads_the_manifest_and_its_pictures(tmp_path, monkeypatch):
    manifest = write(tmp_path / "test.jsonl", [])
    folder = lmms_eval_scores._written_task(tmp_path, manifest, None, 16) / lmms_eval_scores.TASK
    assert f"test: {manifest}\n" in (folder / f"{lmms_eval_scores.TASK}.yaml").read_text()
    opened = []
    picture = SimpleNamespace(convert=lambda mode: mode)
    monkeypatch.setitem(
        sys.modules, "PIL", SimpleNamespace(Image=SimpleNamespace(open=lambda p: opened.append(p) or picture))
    )
    utils = runpy.run_path(str(folder / "utils.py"))
    sample = {"messages": [{"role": "user", "content": "<image>How many?"}], "images": ["a.png"], "solution": "4"}
    [turn] = utils["messages"](sample)
    assert turn["content"] == [{"type": "image", "url": "RGB"}, {"type": "text", "text": "How many?"}]
    assert opened == [tmp_path / "a.png"]
    for text, right in (("<answer>4</answer>", 1.0), ("<answer> 4\n</answer>", 1.0), ("4", 0.0), ("", 0.0)):
        assert utils["score"](sample, [text]) == {"exact_match": right}
    assert utils["score"](sample, ["<answer>4</answer><answer>4</answer>"]) == {"exact_match": 0.0}
