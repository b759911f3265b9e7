"""Compares rollouts with drafts to rollouts without, on the prompts of an RL stage and the weights of a checkpoint.

    python tools/bench/bench_speculation.py runs/quickstart/stages/01-cold_start/handoff --stage reason \
        --batches 40 --out runs/bench/speculation.jsonl experiment=quickstart trainer.num_threads=1

What follows the options are overrides of `mmrl train`. For each batch of the stage both engines sample the completions
of one and the same iteration, in turns. The file gets a line for each batch: whether all tokens are the same, passes,
drafted and accepted tokens by source, entropy and seconds. A second run continues after the last line, and its drafts
come from the completions in the file. Where a token differs, the line says how far the noise is from the nearest border
of the cumulative distribution. `--float64` computes in double precision throughout, and `--greedy` takes the likeliest
tokens.
"""

import argparse
import json
import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_mmrl.app.assembly import Assembly, quiet_libraries
from lightning_mmrl.app.stages import data_module
from lightning_mmrl.config.compose import compose
from lightning_mmrl.config.epochs import with_steps
from lightning_mmrl.data.datamodules import Feed
from lightning_mmrl.models.decoding import start_decoding
from lightning_mmrl.models.policy import Policy
from lightning_mmrl.rollout.drafts import DraftStore
from lightning_mmrl.rollout.hf import HFEngine
from lightning_mmrl.rollout.sampling import group_seeds, uniform_noise
from lightning_mmrl.settings.run import RunSettings
from lightning_mmrl.settings.speculation import SpeculationSettings
from lightning_mmrl.settings.stage import StageSettings
from lightning_mmrl.training.console import ConsoleProgress
from lightning_mmrl.types.batches import PromptBatch, Rollout, ScoringBatch


def main() -> None:
    """Measures what the file lacks, and prints a summary."""
    options = parse()
    quiet_libraries()
    config = compose([*options.overrides, "tracking=none"])
    torch.set_num_threads(config.trainer.num_threads or torch.get_num_threads())
    torch.manual_seed(0)
    known = records(options.out)
    with options.out.open("a", encoding="utf-8") as file:
        for record in measured(config, options, known):
            file.write(json.dumps(record) + "\n")
            file.flush()
            known.append(record)
            print(line_of(record), flush=True)
    print(json.dumps(summary(known), indent=2))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--stage", required=True, help="RL stage whose prompts and sampling are taken")
    parser.add_argument("--batches", type=int, default=40, help="batches of prompts in the file at the end")
    parser.add_argument("--out", type=Path, required=True, help="file of the results, one line for each batch")
    parser.add_argument("--group-size", type=int, help="completions per prompt; default: the stage's")
    parser.add_argument("--max-draft", type=int, default=8)
    parser.add_argument("--pass-tokens", type=float, help="default: from the model's sizes")
    parser.add_argument("--reckon", action="store_true", help="first measure the fixed part of a pass, in tokens")
    parser.add_argument("--float64", action="store_true")
    parser.add_argument("--greedy", action="store_true")
    return parser.parse_intermixed_args()


def records(path: Path) -> list[dict[str, Any]]:
    """The lines of the file; an unfinished last one is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = path.read_text(encoding="utf-8").rpartition("\n")[0] if path.is_file() else ""
    path.write_text(whole + "\n" if whole else "", encoding="utf-8")
    return [json.loads(line) for line in whole.splitlines()]


def measured(config: RunSettings, options: argparse.Namespace, known: Sequence[dict[str, Any]]) -> Iterator[dict]:
    """The records of the batches that are not known yet."""
    stage = with_steps(config, options.stage)
    assert stage.sampling is not None
    parts = Assembly(config=config, console=ConsoleProgress())
    encoder = parts.encoder(options.checkpoint)
    policy = parts.policy(options.checkpoint, encoder, stage.sampling.temperature)
    if options.float64:
        in_double(policy)
    settings = {"encoder": encoder, "sampling": stage.sampling, "template": parts.template}
    drafting = SpeculationSettings(max_draft=options.max_draft, pass_tokens=options.pass_tokens)
    bench = Bench(
        plain=HFEngine.of(policy, **settings),
        drafting=HFEngine.of(policy, **settings, speculation=drafting),
        policy=policy,
        group_size=options.group_size or stage.algorithm.group_size,
        greedy=options.greedy,
        seed=config.seed,
    )
    first = len(known) + 1
    for number, prompts in enumerate(batches(parts, options.stage, stage, encoder), 1):
        if number > options.batches:
            break
        if number <= len(known):
            bench.replay(known[number - 1])
            continue
        if options.reckon and number == first:
            print(f"the fixed part of a pass costs as much as {bench.pass_tokens(prompts):.0f} tokens", flush=True)
        yield bench.compare(prompts, number)


def batches(parts: Assembly, name: str, stage: StageSettings, encoder: Any) -> Iterator[PromptBatch]:
    """The batches of a stage, in its order."""
    feed = Feed(
        settings=stage,
        supervised=False,
        sources=stage.data.located(parts.config.data),
        seed=parts.config.seed,
        matcher=parts.matcher,
    )
    made = data_module(f"stages.{name}", stage, parts.config)(
        pipeline=parts.pipeline(encoder),
        template=parts.template,
        feed=feed,
        monitor=parts.monitor,
        exclusions=parts.exclusions,
    )
    made.setup("fit")
    yield from made.train_dataloader()


def in_double(policy: Policy) -> None:
    """Weights, states and norms in float64; transformers computes norms in float32 whatever the weights are."""
    policy.double()
    for module in policy.model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = lambda states, norm=module: (  # type: ignore[method-assign]
                norm.weight * states * torch.rsqrt(states.square().mean(-1, keepdim=True) + norm.variance_epsilon)
            )


@dataclass
class Bench:
    """Two engines over one policy."""

    plain: HFEngine
    drafting: HFEngine
    policy: Policy
    group_size: int
    greedy: bool
    seed: int

    def replay(self, record: dict[str, Any]) -> None:
        """Lets the drafts come from a batch that an earlier process measured."""
        store = self.drafting.drafter
        assert isinstance(store, DraftStore)
        store.begin(record["names"])
        for row, tokens in enumerate(record["rows"]):
            store.note(row, tokens)

    def compare(self, prompts: PromptBatch, number: int) -> dict[str, Any]:
        """Samples the batch by both engines; the tower outputs are computed before either."""
        with torch.no_grad():
            prompts = self.policy.media.with_features(prompts)
        seeds = group_seeds(self.seed, number, [sample.id for sample in prompts.samples], self.group_size)
        engines = {"plain": self.plain, "drafts": self.drafting}
        found, seconds = {}, {}
        for name in sorted(engines, reverse=number % 2 == 0):
            before = time.process_time(), time.perf_counter()
            found[name] = engines[name].generate(prompts, group_size=self.group_size, seeds=seeds, greedy=self.greedy)
            seconds[name] = [time.process_time() - before[0], time.perf_counter() - before[1]]
        plain, drafts = found["plain"], found["drafts"]
        rows, others = sampled(plain), sampled(drafts)
        return {
            "batch": number,
            "seconds": seconds,
            "entropy": self.entropy(prompts, plain),
            "tokens": sum(map(len, rows)),
            "longest": max(map(len, rows)),
            "passes": drafts.decoding.get("passes", max(map(len, rows))),
            "decoding": dict(drafts.decoding),
            "logprob_gap": largest_gap(plain, drafts),
            "differences": [
                self.difference(prompts, row, rows[row], others[row], seeds)
                for row in range(len(rows))
                if rows[row] != others[row]
            ],
            "names": [sample.id for sample in prompts.samples for _ in range(self.group_size)],
            "rows": rows,
        }

    @torch.inference_mode()
    def pass_tokens(self, prompts: PromptBatch) -> float:
        """The fixed part of a pass in tokens, from passes with one token and with three tokens of each row."""
        self.policy.eval()
        seconds = {1: math.inf, 3: math.inf}
        for _ in range(10):  # the fastest of each: what else the machine does only adds to them
            running = start_decoding(self.policy, prompts, self.group_size, drafts=True)
            num_rows = len(running.states)
            for width in seconds:
                before = time.process_time()
                states = running.extend(torch.randint(20, 200, (num_rows * width,)), [width] * num_rows)
                self.policy.next_logprobs(states)
                seconds[width] = min(seconds[width], time.process_time() - before)
                running.retain([width] * num_rows, finite=True)
        token = (seconds[3] - seconds[1]) / (2 * num_rows)
        return seconds[1] / token - num_rows

    def entropy(self, prompts: PromptBatch, rollout: Rollout) -> float:
        """Mean entropy of the policy at the sampled tokens, in nats."""
        batch = ScoringBatch(
            prompts=prompts,
            completion_ids=rollout.completion_ids,
            completion_mask=rollout.completion_mask,
            group_size=self.group_size,
        )
        with torch.no_grad():
            return float(self.policy(batch).entropy[rollout.completion_mask].mean())

    @torch.no_grad()
    def difference(
        self, prompts: PromptBatch, row: int, one: list[int], other: list[int], seeds: Sequence[Sequence[int]]
    ) -> dict[str, Any]:
        """Where a row differs first, and how near the decision was there."""
        at = next(place for place, pair in enumerate(zip([*one, -1], [*other, -1], strict=False)) if len(set(pair)) > 1)
        prompt = row // self.group_size
        self.policy.eval()
        running = start_decoding(self.policy, prompts.select([prompt]), 1)
        for token in one[:at]:
            running.advance(torch.tensor([token]))
        logprobs = self.policy.next_logprobs(running.states)[0]
        if self.greedy:
            best = logprobs.topk(2).values
            distance = float(best[0] - best[1])
        else:
            noise = uniform_noise([seeds[prompt][row % self.group_size]], at + 1)[0, at]
            cumulative = logprobs.double().exp().cumsum(-1)
            distance = float((cumulative - noise * cumulative[-1]).abs().min())
        return {"row": row, "position": at, "distance": distance}


def sampled(rollout: Rollout) -> list[list[int]]:
    """The tokens of each row."""
    return [ids[mask].tolist() for ids, mask in zip(rollout.completion_ids, rollout.completion_mask, strict=True)]


def largest_gap(one: Rollout, other: Rollout) -> float:
    """Largest difference of log-probabilities of rows with the same tokens."""
    width = min(one.completion_ids.shape[1], other.completion_ids.shape[1])

    def cut(rollout: Rollout) -> tuple[Tensor, Tensor]:
        return rollout.completion_ids[:, :width], rollout.sampler_logprobs[:, :width]

    (ids, values), (other_ids, other_values) = cut(one), cut(other)
    same = (ids == other_ids).all(-1)
    return float((values - other_values)[same].abs().max()) if bool(same.any()) else math.nan


def line_of(record: dict[str, Any]) -> str:
    """One batch in words."""
    cpu = {name: seconds[0] for name, seconds in record["seconds"].items()}
    return (
        f"batch {record['batch']}: {record['passes']} passes for {record['longest']}, "
        f"{cpu['drafts']:.2f} s for {cpu['plain']:.2f} s, {len(record['differences'])} rows differ"
    )


def summary(known: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """All batches together; batches in which nothing was drafted count as well."""
    counts: Counter[str] = Counter()
    for record in known:
        counts.update(record["decoding"])
    passes, longest = (sum(record[key] for record in known) for key in ("passes", "longest"))
    cpu, wall = (
        {name: sum(record["seconds"][name][place] for record in known) for name in ("plain", "drafts")}
        for place in (0, 1)
    )
    drafted = {key.partition("/")[2]: count for key, count in counts.items() if key.startswith("drafted/")}
    return {
        "batches": len(known),
        "completions": sum(len(record["rows"]) for record in known),
        "rows_that_differ": sum(len(record["differences"]) for record in known),
        "largest_distance": max((each["distance"] for record in known for each in record["differences"]), default=None),
        "logprob_gap": max(record["logprob_gap"] for record in known),
        "entropy": sum(record["entropy"] * record["tokens"] for record in known)
        / sum(record["tokens"] for record in known),
        "passes_per_token": passes / longest,
        "fewer_passes": longest / passes,
        "cpu_seconds": cpu,
        "wall_seconds": wall,
        "cpu_ratio": cpu["drafts"] / cpu["plain"],
        "drafted": drafted,
        "accepted": {name: round(counts[f"accepted/{name}"] / count, 3) for name, count in drafted.items()},
    }


if __name__ == "__main__":
    main()
