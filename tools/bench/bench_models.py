"""The models, prompts and completions of the benchmarks: the same for every variant, drawn from seeds."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from benching import BenchError
from torch import Tensor, nn
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor
from transformers.utils import logging as transformers_logging

from lightning_mmrl.data.collate import EncodedSample, collate_prompts
from lightning_mmrl.models.families.qwen2_5_vl import Qwen25VL, Qwen25VLEncoder
from lightning_mmrl.models.families.qwen_vision import normalized
from lightning_mmrl.models.policy import Policy
from lightning_mmrl.models.tiny_qwen import build_tiny_qwen2_5_vl
from lightning_mmrl.settings.model import ModelSettings
from lightning_mmrl.types.batches import PromptBatch, ScoringBatch
from lightning_mmrl.types.media import DecodedImage
from lightning_mmrl.types.records import Message, Sample

FRAME_PIXELS = 224
WORD = " calm"
SENTENCES = ("How does the person in these pictures feel?", "calm happy sad angry afraid surprised disgusted")
VOCABULARY = 4096
SEED = 0
transformers_logging.disable_progress_bar()
SPREAD = 4.0

# The sizes in the released config.json of Qwen2.5-VL-3B-Instruct; the vocabulary's special ids are the tiny one's.
RELEASED_3B = {
    "text": {
        "hidden_size": 2048,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "intermediate_size": 11008,
        "vocab_size": 151936,
        "max_position_embeddings": 128000,
        "rope_parameters": {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1000000.0},
    },
    "vision": {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": 2048,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "window_size": 112,
        "tokens_per_second": 2,
    },
}


def model_folder(work: Path, hidden_size: int = 256, num_layers: int = 4) -> Path:
    """A random Qwen2.5-VL, by default hidden 256 and 4 layers, with a tower of 2 blocks and 4,096 tokens; built once.

    Its weights are four times as wide as at initialisation. Most of its tokens are made-up words, so that every row of
    the head can be sampled and decoded, by all variants alike.
    """
    size = "" if (hidden_size, num_layers) == (256, 4) else f"-{hidden_size}x{num_layers}"
    folder = work / "models" / f"tiny-{FRAME_PIXELS}-{VOCABULARY}{size}"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder.parent) as name:
            partial = build(Path(name) / folder.name, SENTENCES, hidden_size, num_layers)
            model = add_words(partial)
            _spread(model)
            model.save_pretrained(partial)
            partial.rename(folder)
    return folder


def build(folder: Path, text: Sequence[str], hidden_size: int = 256, num_layers: int = 4) -> Path:
    """A random model of the benchmark's sizes whose tokenizer learns from `text`."""
    sizes = {"hidden_size": hidden_size, "num_layers": num_layers, "frame_size": FRAME_PIXELS}
    return build_tiny_qwen2_5_vl(folder, text=text, seed=SEED, **sizes)


def add_words(folder: Path) -> Any:
    """Adds words to a folder's tokenizer, up to the vocabulary's size; returns the model with rows for them."""
    processor = Qwen2_5_VLProcessor.from_pretrained(folder)
    tokenizer: Any = processor.tokenizer
    tokenizer.add_tokens([f"<w{number}>" for number in range(len(tokenizer), VOCABULARY)])
    processor.save_pretrained(folder)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder)
    torch.manual_seed(SEED)
    model.resize_token_embeddings(VOCABULARY, mean_resizing=False)
    return model


def _spread(model: nn.Module) -> None:
    """Larger weights than at initialisation: attention and pictures then matter, so that the parity gate means much."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(SPREAD)


@dataclass(frozen=True)
class World:
    """One model and the prompts for it, on one device.

    Attributes:
        folder: Where the tiny model, its processor and tokenizer lie.
        shape: "tiny", or "3b" for the released sizes with random weights.
        device: Where the model runs.
        dtype: Of the weights.
    """

    folder: Path
    shape: str = "tiny"
    device: str = "cpu"
    dtype: torch.dtype = torch.float32

    @cached_property
    def encoder(self) -> Qwen25VLEncoder:
        """The product's encoder of the folder."""
        return Qwen25VLEncoder.from_checkpoint(self.folder)

    @property
    def unending(self) -> tuple[int, ...]:
        """Ids to ban so that every completion has its full length: the encoder's own, and all that end one."""
        return (*self.encoder.banned_token_ids(), *self.encoder.eos_token_ids)

    def model(self) -> Any:
        """The stock model in training mode; each call loads or draws it anew, with the same weights."""
        if self.shape == "tiny":
            model: Any = Qwen2_5_VLForConditionalGeneration.from_pretrained(self.folder, dtype=self.dtype)
            model = model.to(self.device)
        else:
            torch.manual_seed(SEED)
            with torch.device(self.device):
                model = Qwen2_5_VLForConditionalGeneration._from_config(self.released_config(), dtype=self.dtype)
        return model.train()

    def released_config(self) -> Qwen2_5_VLConfig:
        """The configuration of the folder at the released 3B sizes."""
        config: Any = Qwen2_5_VLConfig.from_pretrained(self.folder)
        for part, sizes in (config.text_config, RELEASED_3B["text"]), (config.vision_config, RELEASED_3B["vision"]):
            for name, value in sizes.items():
                setattr(part, name, value)
        config.text_config.layer_types = ["full_attention"] * config.text_config.num_hidden_layers
        return config

    def policy(self, *, banned: tuple[int, ...] = (), sharing: bool = True, model: Any = None) -> Policy:
        """The product's policy; by default with the folder's weights and, as in TRL's scoring, no banned ids."""
        backbone: Any = Qwen25VL(self.model() if model is None else model)
        return Policy(backbone, banned_token_ids=banned, settings=ModelSettings(sharing=sharing))

    def messages(self, length: int) -> tuple[Message, ...]:
        """A user turn with pictures that is `length` tokens long with its template.

        Raises:
            BenchError: Such a prompt cannot be made.
        """
        per_picture = (FRAME_PIXELS // 28) ** 2 + 2
        bare = self._length(Message(role="user", content=SENTENCES[0]))
        num_pictures = (length - bare) // per_picture
        if num_pictures < 1:
            raise BenchError(f"a prompt of {length} tokens has no room for a picture; ask for {bare + per_picture}")
        missing = length - bare - num_pictures * per_picture
        turn = Message(role="user", content="<image>" * num_pictures + SENTENCES[0] + WORD * missing)
        if (found := self._length(turn) + num_pictures * (per_picture - 3)) != length:
            raise BenchError(f"the prompt has {found} tokens, not {length}")
        return (turn,)

    def _length(self, turn: Message) -> int:
        text = turn.content.replace("<image>", "<|vision_start|><|image_pad|><|vision_end|>")
        chat = [{"role": turn.role, "content": text}]
        rendered = self.encoder.processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        return len(self.encoder.processor.tokenizer(rendered).input_ids)

    def encoded(self, messages: tuple[Message, ...], number: int) -> EncodedSample:
        """The prompt with its own pictures, as the product's data module would encode it."""
        pictures = [self.encoder.encode_image(DecodedImage(pixels=pixels)) for pixels in pictures_of(messages, number)]
        prompt = self.encoder.encode_prompt(messages, "", pictures)
        return EncodedSample(sample=Sample(id=f"prompt-{number}", messages=messages), prompt=prompt)

    def prompts(self, length: int, numbers: tuple[int, ...] = (0,)) -> PromptBatch:
        """Prompts of `length` tokens on the device."""
        messages = self.messages(length)
        batch = collate_prompts([self.encoded(messages, number) for number in numbers], self.encoder.pad_token_id)
        return batch.to(self.device)

    def scoring_batch(self, length: int, tokens: int, group_size: int, *, ragged: bool = False) -> ScoringBatch:
        """One prompt and its fixed completions."""
        ids, mask = self.completions(tokens, group_size, ragged=ragged)
        return ScoringBatch(
            prompts=self.prompts(length),
            completion_ids=ids.to(self.device),
            completion_mask=mask.to(self.device),
            group_size=group_size,
        )

    def completions(self, tokens: int, group_size: int, *, ragged: bool = False) -> tuple[Tensor, Tensor]:
        """Random ordinary tokens [G, C] and their mask; ragged ones are from half of C long to the first one's C."""
        generator = np.random.default_rng(SEED)
        special = {*self.unending, *self.encoder.processor.tokenizer.all_special_ids}
        ordinary = [token for token in range(VOCABULARY) if token not in special]
        ids = torch.from_numpy(generator.choice(ordinary, (group_size, tokens)))
        lengths = torch.full((group_size,), tokens)
        if ragged:
            lengths = torch.from_numpy(generator.integers(-(-tokens // 2), tokens, group_size, endpoint=True))
            lengths[0] = tokens
        mask = torch.arange(tokens) < lengths[:, None]
        return ids.masked_fill(~mask, self.encoder.pad_token_id), mask


def rewards(group_size: int) -> Tensor:
    """Fixed rewards [1, G] that differ."""
    return torch.from_numpy(np.random.default_rng(SEED + 1).random((1, group_size))).float()


def pictures_of(messages: tuple[Message, ...], number: int) -> list[np.ndarray]:
    """The decoded pictures of prompt `number`: noise."""
    generator = np.random.default_rng([SEED, number])
    size = (FRAME_PIXELS, FRAME_PIXELS, 3)
    return [generator.integers(0, 256, size, dtype=np.uint8) for _ in range(messages[0].content.count("<image>"))]


def masked_logprobs(model: Any, batch: ScoringBatch) -> Tensor:
    """Log-probabilities [G, C] over `[prompt | c_1 .. c_G]` in one row of the stock model, by a dense 4-D mask.

    One prompt, without padding before it; written apart from the product, as the variant that it is compared with.
    """
    prompts, (group_size, tokens) = batch.prompts, batch.completion_ids.shape
    width, tail = prompts.input_ids.shape[1], group_size * tokens
    device = prompts.input_ids.device
    owner, step = torch.arange(tail, device=device) // tokens, torch.arange(tail, device=device) % tokens
    mask = torch.ones(width + tail, width + tail, dtype=torch.bool, device=device).tril()
    mask[width:, width:] &= owner[:, None] == owner[None, :]
    positions = torch.cat([prompts.position_ids, (prompts.next_position[:, None] + step).expand(3, -1, -1)], dim=-1)
    states = model.model(
        input_ids=torch.cat([prompts.input_ids, batch.completion_ids.reshape(1, -1)], dim=1),
        attention_mask=mask[None, None],
        position_ids=positions,
        use_cache=False,
        **normalized(prompts.media.tensors),
    ).last_hidden_state[0]
    predicts = torch.where(step == 0, width - 1, width + torch.arange(tail, device=device) - 1)
    logits = model.lm_head(states[predicts]).float()
    chosen = logits.log_softmax(-1).gather(-1, batch.completion_ids.reshape(-1, 1))
    return chosen.reshape(group_size, tokens) * batch.completion_mask
