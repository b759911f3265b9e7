"""Per-token length reward, which is known to fail: every token earns the same amount."""

from dataclasses import dataclass

from lightning_mmrl.types.records import Completion, Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLength:
    """`per_token` times the number of tokens (arXiv:2503.05132, section 5.3).

    This reward exists to demonstrate a failure: lengths rise, accuracy does not, and the policy learns to repeat
    itself, since any long text earns it. For a useful length reward, see `EfficientLength` or `SoftOverlong`.

    **Deviations**: none.

    >>> TokenLength()(Sample(id="sum", messages=()), Completion(text="la " * 500, num_tokens=500, truncated=False))
    0.5
    """

    per_token: float = 0.001

    def __call__(self, sample: Sample, completion: Completion) -> float:
        return self.per_token * completion.num_tokens
