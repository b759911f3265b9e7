"""The base of the backbones of all families: it loads the model, and puts feature rows where the placeholders are."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from lightning_mmrl.errors import StageError
from lightning_mmrl.models.families.family import Family, placeholder_ids
from lightning_mmrl.models.folder import WEIGHTS, check_weights
from lightning_mmrl.models.loading import loading
from lightning_mmrl.ops.transfer import true_places
from lightning_mmrl.types.batches import MediaInputs
from lightning_mmrl.types.records import MediaKind

LayerKinds = Mapping[str, tuple[str, ...]]
"""Maps a kind of linear layer to endings of module names, in which indices of a ModuleList are left out."""

DECODER_LAYERS: LayerKinds = {
    "attention": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
    "mlp": ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
}


class FamilyBackbone:
    """A loaded model and what a policy needs to know of it: where its modules are, and how media become embeddings.

    Each family has a subclass with its `declaration`. `text_at` is the path of the decoder without its head.
    `towers_at` maps a tower's parameter group, as `freeze` names it, to the path of the tower, projector included.
    `projectors_at` gives the paths of the projector's modules, which map a tower's states to the decoder's width.
    `tower_layers` lists the linear layers of each tower by kind, as `LayerKinds`; an adapter's settings choose among
    these kinds.
    """

    declaration: ClassVar[Family]
    text_at: ClassVar[str]
    towers_at: ClassVar[Mapping[str, str]] = {}
    projectors_at: ClassVar[Mapping[str, Sequence[str]]] = {}
    tower_layers: ClassVar[Mapping[str, LayerKinds]] = {}

    model: Any

    def __init__(self, model: Any) -> None:
        self.model = model

    @classmethod
    def from_checkpoint(cls, checkpoint: str | Path, *, dtype: torch.dtype = torch.float32) -> Self:
        """Loads the weights of a local folder or hub id; from a full omni checkpoint, the weights of its thinker.

        Raises:
            StageError: The checkpoint cannot be loaded, or it lacks a weight, which transformers would draw at random.
        """
        cls.declaration.load_config(checkpoint)
        with loading(checkpoint, "model checkpoint"):
            check_weights(checkpoint)
            model, report = cls.declaration.model.from_pretrained(
                checkpoint, dtype=dtype, output_loading_info=True, **WEIGHTS
            )
        if missing := sorted(report["missing_keys"]):
            raise StageError(
                f"model checkpoint {str(checkpoint)!r} lacks {len(missing)} weights of its model, such as "
                f"{missing[0]}; restore its files"
            )
        return cls(model)

    @property
    def text_model(self) -> nn.Module:
        """The decoder without its head."""
        return self.model.get_submodule(self.text_at)

    @property
    def head(self) -> nn.Module:
        """The linear layer from hidden states to logits; if weights are tied, its weight is the input embedding's."""
        return self.model.lm_head

    @property
    def towers(self) -> list[nn.Module]:
        """The media encoders with their projectors."""
        return [self.model.get_submodule(path) for path in self.towers_at.values()]

    @property
    def parameter_groups(self) -> Mapping[str, tuple[str, ...]]:
        """Parameter name prefixes of the groups; a projector belongs to its tower."""
        towers = {group: (f"{path}.",) for group, path in self.towers_at.items()}
        return {**towers, "text": (f"{self.text_at}.", "lm_head.")}

    @property
    def projectors(self) -> Mapping[str, tuple[str, ...]]:
        """Parameter name prefixes of each tower's projector."""
        return {group: tuple(f"{path}." for path in paths) for group, paths in self.projectors_at.items()}

    @classmethod
    def linear_layers(cls) -> dict[str, LayerKinds]:
        """The linear layers of each parameter group by kind, without the head; see `tower_layers`."""
        return {"text": DECODER_LAYERS, **cls.tower_layers}

    @property
    def medium_keys(self) -> Mapping[MediaKind, str]:
        """For each kind of media that the family reads, a key of `MediaInputs` with one row per medium."""
        return self.declaration.medium_keys

    @property
    def tower_inputs(self) -> Mapping[MediaKind, str]:
        """For each kind of media that the family reads, the key of `MediaInputs` with what its tower reads."""
        return {kind: self.declaration.tower_inputs[kind] for kind in self.medium_keys}

    @property
    def placeholder_ids(self) -> dict[MediaKind, int]:
        """For each kind of media, the token id that stands for one feature row."""
        return placeholder_ids(self.model.config, self.medium_keys)

    def text_positions(self, position_ids: Tensor) -> Tensor:
        """Returns all three rows [3, B, S]: the decoder's rotary embedding has temporal, height and width axes."""
        return position_ids

    def media_features(self, media: MediaInputs) -> dict[str, Tensor]:
        """Runs each tower once over all media of the batch; returns rows [rows, F] in prompt order, keyed by kind."""
        return {}

    def model_inputs(self, media: MediaInputs) -> Mapping[str, Tensor]:
        """The media's tensors as the family's model in transformers takes them."""
        return media.tensors

    def place_features(
        self, embeddings: Tensor, slots: Mapping[str, Tensor], features: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Any]]:
        """Puts feature rows where their placeholders are; gradients reach both embeddings and rows.

        Rows fill the True slots of their kind in reading order. Tokens may lie in any way, padded or packed, that keeps
        media in the order of their rows. The caller must have compared the numbers of slots and rows.

        Args:
            embeddings: Input embeddings [B, S, D].
            slots: For each kind, where its placeholders are [B, S].
            features: For each kind, the rows [rows, F] that `media_features` returned.

        Returns:
            The embeddings with the rows, cast to their dtype, and further keyword arguments of the decoder's forward.
        """
        tokens = embeddings.flatten(0, 1)
        for kind, rows in features.items():
            tokens = tokens.index_copy(0, true_places(slots[kind], len(rows)), rows.to(tokens.dtype))
        return tokens.view(embeddings.shape), {}

    def minimal_media(self, kind: MediaKind) -> dict[str, Tensor]:
        """The smallest medium of a kind that its tower takes, all zeros, under the names of `MediaInputs`."""
        raise KeyError(kind)

    def feature_rows(self, media: MediaInputs) -> dict[str, Tensor]:
        """For each kind, the number of feature rows of every medium [media], found without running the tower."""
        return {}
