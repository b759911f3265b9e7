"""Keys of experts: whom a stage asks for answers, and how patiently."""

from dataclasses import dataclass, field
from typing import Any

from lightning_mmrl.settings.setting import setting


@dataclass
class ExpertSettings:
    """A model that an endpoint serves; answers that are kept on disk are found again by these keys and the question."""

    model: str = setting(texts=False)
    """Name of the model, as the endpoint knows it."""
    thoughts: bool = False
    """Put the thoughts that an endpoint sends apart from the answer before it, between <think> and </think>."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Further keys of each request's body, such as max_completion_tokens; null takes a key out, such as seed."""


@dataclass
class EndpointSettings:
    """Where an OpenAI-compatible endpoint is and how it is asked; none of these keys decides an answer."""

    base_url: str = setting(texts=False)
    """Address without `/chat/completions`, such as http://127.0.0.1:8000/v1."""
    key_variable: str | None = setting(None, texts=False)
    """Name of the environment variable with the key: MMRL_EXPERT_KEY, or longer; null: no key is sent."""
    answers: str | None = setting(None, texts=False)
    """Folder of answers that stages and runs share, one at a time; null: this stage's own alone, in the run's folder
    `experts`."""
    concurrency: int = setting(8, at_least=1)
    """Requests under way at once."""
    request_timeout_s: float = setting(600.0, above=0)
    """Seconds for one request, with its answer."""
    retries: int = setting(5, at_least=0)
    """Further requests for an answer after a failure that may pass, such as status 429 or 500."""
    first_wait_s: float = setting(1.0, at_least=0)
    """Seconds before the first of them, and twice as long before each further one; Retry-After counts if given."""
    longest_wait_s: float = setting(120.0, at_least=0)
    """Seconds of the longest wait; a question whose Retry-After is longer counts as failed."""
    max_requests: int | None = setting(None, at_least=1)
    """Requests that this stage sends, those before an interruption included; null: any number."""
    max_total_tokens: int | None = setting(None, at_least=1)
    """Tokens of prompts and replies after which this stage asks nothing more, replies without an answer included; null:
    any number."""
    max_media_mb: int = setting(20, at_least=1)
    """Megabytes (10^6 bytes) of the media of one question; larger ones are not asked."""
    ask_refused_again: bool = False
    """Ask again also those questions that the endpoint refused before, such as by status 400."""
    give_up_after: int = setting(8, at_least=1)
    """Questions that fail one after the other before the run ends, since the endpoint is down or refuses all. A refused
    question counts until the endpoint has answered one."""
    max_failed_rate: float = setting(0.5, at_least=0, at_most=1)
    """Largest share of the stage's questions that may fail, refused ones aside; above it the run ends, and the same
    command asks them again."""
