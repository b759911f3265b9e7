r"""Scores a handoff with lmms-eval on a manifest, and compares its answers with those of `mmrl evaluate`.

    python tools/truth/lmms_eval_scores.py --env lmms-env --work lmms        a tiny handoff of its own
    python tools/truth/lmms_eval_scores.py --env lmms-env --work lmms --handoff runs/NAME/stages/00-cold_start/handoff \
        --manifest data/counting/test.jsonl --predictions runs/NAME/stages/00-cold_start/evaluation/test.jsonl

Makes an environment with lmms-eval (with uv, from the package registry; none of it goes into this project's), trains a
tiny Qwen2.5-VL on the task of counting dots unless a handoff is given, writes a task of lmms-eval for the manifest, and
runs it without network. Prints the score, and exits with 1 if fewer than nine in ten answers are the same text:
lmms-eval computes in bfloat16, so a few answers of a model in float32 may differ.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

PACKAGES = ("lmms-eval==0.7.3", "torch==2.13.0", "torchvision==0.28.0", "decord==0.6.0", "Levenshtein", "filelock<4")
"""lmms-eval's Qwen models import decord and its MathVista imports Levenshtein, and neither is a dependency of it; from
filelock 4 on it fails to start."""
TASK = "mmrl_manifest"
YAML = """task: {task}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {manifest}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.visuals
doc_to_text: !function utils.text
doc_to_messages: !function utils.messages
doc_to_target: solution
process_results: !function utils.score
generation_kwargs:
  max_new_tokens: {max_new_tokens}
  do_sample: false
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1
"""
UTILS = '''"""Pictures, question and score of a sample of a manifest, for lmms-eval."""

import re
from pathlib import Path

from PIL import Image

MEDIA = Path({media!r})


def visuals(doc):
    return [Image.open(MEDIA / path).convert("RGB") for path in doc["images"] or ()]


def text(doc, lmms_eval_specific_kwargs=None):
    return doc["messages"][-1]["content"].replace("<image>", "")


def messages(doc, lmms_eval_specific_kwargs=None):
    content = [{{"type": "image", "url": picture}} for picture in visuals(doc)]
    return [{{"role": "user", "content": [*content, {{"type": "text", "text": text(doc)}}]}}]


def score(doc, results):
    found = re.findall(r"<answer>(.*?)</answer>", results[0], re.DOTALL)
    return {{"exact_match": float(len(found) == 1 and found[0].strip() == doc["solution"])}}
'''


def main() -> int:
    """Runs all steps and returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", type=Path, required=True, help="folder of the environment; made if it is missing")
    parser.add_argument("--work", type=Path, required=True, help="folder of the run, the task and the outputs")
    parser.add_argument("--handoff", type=Path, help="default: a tiny one is trained in --work")
    parser.add_argument("--manifest", type=Path, help="the manifest that the predictions are of")
    parser.add_argument("--media-root", type=Path, help="default: the folder of the manifest")
    parser.add_argument("--predictions", type=Path, help="the predictions of `mmrl evaluate` on the manifest")
    parser.add_argument("--model", default="qwen2_5_vl", help="name of the family in lmms-eval")
    parser.add_argument("--model-args", default="device=cpu,device_map=cpu,min_pixels=3136,max_pixels=3136")
    parser.add_argument("--max-new-tokens", type=int, default=16)
    parser.add_argument("--limit", type=int, default=40, help="samples from the beginning")
    parser.add_argument("--uv", default="uv", help="the uv command")
    options = parser.parse_args()
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    python = _environment(options.env.resolve(), options.uv)
    if options.handoff is None:
        stage = _tiny_stage(work, options.limit)
        options.handoff, options.predictions = stage / "handoff", stage / "evaluation" / "test.jsonl"
        options.manifest = work / "data" / "test.jsonl"
    if options.manifest is None or options.predictions is None:
        parser.error("--handoff needs --manifest and --predictions")
    tasks = _written_task(work, options.manifest.resolve(), options.media_root, options.max_new_tokens)
    samples = _scored(python, options, tasks, work / "out")
    same, right, ours = _compared(samples, options.predictions, options.limit)
    print(f"lmms-eval: exact_match {100 * right:.1f} %; ours: {100 * ours:.1f} %; same text: {100 * same:.1f} %")
    return 0 if same >= 0.9 else 1


def _environment(folder: Path, uv: str) -> Path:
    python = folder / "bin" / "python"
    if not python.is_file():
        _run([uv, "venv", "--quiet", "--python", sys.executable, str(folder)])
        _run([uv, "pip", "install", "--quiet", "--python", str(python), *PACKAGES])
    return python


def _tiny_stage(work: Path, limit: int) -> Path:
    stage = work / "runs" / "tiny" / "stages" / "00-cold_start"
    if not (stage / "evaluation" / "evaluation.json").is_file():
        overrides = ("experiment=task_counting", "model=tiny_qwen2_5_vl", "order=[cold_start]", "run_name=tiny")
        more = (
            "stages.cold_start.num_steps=100",
            "trainer.num_threads=1",
            "tracking=none",
            f"evaluation.limit={limit}",
        )
        places = (f"output_dir={work / 'runs'}", f"data.root={work / 'data'}")
        _run([sys.executable, "-m", "lightning_mmrl.cli.main", "train", *overrides, *more, *places])
    return stage


def _written_task(work: Path, manifest: Path, media: Path | None, max_new_tokens: int) -> Path:
    folder = work / "tasks" / TASK
    folder.mkdir(parents=True, exist_ok=True)
    text = YAML.format(task=TASK, manifest=manifest, max_new_tokens=max_new_tokens)
    (folder / f"{TASK}.yaml").write_text(text)
    (folder / "utils.py").write_text(UTILS.format(media=str((media or manifest.parent).resolve())))
    return folder.parent


def _scored(python: Path, options: argparse.Namespace, tasks: Path, out: Path) -> Path:
    """Runs lmms-eval and returns its newest file of samples."""
    command = [str(python.with_name("lmms-eval")), "--model", options.model]
    command += ["--model_args", f"pretrained={options.handoff.resolve()},{options.model_args}", "--tasks", TASK]
    command += ["--include_path", str(tasks), "--batch_size", "1", "--limit", str(options.limit)]
    _run([*command, "--output_path", str(out), "--log_samples"], HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
    return max(out.rglob(f"*_samples_{TASK}.jsonl"), key=lambda path: path.stat().st_mtime)


def _compared(samples: Path, predictions: Path, limit: int) -> tuple[float, float, float]:
    """The shares of samples with the same text, of right ones by lmms-eval, and of right ones by the predictions."""
    theirs = [json.loads(line) for line in samples.read_text().splitlines()]
    ours = [json.loads(line) for line in predictions.read_text().splitlines()][:limit]
    theirs.sort(key=lambda each: each["doc_id"])
    if len(theirs) != len(ours):
        raise SystemExit(f"{samples} has {len(theirs)} samples, and {predictions} {len(ours)}; give the same --limit")
    same = [each["resps"] == own["text"] for each, own in zip(theirs, ours, strict=True)]
    right = [each["exact_match"] for each in theirs]
    return sum(same) / len(same), sum(right) / len(right), sum(o["predicted"] == o["truth"] for o in ours) / len(ours)


def _run(command: Sequence[str], **environment: str) -> None:
    print("$", " ".join(command), flush=True)
    subprocess.run(command, check=True, env={**os.environ, **environment})


if __name__ == "__main__":
    sys.exit(main())
