"""How much arithmetic a training step needs at least: every prompt once, nothing computed twice."""

from typing import Any


def useful_flops(model: Any, *, prompt_length: int, tokens: int, group_size: int, num_patches: int) -> float:
    """FLOPs of one forward and backward pass over a group, deduplicated.

    Forward: 2 N T for the decoder's N parameters on T = P + G C tokens, 4 L d per attention pair (L layers, d the width
    of all query heads), 2 per element of the head on G C rows, 2 Nv per tower patch (attention inside the tower left
    out); backward is twice that, for what trains. Recomputation, padding and copies of the prompt do not count, so a
    variant that does more work for the same step has a lower utilisation.
    """
    text, visual = model.model.language_model, model.model.visual
    config = text.config
    total = prompt_length + group_size * tokens
    pairs = shared_pairs(prompt_length, tokens, group_size)
    attention = 4 * config.num_hidden_layers * config.hidden_size * pairs
    body = 2 * sum(parameter.numel() for parameter in text.layers.parameters()) * total
    head = 2 * model.lm_head.weight.numel() * group_size * tokens
    tower = 2 * sum(parameter.numel() for parameter in visual.parameters()) * num_patches
    trains = any(parameter.requires_grad for parameter in visual.parameters())
    return 3.0 * (body + attention + head) + (3.0 if trains else 1.0) * tower


def shared_pairs(prompt_length: int, tokens: int, group_size: int) -> int:
    """Pairs of a query and a key that it may see, with one prompt for all completions.

    >>> shared_pairs(2, 1, 3)
    12
    """
    own = tokens * (tokens + 1) // 2
    return prompt_length * (prompt_length + 1) // 2 + group_size * (tokens * prompt_length + own)
