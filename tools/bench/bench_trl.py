"""TRL 1.16's GRPOTrainer as a variant: its own code and defaults, told what to sample or how long."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bench_counters import counters_of
from bench_models import World, pictures_of, rewards
from bench_worker import Gate
from datasets import Dataset
from PIL import Image
from torch import Tensor
from transformers import TrainerCallback
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

NUM_PROMPTS = 64
ENDLESS = 100_000


def build_trainer(world: World, spec: dict[str, Any], reward: Any) -> Any:
    """A trainer with TRL's defaults, in float32, that keeps its reports and checkpoints to itself."""
    arguments = GRPOConfig(
        output_dir=str(Path(spec["work"]) / "trl"),
        bf16=False,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        use_cpu=world.device == "cpu",
        max_steps=ENDLESS,
        per_device_train_batch_size=spec["group_size"],
        num_generations=spec["group_size"],
        max_completion_length=spec["tokens"],
        generation_kwargs={"min_new_tokens": spec["tokens"]},
        gradient_checkpointing=spec["checkpointing"],
    )
    trainer: Any = GRPOTrainer(
        model=str(world.folder), reward_funcs=reward, args=arguments, train_dataset=_dataset(world, spec["length"])
    )
    if spec["freeze_tower"]:
        trainer.model.model.visual.requires_grad_(False)
    return trainer


def _dataset(world: World, length: int) -> Dataset:
    """Prompts whose decoded pictures are in memory, as for the other variants."""
    messages = world.messages(length)
    text = messages[0].content.replace("<image>", "")
    pictures: dict[int, list[Image.Image]] = {}

    def with_pictures(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        for number in rows["number"]:
            if number not in pictures:
                pictures[number] = [Image.fromarray(pixels) for pixels in pictures_of(messages, number)]
        turns = [[{"role": "user", "content": text}] for _ in rows["number"]]
        return {**rows, "prompt": turns, "images": [pictures[number] for number in rows["number"]]}

    return Dataset.from_dict({"number": list(range(NUM_PROMPTS))}).with_transform(with_pictures)


class TrainingPart:
    """Score and backward of one group, through `GRPOTrainer.compute_loss`, on completions that are given."""

    def __init__(self, world: World, spec: dict[str, Any]) -> None:
        self._world, self._spec = world, spec
        self._logprobs: Tensor | None = None
        fixed = rewards(spec["group_size"])[0].tolist()
        self._trainer = build_trainer(world, spec, lambda **columns: fixed[: len(columns["prompts"])])
        self._trainer.current_gradient_accumulation_steps = 1
        self.model = self._trainer.model.train()
        if spec["checkpointing"]:
            self.model.gradient_checkpointing_enable()  # as transformers' Trainer does when training starts
        self._score = self._trainer._get_per_token_logps_and_entropies
        self._trainer._get_per_token_logps_and_entropies = self._seen
        self._inputs = self._inputs_of(ragged=False)
        self.num_patches = len(self._inputs["pixel_values"]) // spec["group_size"]

    def _seen(self, *args: Any, **kwargs: Any) -> Any:
        result = self._score(*args, **kwargs)
        self._logprobs = result[0].detach()
        return result

    def _inputs_of(self, *, ragged: bool) -> dict[str, Any]:
        """TRL's own batch of the prompt and the completions, once they are sampled."""
        ids, mask = self._world.completions(self._spec["tokens"], self._spec["group_size"], ragged=ragged)
        sampled = [row[kept].tolist() for row, kept in zip(ids, mask, strict=True)]
        self._trainer._generate_single_turn = lambda *args, **kwargs: (sampled, None)
        rows = [self._trainer.train_dataset[0]] * self._spec["group_size"]
        return self._trainer._generate_and_score_completions(rows)

    def step(self, gate: Gate) -> None:
        """One timed step on the completions of full length."""
        with gate.phase("score"):
            loss = self._trainer.compute_loss(self.model, self._inputs)
        with gate.phase("backward"):
            self._trainer.accelerator.backward(loss)
        self.model.zero_grad()

    def evidence_of(self, *, ragged: bool) -> dict[str, Tensor]:
        """Input, log-probabilities, loss and gradients, for the parity gate."""
        inputs = self._inputs_of(ragged=ragged)
        loss = self._trainer.compute_loss(self.model, inputs)
        self._trainer.accelerator.backward(loss)
        assert self._logprobs is not None
        found = {
            "prompt_ids": inputs["prompt_ids"][0],
            "logprobs": self._logprobs * inputs["completion_mask"],
            "loss": loss.detach(),
            **{f"gradient.{name}": p.grad for name, p in self.model.named_parameters() if p.grad is not None},
        }
        evidence = {name: value.clone() for name, value in found.items()}
        self.model.zero_grad()
        return evidence


class GateCallback(TrainerCallback):
    """Lets one optimizer step of transformers' Trainer pass for each command, its data loading included."""

    def __init__(self, gate: Gate, finish: Callable[[], None]) -> None:
        self._gate, self._finish = gate, finish

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._gate.wait() is None:
            raise SystemExit

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._finish()
        if self._gate.wait() is None:
            raise SystemExit


def run_iterations(world: World, spec: dict[str, Any], reward: Callable[[str], float]) -> None:
    """Whole iterations through `GRPOTrainer.train`, with its generation by transformers."""

    def rewards_of(completions: list[list[dict[str, str]]], **columns: Any) -> list[float]:
        return [reward(completion[0]["content"]) for completion in completions]

    trainer = build_trainer(world, spec, rewards_of)
    counters = counters_of(trainer.model, prompt_length=spec["length"], group_size=spec["group_size"])
    gate = Gate(torch.device(world.device), counters)
    lengths: list[int] = []
    generate = trainer._generate_single_turn

    def noted(*args: Any, **kwargs: Any) -> Any:
        completions, logprobs = generate(*args, **kwargs)
        lengths[:] = [len(ids) for ids in completions]
        return completions, logprobs

    trainer._generate_single_turn = gate.timed("generate", noted)
    trainer._calculate_rewards = gate.timed("reward", trainer._calculate_rewards)
    trainer._prepare_inputs = gate.timed("prepare", trainer._prepare_inputs)

    def finish() -> None:
        seconds = gate.phases
        prepared = seconds.pop("prepare")
        process = prepared - seconds["generate"] - seconds["reward"]
        gate.set_phases({"process": process, **seconds, "update": gate.elapsed - prepared})
        flat = trainer._metrics["train"]["frac_reward_zero_std"][-1]
        gate.note_sampled(sum(lengths), spec["group_size"] * spec["tokens"], 1.0 - flat)
        gate.note(entropy=trainer._metrics["train"]["entropy"][-1])

    trainer.add_callback(GateCallback(gate, finish))
    trainer.train()
