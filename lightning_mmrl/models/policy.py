"""The policy: log-probabilities of completions, with media and prompt computed once for the G completions of a group.

A scoring pass packs `[prompt | c_1 .. c_G]` into one row. A boolean mask lets each completion see the prompt and itself
but not its siblings, and every completion continues at the prompt's next position. Since a causal decoder's prompt
states do not depend on what follows, this is the same function as G separate rows (arXiv:2506.05433); gradients into
the prompt add up over the group.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import DynamicCache

from lightning_mmrl.errors import ConfigError, MediaError
from lightning_mmrl.ops.logprobs import token_logprobs
from lightning_mmrl.types.batches import MediaInputs, PolicyOutput, PromptBatch, ScoringBatch


class Backbone(Protocol):
    """The parts of a loaded model that a policy uses; one implementation per model family."""

    model: nn.Module

    @property
    def text_model(self) -> nn.Module: ...

    @property
    def head(self) -> nn.Module: ...

    @property
    def placeholder_ids(self) -> Mapping[str, int]: ...

    @property
    def towers(self) -> Sequence[nn.Module]: ...

    @property
    def parameter_groups(self) -> Mapping[str, Sequence[str]]: ...

    def text_positions(self, position_ids: Tensor) -> Tensor: ...

    def media_features(self, media: MediaInputs) -> Mapping[str, Tensor]: ...


FEATURE_PREFIX = "features."
"""Marks entries of `MediaInputs` that are tower outputs already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedLayout:
    """Where things are in a row `[prompt | c_1 .. c_G]` of S = P + G * C tokens.

    `predicts` is the index of the state that predicts each completion token: the prompt's last state for a first
    token, the token before otherwise.
    """

    attention_mask: Bool[Tensor, "B 1 S S"]
    position_ids: Int[Tensor, "3 B S"]
    predicts: Int[Tensor, " GC"]


def pack_groups(prompts: PromptBatch, group_size: int, length: int) -> PackedLayout:
    """The mask, positions and gather index of B groups whose completions are `length` tokens long."""
    num_prompts, width = prompts.input_ids.shape
    device = prompts.input_ids.device
    tail = group_size * length
    owner = torch.arange(tail, device=device) // length
    step = torch.arange(tail, device=device) % length

    mask = torch.zeros(num_prompts, width + tail, width + tail, dtype=torch.bool, device=device)
    mask[:, :width, :width] = torch.ones(width, width, dtype=torch.bool, device=device).tril()
    mask[:, :, :width] &= prompts.prompt_mask[:, None, :]
    mask[:, width:, :width] = prompts.prompt_mask[:, None, :]
    mask[:, width:, width:] = (owner[:, None] == owner[None, :]) & (step[:, None] >= step[None, :])
    # A padding position would see nothing, and a softmax over nothing is NaN: let every position see itself.
    mask |= torch.eye(width + tail, dtype=torch.bool, device=device)

    tail_positions = (prompts.next_position[:, None] + step).expand(3, -1, -1)
    position_ids = torch.cat([prompts.position_ids, tail_positions], dim=-1)
    predicts = torch.where(step == 0, width - 1, width + torch.arange(tail, device=device) - 1)
    return PackedLayout(attention_mask=mask[:, None], position_ids=position_ids, predicts=predicts)


class Policy(nn.Module):
    """A multimodal causal language model whose `forward` returns log-probabilities; the root that sharding wraps.

    Args:
        backbone: The loaded model of one family.
        banned_token_ids: Ids with probability zero everywhere: media placeholders and unused head rows.
        temperature: T in log_softmax(logits / T), in sampling and scoring alike.
    """

    banned: Tensor

    def __init__(self, backbone: Backbone, *, banned_token_ids: Sequence[int], temperature: float = 1.0) -> None:
        super().__init__()
        self.model = backbone.model
        self.temperature = temperature
        self._backbone = backbone
        banned = torch.zeros(backbone.head.out_features, dtype=torch.bool)  # type: ignore[arg-type]
        banned[list(banned_token_ids)] = True
        self.register_buffer("banned", banned, persistent=False)
        self.train()  # from_pretrained leaves models in eval mode

    def forward(self, batch: ScoringBatch) -> PolicyOutput:
        """Log-probabilities and entropies of N = B * G completions; towers and prompt are computed B times."""
        prompts, length = batch.prompts, batch.completion_ids.shape[1]
        num_prompts = len(prompts.samples)
        layout = pack_groups(prompts, batch.group_size, length)
        tail = self.text_embeddings(batch.completion_ids.reshape(num_prompts, -1))
        embeddings = torch.cat([self.prompt_embeddings(prompts), tail], dim=1)
        hidden = self.hidden_states(embeddings, layout.attention_mask, layout.position_ids)
        states = hidden[:, layout.predicts].reshape(*batch.completion_ids.shape, -1)
        return self._score(states, batch.completion_ids, batch.completion_mask)

    def hidden_states(
        self,
        embeddings: Float[Tensor, "B S D"],
        attention_mask: Tensor,
        position_ids: Int[Tensor, "3 B S"],
        cache: DynamicCache | None = None,
    ) -> Float[Tensor, "B S D"]:
        """The decoder's last states; with a cache, `attention_mask` also covers what the cache holds."""
        return self._backbone.text_model(
            inputs_embeds=embeddings,
            attention_mask=attention_mask,
            position_ids=self._backbone.text_positions(position_ids),
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state

    def _score(
        self, states: Float[Tensor, "N C D"], tokens: Int[Tensor, "N C"], mask: Bool[Tensor, "N C"]
    ) -> PolicyOutput:
        logits = self._backbone.head(states[mask])
        counted, entropy = token_logprobs(logits, tokens[mask], temperature=self.temperature, banned=self.banned)
        zeros = torch.zeros(tokens.shape, dtype=counted.dtype, device=counted.device)
        return PolicyOutput(
            logprobs=zeros.masked_scatter(mask, counted), entropy=zeros.masked_scatter(mask, entropy.to(counted.dtype))
        )

    def text_embeddings(self, token_ids: Int[Tensor, "B S"]) -> Float[Tensor, "B S D"]:
        """Input embeddings of tokens that are not media."""
        return self._backbone.text_model.get_input_embeddings()(token_ids)  # type: ignore[operator]

    def prompt_embeddings(self, prompts: PromptBatch) -> Float[Tensor, "B P D"]:
        """Input embeddings of B prompts; each tower runs once and its rows take the place of the placeholders.

        Raises:
            MediaError: The placeholders of a kind are not backed one to one by feature rows.
        """
        embeddings = self.text_embeddings(prompts.input_ids)
        features = self._features(prompts.media)
        for kind, token_id in self._backbone.placeholder_ids.items():
            slots = (prompts.input_ids == token_id) & prompts.prompt_mask
            num_slots = int(slots.sum())
            num_rows = len(features[kind]) if kind in features else 0
            if num_slots != num_rows:
                ids = ", ".join(sample.id for sample in prompts.samples)
                raise MediaError(f"{num_slots} {kind} placeholders but {num_rows} {kind} features in samples {ids}")
            if num_rows:
                rows = features[kind].to(embeddings.dtype)
                embeddings = embeddings.masked_scatter(slots.unsqueeze(-1), rows)
        return embeddings

    def with_features(self, prompts: PromptBatch) -> PromptBatch:
        """The same prompts with tower outputs in place of tower inputs, so that later passes do not run the towers.

        Only frozen towers allow it: if a tower trains, the prompts come back unchanged.
        """
        if not prompts.media.tensors or self.towers_train:
            return prompts
        with torch.no_grad():
            features = self._backbone.media_features(prompts.media)
        tensors = {FEATURE_PREFIX + kind: rows for kind, rows in features.items()}
        counts = {}
        for kind in features:
            slots = (prompts.input_ids == self._backbone.placeholder_ids[kind]) & prompts.prompt_mask
            counts[FEATURE_PREFIX + kind] = tuple(slots.sum(-1).tolist())
        return replace(prompts, media=MediaInputs(tensors=tensors, counts=counts))

    @property
    def towers_train(self) -> bool:
        """True if any parameter of a media tower requires a gradient."""
        return any(p.requires_grad for tower in self._backbone.towers for p in tower.parameters())

    def _features(self, media: MediaInputs) -> Mapping[str, Tensor]:
        ready = {
            key.removeprefix(FEATURE_PREFIX): rows
            for key, rows in media.tensors.items()
            if key.startswith(FEATURE_PREFIX)
        }
        return ready or self._backbone.media_features(media)

    def next_logprobs(self, hidden: Float[Tensor, "N D"]) -> Float[Tensor, "N V"]:
        """Log-probabilities of the token after each state, temperature applied, banned ids at minus infinity."""
        logits = self._backbone.head(hidden)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / self.temperature
        return torch.log_softmax(logits.masked_fill(self.banned, float("-inf")), dim=-1)

    def freeze(self, groups: Iterable[str]) -> int:
        """Stops groups of parameters (vision, audio, text) from training and returns how many parameters that are.

        Raises:
            ConfigError: A group is unknown to the family, or selects no parameter of this model.
        """
        prefixes, num_frozen = self._backbone.parameter_groups, 0
        for group in groups:
            if group not in prefixes:
                raise ConfigError(f"freeze: unknown group {group!r}; this family has {', '.join(sorted(prefixes))}")
            chosen = [p for name, p in self.model.named_parameters() if name.startswith(tuple(prefixes[group]))]
            if not chosen:
                raise ConfigError(f"freeze: group {group!r} selects no parameter of this model")
            for parameter in chosen:
                parameter.requires_grad_(False)
                num_frozen += parameter.numel()
        return num_frozen

    def new_cache(self) -> DynamicCache:
        """An empty cache for the decoder, for `hidden_states`."""
        return DynamicCache(config=self._backbone.text_model.config)  # type: ignore[arg-type]
