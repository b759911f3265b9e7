"""The model families, by the names that handoffs know them by."""

from collections.abc import Mapping

FAMILY_MODULES = "lightning_mmrl.models.families"


def _family(module: str, backbone: str, encoder: str) -> tuple[str, str]:
    return (
        f"{FAMILY_MODULES}.{module}.{backbone}.from_checkpoint",
        f"{FAMILY_MODULES}.{module}.{encoder}.from_checkpoint",
    )


FAMILIES: Mapping[str, tuple[str, str]] = {
    "qwen2": _family("qwen2", "Qwen2", "Qwen2Encoder"),
    "qwen2_5_omni": _family("qwen2_5_omni", "OmniThinker", "OmniEncoder"),
    "qwen2_5_vl": _family("qwen2_5_vl", "Qwen25VL", "Qwen25VLEncoder"),
    "qwen2_vl": _family("qwen2_vl", "Qwen2VL", "Qwen2VLEncoder"),
    "qwen3": _family("qwen3", "Qwen3", "Qwen3Encoder"),
    "qwen3_vl": _family("qwen3_vl", "Qwen3VL", "Qwen3VLEncoder"),
}
"""Name of a model family to the targets of its backbone and its encoder."""
