"""Trained weights for the benchmark beside TRL: the architecture of the random ones, as sure of its tokens as a policy.

The completions of random weights have an entropy of several nats a token, those of a policy in training of a few
tenths. Drafts pay only for the latter. The answers here are a fixed text with gaps, each filled by one of seven words.
"""

import random
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from bench_models import FRAME_PIXELS, SEED, SENTENCES, VOCABULARY, World, add_words, build
from benching import say

from lightning_mmrl.types.batches import PromptBatch, ScoringBatch

NUM_STEPS, GROUP_SIZE, NUM_TOKENS, LEARNING_RATE = 320, 16, 80, 1e-3
LENGTHS = (160, 600, 160, 600, 160, 600, 160, 3000)
"""Tokens of the prompts, in turns; a completion's positions come after them."""

WORDS = {
    "feeling": ("calm", "happy", "sad", "angry", "afraid", "surprised", "disgusted"),
    "eyes": ("wide", "narrow", "closed", "moving", "bright", "wet", "turned"),
    "mouth": ("open", "shut", "curved", "tense", "pressed", "relaxed", "pulled"),
    "hands": ("still", "raised", "folded", "hidden", "shaking", "loose", "clenched"),
    "strength": ("very", "rather", "slightly", "clearly", "mostly", "hardly", "simply"),
}
TEXT = (
    "<think>In the first picture the person looks {feeling} because the eyes are {eyes} and the mouth is {mouth}. In "
    "the next picture the hands are {hands} and the eyes are {other_eyes}, while the mouth is {other_mouth}. This goes "
    "together with how the person looked at first, so the person is {strength} {feeling} in these pictures, and this "
    "does not change in the last picture, where the hands are {other_hands}.</think><answer>{feeling}</answer> That is "
    "how the person in these pictures feels, and the other pictures of the person show the same."
)


def trained_folder(work: Path) -> Path:
    """The folder of trained weights; they are trained once, in some minutes."""
    folder = work / "models" / f"trained-{FRAME_PIXELS}-{VOCABULARY}"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder.parent) as name:
            say("training the weights of the benchmark")
            partial = build(Path(name) / folder.name, (*SENTENCES, *_vocabulary()))
            model = add_words(partial)
            _train(World(partial), model)
            model.save_pretrained(partial)
            partial.rename(folder)
    return folder


def _vocabulary() -> Iterator[str]:
    """Texts with every word, from which the tokenizer learns."""
    generator = random.Random(SEED)
    for _ in range(40):
        yield _answer(generator)


def _answer(generator: random.Random) -> str:
    names = {name: name.removeprefix("other_") for name in (*WORDS, "other_eyes", "other_mouth", "other_hands")}
    return TEXT.format(**{name: generator.choice(WORDS[kind]) for name, kind in names.items()})


def _train(world: World, model: Any) -> None:
    """SFT of the language model on groups of answers; the tower stays as it is."""
    policy = world.policy(model=model)
    policy.freeze(["vision"])
    weights = [each for each in policy.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=LEARNING_RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, NUM_STEPS, pct_start=0.1)
    generator, prompts = random.Random(SEED + 1), {length: world.prompts(length) for length in set(LENGTHS)}
    for step in range(NUM_STEPS):
        batch = _batch(world, prompts[LENGTHS[step % len(LENGTHS)]], generator)
        loss = -policy(batch).logprobs[batch.completion_mask].mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 20 == 19:
            say(f"  step {step + 1} of {NUM_STEPS}: {loss.item():.3f} nats a token")


def _batch(world: World, prompts: PromptBatch, generator: random.Random) -> ScoringBatch:
    """One prompt and the starts of its answers, which are longer than any completion."""
    texts = [_answer(generator) for _ in range(GROUP_SIZE)]
    rows = [world.encoder.processor.tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    assert min(map(len, rows)) >= NUM_TOKENS, min(map(len, rows))
    ids = torch.tensor([row[:NUM_TOKENS] for row in rows])
    mask = torch.ones_like(ids, dtype=torch.bool)
    return ScoringBatch(prompts=prompts, completion_ids=ids, completion_mask=mask, group_size=GROUP_SIZE)
