"""Keys of drafts: tokens that an engine guesses and verifies together."""

from dataclasses import dataclass

from lightning_mmrl.settings.setting import setting


@dataclass
class SpeculationSettings:
    """How the policy's own engine drafts tokens; a draft decides how many passes are needed, and no token.

    >>> SpeculationSettings(max_draft=8).max_contexts
    200000
    """

    max_draft: int = setting(0, at_least=0)
    """Drafted tokens of a row that one pass verifies at most; 0: one token in each pass."""
    pass_tokens: float | None = setting(None, above=0)
    """Tokens that cost as much as the part of a pass that does not depend on their number; null: reckoned from the
    sizes of the decoder. The larger, the less certain a draft may be."""
    max_contexts: int = setting(200_000, at_least=2)
    """Contexts whose next tokens are remembered; the older half is then dropped."""
