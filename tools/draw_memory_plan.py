"""Writes docs/figures/memory_plan.md: what `mmrl plan` estimates for the released models.

python tools/draw_memory_plan.py
"""

import math
import re
from pathlib import Path

from lightning_mmrl.config.compose import compose
from lightning_mmrl.config.folders import configs_dir
from lightning_mmrl.planning.engines import stage_estimate
from lightning_mmrl.planning.memory import Estimate, Lengths
from lightning_mmrl.planning.shapes import read_shape

PAGE = Path(__file__).parents[1] / "docs" / "figures" / "memory_plan.md"
RANKS = (1, 2, 4, 8)
STAGES = {"cold_start": "SFT", "reason": "GRPO"}
ADAPTERS = tuple(f"stages.{name}.adapter={{}}" for name in STAGES)
WAYS = {
    "all, FSDP2": ("trainer.strategy=fsdp2",),
    "text model, FSDP2": ("trainer.strategy=fsdp2", *(f"stages.{name}.freeze=[vision,audio]" for name in STAGES)),
    "LoRA, replicated": ADAPTERS,
    "LoRA, FSDP2": ("trainer.strategy=fsdp2", *ADAPTERS),
}
HEAD = """# Memory by model, stage and GPUs

Estimates of `mmrl plan` in GiB per rank with the reserve, never measured on CUDA; limits are in
[benchmarks](../benchmarks.md#memory-plan). `python tools/draw_memory_plan.py` writes this page. **Bold** fits 24 GB,
others 80 GB, (in brackets) neither. Weights that train have float32 masters (`trainer.precision=auto`), others are
bfloat16. The default stages (32 prompts or targets per step in all, 8 completions of up to 512 tokens, 16,384 tokens
per microbatch) with `trainer.activation_checkpointing=true`, prompts of 2,048 tokens, `rollout=hf`, validations and
evaluations of 64 prompts.

## Qwen2.5-Omni by what trains

"""
MIDDLE = """
`.venv/bin/mmrl plan model=qwen2_5_omni_3b trainer.activation_checkpointing=true` prints all four columns.
`trainer.strategy=fsdp2` gives the rows of FSDP2, `stages.NAME.freeze=[vision,audio]` the text model alone,
`stages.NAME.adapter={}` LoRA.

## All released models

The largest stage of SFT and GRPO. LoRA is replicated; all weights are sharded by FSDP2. The last column samples with
vLLM on the same GPUs, with all weights on 8 of them. Licenses are those of the models' pages.

"""


def cell(found: Estimate) -> str:
    """GiB, and the GPUs that they fit."""
    text = f"{found.needed / 2**30:.1f}"
    return f"**{text}**" if found.fits(24) else text if found.fits(80) else f"({text})"


def estimates(model: str, *overrides: str) -> dict[tuple[str, int], Estimate]:
    """By stage and number of ranks."""
    config = compose([f"model={model}", "trainer.activation_checkpointing=true", *overrides])
    shape = read_shape(config.model.checkpoint, config.model.known_sizes)
    assert shape is not None
    return {
        (name, ranks): stage_estimate(config, stage, shape, ranks, Lengths())
        for name, stage in config.trained.items()
        for ranks in RANKS
    }


def largest(found: dict[tuple[str, int], Estimate], ranks: int) -> str:
    """The stage that needs the most on so many ranks."""
    return cell(max((found[name, ranks] for name in STAGES), key=lambda each: each.needed))


def note_memory(path: Path) -> None:
    """Writes the memory of training into the head of a model's file."""
    found = []
    for ranks, keys in ((1, ("trainer=gpu_24gb", *ADAPTERS)), (8, ("trainer=h100_8",))):
        config = compose([f"model={path.stem}", *keys])
        shape = read_shape(config.model.checkpoint, config.model.known_sizes)
        assert shape is not None
        needed = [stage_estimate(config, each, shape, ranks, Lengths()).needed for each in config.trained.values()]
        found.append(math.ceil(max(needed) / 10**9))
    words = f"{found[0]} GB for LoRA on one GPU, {found[1]} GB on each"
    text = re.sub(r"\d+ GB for LoRA on one GPU, \d+ GB on each", words, path.read_text(encoding="utf-8"))
    path.write_text(text, encoding="utf-8")


def main() -> None:
    """Writes the page and the heads of the models' files."""
    lines = ["| model | stage | what trains | 1 GPU | 2 GPUs | 4 GPUs | 8 GPUs |", "|---|---|---|---|---|---|---|"]
    for size in ("3b", "7b"):
        found = {how: estimates(f"qwen2_5_omni_{size}", *keys) for how, keys in WAYS.items()}
        for name, words in STAGES.items():
            for how in WAYS:
                cells = " | ".join(cell(found[how][name, ranks]) for ranks in RANKS)
                lines.append(f"| {size.upper()} | {words} | {how} | {cells} |")
    columns = "| `model=` | license | LoRA, 1 GPU | all, 1 GPU | 2 GPUs | 4 GPUs | 8 GPUs | 8 GPUs, vLLM |"
    rows = [columns, "|---" * 8 + "|"]
    for path in sorted(configs_dir().glob("model/*.yaml")):
        named = re.search(r"^# License: (.+?)\. Memory of training", path.read_text(encoding="utf-8"), re.MULTILINE)
        if named is None:
            continue
        note_memory(path)
        adapted, whole = estimates(path.stem, *ADAPTERS), estimates(path.stem, "trainer.strategy=fsdp2")
        engine = estimates(path.stem, "trainer.strategy=fsdp2", "rollout=vllm")
        cells = " | ".join([largest(adapted, 1), *(largest(whole, ranks) for ranks in RANKS), largest(engine, 8)])
        rows.append(f"| {path.stem} | {named[1]} | {cells} |")
    PAGE.write_text(HEAD + "\n".join(lines) + "\n" + MIDDLE + "\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
