"""Counts again what the runs of a comparison spent, from the tokens that they logged, by formulas of its own.

    python tools/bench/recount_budgets.py runs/order

A run counts its operations while it trains. This recount has other formulas: it takes the tokens of each step from
metrics.jsonl, the sizes of the text model from the config.json of a handoff, and the operations of a prompt in the
towers from torch's own counter around one batch. An update costs three forward passes; an iteration of RL writes its
completions and reads all prompts; its update reads the prompts with a signal again. The towers run once for both.
Prints a line for each finished run, and exits with 1 if one is more than 2 % off. `--without towers` leaves a part out,
which must be noticed. Stages with frozen parts, adapters or a reference policy are refused: they cost something else.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from bench_speculation import batches
from torch.utils.flop_counter import FlopCounterMode

from lightning_mmrl.app.assembly import Assembly, quiet_libraries
from lightning_mmrl.config.epochs import with_steps
from lightning_mmrl.config.saved import saved_config
from lightning_mmrl.report.arms_read import summarize
from lightning_mmrl.training.console import ConsoleProgress

MOST_OFF = 0.02
Towers = tuple[float, float]
"""Operations of one prompt in the towers: of a forward pass, and of one with its backward pass."""


def main() -> int:
    """Prints counted and recounted operations, and returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of a comparison")
    parser.add_argument("--without", choices=["towers", "sampling"], help="a control: leave this part out")
    options = parser.parse_args()
    quiet_libraries()
    summary, ratios, towers = summarize(options.folder), [], None
    print(f"{'run':<40} {'counted':>10} {'recounted':>10} {'ratio':>7} {'% of budget':>12}")
    for cell in summary.cells:
        counted = cell.spent("flops")
        if cell.value is None or cell.folder is None or not counted:
            continue
        run = Run(options.folder / cell.folder)
        towers = towers or ((0.0, 0.0) if options.without == "towers" else run.towers())
        sampling = options.without != "sampling"
        own = sum(run.operations(stage.stage, towers, sampling) for stage in cell.stages if stage.counts)
        ratios.append(own / counted)
        share = "" if summary.plan.total is None else f"{100 * own / summary.plan.total:.2f}"
        print(f"{cell.title:<40} {counted:>10.3e} {own:>10.3e} {ratios[-1]:>7.4f} {share:>12}", flush=True)
    if not ratios:
        print(f"{options.folder} has no finished run with counted operations", file=sys.stderr)
        return 1
    print(f"{len(ratios)} runs, ratio {min(ratios):.4f} to {max(ratios):.4f}")
    return int(any(abs(ratio - 1) > MOST_OFF for ratio in ratios))


@dataclass
class Run:
    """The files of a run."""

    folder: Path
    settings: Mapping[str, Any] = field(init=False)
    results: Mapping[str, Any] = field(init=False)
    text: Mapping[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.settings = yaml.safe_load((self.folder / "config.yaml").read_text(encoding="utf-8"))
        stages = json.loads((self.folder / "manifest.json").read_text(encoding="utf-8"))["stages"]
        self.results = {name: stage["result"] for name, stage in stages.items()}
        self.text = text_sizes(json.loads((self.handoff / "config.json").read_text(encoding="utf-8")))

    @property
    def handoff(self) -> Path:
        """The last weights."""
        return self.folder / [each["artifacts"]["handoff"]["path"] for each in self._trained()][-1]

    def _trained(self) -> list[Mapping[str, Any]]:
        return [each for each in self.results.values() if "handoff" in each["artifacts"]]

    def towers(self) -> Towers:
        """The operations of a prompt in the towers, by torch's counter; of the stages' first batch."""
        config = saved_config(self.folder, [])
        name = next(iter(config.trained))
        parts = Assembly(config=config, console=ConsoleProgress())
        encoder = parts.encoder(self.handoff)
        policy = parts.policy(self.handoff, encoder, 1.0)
        prompts = next(iter(batches(parts, name, with_steps(config, name), encoder)))
        with FlopCounterMode(display=False) as forward:
            features = policy.media.features(prompts)
        if not features:
            return 0.0, 0.0
        with FlopCounterMode(display=False) as backward:
            torch.stack([each.sum() for each in features.values()]).sum().backward()
        passed, size = forward.get_total_flops(), len(prompts.samples)
        return passed / size, (passed + backward.get_total_flops()) / size

    def operations(self, stage: str, towers: Towers = (0.0, 0.0), sampling: bool = True) -> float:
        """The operations of a stage, which are 0 if it neither trains nor samples."""
        result, settings = self.results[stage], self.settings["stages"][stage]
        if not result["costs"]:
            return 0.0
        if "handoff" not in result["artifacts"]:
            return self._drawn(stage, settings["num_completions"], towers[0])
        penalty = ((settings.get("algorithm") or {}).get("kl") or {}).get("coefficient")
        if settings["freeze"] or settings["adapter"] or penalty:
            raise SystemExit(f"{self.folder}: {stage} has freeze, adapter or kl, whose operations are not recounted")
        size = settings["data"]["batch_size"]
        group = (settings.get("algorithm") or {}).get("group_size")
        tokens = [self._logged(stage, f"tokens/{name}") for name in ("prompt", "completion", "generated")]
        if group is None:
            update = sum(3 * self._passes(size, tokens[0][step], size, tokens[1][step]) for step in tokens[0])
            return update + towers[1] * size * len(tokens[0])
        total, signal = 0.0, self._logged(stage, "rollout/groups_with_signal")
        for step, prompt in tokens[0].items():
            moved = round(signal[step] * size)
            read = prompt * size / (size + moved)
            total += self._passes(size, read, size * group, tokens[2][step] if sampling else 0)
            total += (towers[1] if moved else towers[0]) * size
            total += 3 * self._passes(moved, prompt - read, moved * group, tokens[1][step])
        return total

    def _drawn(self, stage: str, group: int, tower: float) -> float:
        """A stage that draws answers to each prompt of its manifest."""
        tokens = [rank["tokens"] for rank in self.results[stage]["costs"]["ranks"]]
        prompt, written = (sum(each[name] for each in tokens) for name in ("prompt", "generated"))
        table = self.folder / self.results[stage]["artifacts"]["rollouts"]["path"]
        size = sum(len(file.read_text(encoding="utf-8").splitlines()) for file in table.glob("*.jsonl"))
        return self._passes(size, prompt, size * group, written) + tower * size

    def _passes(self, prompts: int, prompt_tokens: float, answers: int, answer_tokens: float) -> float:
        """Operations of one pass over prompts and answers of their mean lengths."""
        text = self.text
        width, layers, heads = text["hidden_size"], text["num_hidden_layers"], text["num_attention_heads"]
        size = text.get("head_dim") or width // heads
        each = 2 * width * size * (heads + text["num_key_value_heads"]) + 3 * width * text["intermediate_size"]
        prompt, answer = prompt_tokens / max(1, prompts), answer_tokens / max(1, answers)
        pairs = prompts * prompt**2 / 2 + answers * answer * (prompt + answer / 2)
        linear = layers * each * (prompt_tokens + answer_tokens) + text["vocab_size"] * width * answer_tokens
        return 2 * linear + 4 * layers * heads * size * pairs

    def _logged(self, stage: str, name: str) -> dict[int, float]:
        """A metric of each step."""
        (path,) = self.folder.glob(f"stages/*-{stage}/metrics.jsonl")
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        key = f"{stage}/{name}"
        return {line["step"]: line["metrics"][key] for line in lines if key in line["metrics"]}


def text_sizes(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a config.json with the sizes of the text model."""
    for key in ("thinker_config", "text_config"):
        config = config.get(key) or config
    return config


if __name__ == "__main__":
    sys.exit(main())
