"""Keys of a selection: which sampled answers become training data."""

from dataclasses import dataclass, replace

from lightning_mmrl.settings.setting import setting

ORDERS = ("first", "shortest", "longest")


@dataclass
class SelectionSettings:
    """Which of the right answers to a prompt are kept."""

    max_per_prompt: int = setting(1, at_least=1)
    """Answers kept for a prompt."""
    deduplicate: bool = True
    """Keep only one of several answers that differ in nothing but Unicode forms (NFKC) and whitespace."""
    min_tokens: int | None = setting(None, at_least=1)
    """Tokens of the shortest answer that is kept; null: any number."""
    max_tokens: int | None = setting(None, at_least=1)
    """Tokens of the longest answer that is kept; null: any number."""
    order: str = setting("first", choices=ORDERS)
    """Which answers are preferred, also among equal texts: the first sampled, the shortest or the longest in tokens."""
    min_pass_rate: float | None = setting(None, at_least=0, at_most=1)
    """Smallest share of right answers with which a prompt is kept; null: any."""
    max_pass_rate: float | None = setting(None, at_least=0, at_most=1)
    """Largest share of right answers with which a prompt is kept; null: any."""
    truncated: bool = False
    """Keep also right answers that the length limit ended."""
    wrong: bool = False
    """Keep also wrong answers. Debug runs do, since they may have no right one."""

    def for_debugging(self) -> "SelectionSettings":
        """Returns the selection, changed to keep also wrong and truncated answers, and prompts with any pass rate."""
        return replace(self, wrong=True, truncated=True, min_pass_rate=None, max_pass_rate=None)
