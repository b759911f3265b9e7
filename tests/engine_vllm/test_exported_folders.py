"""Plain vLLM serves what a stage hands over: it gives the probabilities of the trained policy, pictures included."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import families
import numpy as np
import plain_vllm
import pytest
import torch
from PIL import Image

from lightning_mmrl.data.collate import EncodedSample, collate_prompts
from lightning_mmrl.models.export import export_checkpoint
from lightning_mmrl.types.batches import ScoringBatch
from lightning_mmrl.types.media import DecodedImage
from lightning_mmrl.types.records import Message, Sample

BOUND = 1e-4
PIXELS = np.random.default_rng(0).integers(0, 256, (56, 56, 3), dtype=np.uint8)


def exported(name, folder):
    """A policy whose weights are large enough for pictures to matter, with its folder and a prompt for it."""
    encoder, policy = families.load(name, families.build(name, folder / "base"), dtype=torch.float32)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(2.0)
    export_checkpoint(policy.model, encoder, folder / "export")
    reads = "image" in encoder.media_kinds
    messages = (Message(role="user", content="<image>Which emotion?" if reads else "Which emotion?"),)
    sample = Sample(id="a", messages=messages)
    media = [encoder.encode_image(DecodedImage(pixels=PIXELS))] if reads else []
    prompt = EncodedSample(sample=sample, prompt=encoder.encode_prompt(messages, "", media))
    return SimpleNamespace(
        name=name, encoder=encoder, policy=policy, folder=folder / "export", text=encoder.render(messages),
        reads=reads, batch=collate_prompts([prompt], encoder.pad_token_id),
    )  # fmt: skip


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """The answers of plain vLLM for every family, with the policies."""
    place = tmp_path_factory.mktemp("exported")
    Image.fromarray(PIXELS).save(place / "noise.png")
    worlds = [exported(name, place / name) for name in families.FAMILIES]
    requests = [
        {"folder": str(each.folder), "text": each.text, "image": str(place / "noise.png") if each.reads else None}
        for each in worlds
    ]
    (place / "requests.json").write_text(json.dumps(requests))
    arguments = [str(place / "requests.json"), str(place / "answers.json")]
    done = subprocess.run(
        [sys.executable, str(Path(plain_vllm.__file__)), *arguments], env=dict(os.environ), capture_output=True,
        text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, [line for line in done.stderr.splitlines() if "Error" in line] or done.stderr[-3000:]
    found = json.loads((place / "answers.json").read_text())
    return {each.name: (each, answer) for each, answer in zip(worlds, found, strict=True)}


@pytest.mark.parametrize("name", families.FAMILIES)
def test_plain_vllm_serves_the_export_with_the_policys_probabilities(answers, name):
    world, answer = answers[name]
    ids = torch.tensor([answer["tokens"]])
    batch = ScoringBatch(
        prompts=world.batch, completion_ids=ids, completion_mask=torch.ones_like(ids, dtype=torch.bool), group_size=1
    )
    assert answer["prompt"] == world.batch.input_ids[0].tolist()
    world.policy.banned.zero_()  # plain vLLM bans nothing
    with torch.no_grad():
        ours = world.policy.eval()(batch).logprobs[0]
    assert (ours - torch.tensor(answer["logprobs"])).abs().max() < BOUND
    with torch.no_grad():
        next(p for name, p in world.policy.model.named_parameters() if name.endswith("self_attn.o_proj.weight")).mul_(
            1.5
        )
        other = world.policy(batch).logprobs[0]
    assert (other - torch.tensor(answer["logprobs"])).abs().max() > 10 * BOUND
