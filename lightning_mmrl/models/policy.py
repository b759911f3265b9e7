"""The policy: log-probabilities of completions, with media and prompt computed once for the G completions of a group.

If the model allows it without any change of the results, completions share their prompt in a packed row
(`models.shared_prefix`). Otherwise each completion follows a copy of its prompt in a row of its own, through the stock
forward; tests compare the packed row with that path.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import mul
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from lightning_mmrl.errors import ConfigError
from lightning_mmrl.models import tower_attention
from lightning_mmrl.models.adapters import Adapter, LinearLayers, add_adapter, chosen_layers
from lightning_mmrl.models.encoders import MediaBackbone, MediaEncoder
from lightning_mmrl.models.merging import merge_adapter
from lightning_mmrl.models.shared_prefix import ATTENTION, layout_arguments, pack, present_tokens, sharing_refusal
from lightning_mmrl.ops.logprobs import tiled_token_logprobs
from lightning_mmrl.ops.transfer import placed, true_places
from lightning_mmrl.settings.model import PROJECTOR, AdapterSettings, ModelSettings
from lightning_mmrl.types.batches import PolicyOutput, ScoringBatch

Result = TypeVar("Result")


class Backbone(MediaBackbone, Protocol):
    """The interface of a loaded model for a policy; one implementation per model family."""

    model: nn.Module

    @property
    def text_model(self) -> nn.Module: ...

    @property
    def head(self) -> nn.Module: ...

    @property
    def parameter_groups(self) -> Mapping[str, Sequence[str]]: ...

    @property
    def projectors(self) -> Mapping[str, Sequence[str]]: ...

    def linear_layers(self) -> LinearLayers: ...

    def text_positions(self, position_ids: Tensor) -> Tensor: ...

    def place_features(
        self, embeddings: Tensor, slots: Mapping[str, Tensor], features: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Any]]: ...


class Policy(nn.Module):
    """A multimodal causal language model whose `forward` returns log-probabilities; the root that sharding wraps.

    Args:
        backbone: The loaded model of one family.
        banned_token_ids: Ids with probability zero everywhere: media placeholders and unused head rows.
        temperature: T in log_softmax(logits / T), in sampling and scoring alike.
        settings: Whether completions share their prompt where the model allows it; otherwise each has a copy.
        compute_dtype: See the attribute; None for the type of the weights.

    Attributes:
        compute_dtype: The type in which the passes of a stage compute, by autocast or sharding. An engine that is to
            sample from the same distribution computes in it.
        media: Runs the towers; after `media.encode`, later passes over the same prompts need not run them again.
        sharing_refusal: The reason why completions do not share their prompt, or None if they do.
        adapter: LoRA layers, or None.
        rounded: The type of each weight that `keep_masters` keeps in a wider one, by its names in the model.
        num_positions: Positions that scoring passes computed so far, with padding and copies of prompts.
    """

    banned: Tensor
    banned_ids: Tensor

    def __init__(
        self,
        backbone: Backbone,
        *,
        banned_token_ids: Sequence[int],
        temperature: float = 1.0,
        settings: ModelSettings | None = None,
        compute_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        sharing = (settings or ModelSettings()).sharing
        self.model = backbone.model
        self.temperature = temperature
        self.sharing_refusal = sharing_refusal(backbone.text_model) if sharing else "it is switched off"
        self.adapter: Adapter | None = None
        self.rounded: dict[str, torch.dtype] = {}
        self.num_positions = 0
        self.compute_dtype = compute_dtype or cast(Tensor, backbone.head.weight).dtype
        self.media = MediaEncoder(backbone)
        self._backbone = backbone
        if self.sharing_refusal is None:
            # Set once, so that attention takes layouts: recomputation in backward needs the same function.
            cast(PreTrainedModel, backbone.text_model).set_attn_implementation(ATTENTION)
        if sharing:
            for tower in backbone.towers:
                tower_attention.install(tower)
        banned = torch.zeros(backbone.head.out_features, dtype=torch.bool)  # type: ignore[arg-type]
        banned[list(banned_token_ids)] = True
        self.register_buffer("banned", banned, persistent=False)
        self.register_buffer(
            "banned_ids", torch.tensor(sorted(set(banned_token_ids)), dtype=torch.long), persistent=False
        )
        self.train()  # from_pretrained leaves models in eval mode

    def forward(self, batch: ScoringBatch, *, entropy_gradient: bool = False) -> PolicyOutput:
        """Log-probabilities and entropies of N = B * G completions; towers and prompt are computed B times.

        Entropies are statistics without a gradient unless `entropy_gradient` asks for it.
        """
        states = self.scored_states(batch)
        mask = batch.completion_mask
        scored = true_places(mask, len(states))
        counted, entropy = tiled_token_logprobs(
            self._backbone.head,
            states,
            batch.completion_ids.flatten()[scored],
            temperature=self.temperature,
            banned=self.banned,
            entropy_gradient=entropy_gradient,
        )
        return PolicyOutput(
            logprobs=placed(counted, scored, mask.shape),
            entropy=placed(entropy.to(counted.dtype), scored, mask.shape),
        )

    def enter(self, function: Callable[[], Result]) -> Result:
        """Calls a function that runs inner modules, such as the towers alone, as one forward pass of the policy.

        A sharded policy may be run through its root only; this is its second entry next to `forward`.
        """
        return function()

    def scored_states(self, batch: ScoringBatch) -> Float[Tensor, "n D"]:
        """The states that predict the n scored tokens, row by row, as the completion mask selects them."""
        return self._shared_states(batch) if self.sharing_refusal is None else self._copied_states(batch)

    def _shared_states(self, batch: ScoringBatch) -> Float[Tensor, "n D"]:
        """The states that predict the n scored tokens, from one packed row."""
        row = pack(batch)
        tokens = row.sources
        in_prompt = torch.arange(len(tokens), device=tokens.device) < row.num_prompt_tokens
        media = self.media.with_features(batch.prompts).media
        features = media.tensors
        if row.source is not None:
            for kind, rows in features.items():
                slots = (tokens == self._backbone.placeholder_ids[kind]) & in_prompt
                numbers = slots.cumsum(0) - 1  # for each True slot, how many come before it
                num_slots = sum(map(mul, row.copies, media.counts[kind]))
                places = true_places(slots[row.source], num_slots)
                features = {**features, kind: rows[numbers[row.source][places]]}
            tokens, in_prompt = tokens[row.source], in_prompt[row.source]
        self.num_positions += len(tokens)
        hidden = self.text_states(
            tokens[None],
            row.position_ids[:, None],
            features=features,
            in_prompt=in_prompt[None],
            attention=layout_arguments(row.layout, tokens.device),
        )
        return hidden[0, row.predicts]

    def _copied_states(self, batch: ScoringBatch) -> Float[Tensor, "n D"]:
        """The same states from one right-padded row per completion."""
        prompts, present = batch.prompts, present_tokens(batch.completion_mask)
        rows = present.any(-1).nonzero().flatten().tolist()
        owners = [row // batch.group_size for row in rows]
        tokens, positions, scored = [], [], []
        for row, owner in zip(rows, owners, strict=True):
            keep, tail = prompts.prompt_mask[owner], present[row]
            steps = torch.arange(int(tail.sum()), device=tail.device)
            tokens.append(torch.cat([prompts.input_ids[owner, keep], batch.completion_ids[row, tail]]))
            ahead = (prompts.next_position[owner] + steps).expand(3, -1)
            positions.append(torch.cat([prompts.position_ids[:, owner, keep], ahead], dim=1).T)
            scored.append(torch.cat([torch.zeros_like(keep[keep]), batch.completion_mask[row, tail]]))
        widths = prompts.prompt_mask.sum(-1)[owners]
        mask = pad_sequence([torch.ones_like(row) for row in tokens], batch_first=True)
        ids = pad_sequence(tokens, batch_first=True)
        self.num_positions += ids.numel()
        hidden = self.text_states(
            ids,
            pad_sequence(positions, batch_first=True).permute(2, 0, 1),
            features=self.media.features(prompts.select(owners)),
            in_prompt=torch.arange(ids.shape[1], device=ids.device) < widths[:, None],
            attention={"attention_mask": mask, "use_cache": False},
        )
        return hidden[:, :-1][pad_sequence(scored, batch_first=True)[:, 1:]]

    def text_states(
        self,
        token_ids: Int[Tensor, "B S"],
        position_ids: Int[Tensor, "3 B S"],
        *,
        features: Mapping[str, Tensor] | None = None,
        in_prompt: Bool[Tensor, "B S"] | None = None,
        attention: Mapping[str, Any],
    ) -> Float[Tensor, "B S D"]:
        """The decoder's last states.

        Args:
            token_ids: Tokens, media placeholders among them.
            position_ids: Temporal, height and width positions.
            features: Feature rows by kind, in the order of their placeholders; none by default.
            in_prompt: Where a placeholder's id stands for a medium; everywhere by default.
            attention: Arguments that define the attention: a layout, or a mask with or without a cache.
        """
        text_model = self._backbone.text_model
        embeddings = text_model.get_input_embeddings()(token_ids)  # type: ignore[operator]
        if torch.is_grad_enabled() and not embeddings.requires_grad:
            # With a frozen decoder, tokens without media have no backward pass, but other ranks may wait for it.
            embeddings.requires_grad_()
        extras: dict[str, Any] = {}
        if features:
            slots = {kind: token_ids == self._backbone.placeholder_ids[kind] for kind in features}
            if in_prompt is not None:
                slots = {kind: where & in_prompt for kind, where in slots.items()}
            embeddings, extras = self._backbone.place_features(embeddings, slots, features)
        positions = self._backbone.text_positions(position_ids)
        return text_model(inputs_embeds=embeddings, position_ids=positions, **extras, **attention).last_hidden_state

    @property
    def head(self) -> nn.Module:
        """The linear layer from the last states to logits."""
        return self._backbone.head

    @property
    def num_weights_per_token(self) -> int:
        """Weights of the decoder and the head that a token is multiplied with; the embedding is only looked up."""
        text_model = self._backbone.text_model
        embedding, head = text_model.get_input_embeddings(), self._backbone.head  # type: ignore[operator]
        inner = sum(each.numel() for each in text_model.parameters()) - embedding.weight.numel()
        return inner + head.weight.numel()  # type: ignore[operator]

    @property
    def text_config(self) -> Any:
        """The decoder's configuration."""
        return self._backbone.text_model.config

    def next_logprobs(self, hidden: Float[Tensor, "N D"]) -> Float[Tensor, "N V"]:
        """Log-probabilities of the token after each state, temperature applied, banned ids at minus infinity."""
        logits = self._backbone.head(hidden)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32)).div_(self.temperature)
        # A few ids are filled in place: a mask would be read along the whole vocabulary at every step.
        return torch.log_softmax(logits.index_fill_(-1, self.banned_ids, float("-inf")), dim=-1)

    def freeze(self, groups: Iterable[str]) -> int:
        """Freezes groups of parameters (see `FREEZE_GROUPS`) and returns the number of frozen parameters.

        Raises:
            ConfigError: A group is unknown to the family, or selects no parameter of this model.
        """
        chosen: dict[str, nn.Parameter] = {}
        for group in groups:
            prefixes, left_out = self._names_of(group)
            named = [(n, p) for n, p in self.model.named_parameters() if n.startswith(prefixes)]
            found = {name: parameter for name, parameter in named if not name.startswith(left_out)}
            if not found:
                raise ConfigError(f"freeze: group {group!r} selects no parameter of this model")
            chosen |= found
        for parameter in chosen.values():
            parameter.requires_grad_(False)
        return sum(parameter.numel() for parameter in chosen.values())

    def _names_of(self, group: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Name prefixes of a group's parameters, and name prefixes of the parameters among them that it leaves out."""
        owned, projectors = self._backbone.parameter_groups, self._backbone.projectors
        if group in owned:
            return tuple(owned[group]), ()
        towers = {f"{tower}_tower": (tuple(owned[tower]), tuple(own)) for tower, own in projectors.items()}
        towers[PROJECTOR] = (tuple(prefix for own in projectors.values() for prefix in own), ())
        if group not in towers or not projectors:
            known = [*owned, *(towers if projectors else ())]
            raise ConfigError(f"freeze: unknown group {group!r}; this family has {', '.join(sorted(known))}")
        return towers[group]

    def adapt(self, settings: AdapterSettings, key: str = "adapter") -> int:
        """Freezes the model and adds LoRA layers that train; returns the number of their parameters.

        With dropout in the text model, completions no longer share their prompt; `sharing_refusal` then says so.

        Raises:
            ConfigError: There is an adapter already, or the settings select no layer; messages name them by `key`.
        """
        if self.adapter is not None:
            raise ConfigError(
                f"{key}: this policy has an adapter already; start from a checkpoint with that one merged"
            )
        prefixes, known = self._backbone.parameter_groups, self._backbone.linear_layers()
        names = chosen_layers(self.model, prefixes, known, settings, key)
        self.adapter = add_adapter(cast(PreTrainedModel, self.model), names, settings)
        self.sharing_refusal = self.sharing_refusal or sharing_refusal(self._backbone.text_model)
        return sum(parameter.numel() for parameter in self.adapter.parameters())

    def merge(self, files: Mapping[str, Path], prefix: str = "") -> None:
        """Adds an adapter of a file to the weights; the policy is then a plain model with other weights.

        Args:
            files: As for `merge_adapter`.
            prefix: Beginning of weight names in the released model of the family, see `PromptEncoder.engine_prefix`.

        Raises:
            StageError: The adapter is none of this model, or no LoRA adapter.
        """
        merge_adapter(cast(PreTrainedModel, self.model), files, prefix)

    def keep_masters(self) -> None:
        """Keeps weights that train in float32 at least, where small updates are not lost in rounding.

        Passes must then compute in half precision by autocast or sharding (`compute_dtype`). Weights that stay as they
        are keep their type, and so do buffers, such as the angles of rotary embeddings.
        """
        named = self.model.named_parameters(remove_duplicate=False)
        trained = [(name, each) for name, each in named if each.requires_grad]
        self.rounded = {name: each.dtype for name, each in trained if each.dtype.itemsize < torch.float32.itemsize}
        for _, each in trained:
            each.data = each.data.to(torch.promote_types(each.dtype, torch.float32))

    def stored(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights of the model in the types that they were loaded in; tied weights stay one tensor."""
        known: dict[int, Tensor] = {}
        found = {}
        for name, tensor in state.items():
            if id(tensor) not in known:
                known[id(tensor)] = tensor.to(self.rounded.get(name, tensor.dtype))
            found[name] = known[id(tensor)]
        return found

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Switches the adapter off: the policy is then the model that its stage started from, without gradients.

        Features that prompts already carry do not change; if towers are adapted, score prompts with their media
        instead.

        Raises:
            RuntimeError: There is no adapter, so the weights of that model are gone.
        """
        if self.adapter is None:
            raise RuntimeError("a policy without an adapter has no reference: its weights themselves are trained")
        with torch.no_grad(), self.adapter.off():
            yield
