"""Chat templates of strangers: rendered as transformers does, and bounded in time and memory."""

import time
from types import SimpleNamespace

import families
import pytest

from lightning_mmrl.errors import DataError, StageError
from lightning_mmrl.models import chat
from lightning_mmrl.models.chat import render_chat
from lightning_mmrl.models.tiny import CHAT_TEMPLATE
from lightning_mmrl.types.records import Message

CHAT = [{"role": "user", "content": "Why?"}]


def holder(template, **tokens):
    return SimpleNamespace(chat_template=template, special_tokens_map=tokens)


def rendered(template, conversation=CHAT, **tokens):
    return render_chat(holder(template), holder(template, **tokens), conversation)


@pytest.fixture(scope="module", autouse=True)
def short_deadline():
    """One worker for all tests here, which is killed soon."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chat, "DEADLINE_S", 0.3)
        patch.setattr(chat, "_pools", [])
        patch.setattr("lightning_mmrl.workers.pool.ATTEMPTS", 1)
        yield
        for pool in chat._pools:
            pool.close()


LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}"
LOOPS += "{% endfor %}{% endfor %}{% endfor %}"
DOUBLES = "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}"
ENDLESS = {
    "nested loops": LOOPS,
    "loops for some conversations": "{% if messages[0].content == 'Why?' %}" + LOOPS + "{% endif %}",
    "a function of jinja": "{{ lipsum(n=10**9) | length }}",
    "a recursion that doubles": DOUBLES,
    "an expression that compiling folds": "{{ (9 ** (9 ** 9)) % 2 }}",
    "a filter": "{% for a in range(99999) %}{% set x = range(99999) | sum %}{% endfor %}",
}


@pytest.mark.parametrize("kind", ENDLESS)
def test_an_endless_template_ends_in_one_sentence(kind):
    begun = time.monotonic()
    with pytest.raises(StageError, match=r"did not render a conversation within 0.3 s.*look for an endless loop"):
        rendered(ENDLESS[kind])
    # 0.6 s in the last attempt, and the start of a worker on a machine with other work.
    assert time.monotonic() - begun < 60


LARGE = {
    "a product": "{{ 'x' * 10**10 }}",
    "a doubled text": "{% set n = namespace(t='x') %}{% for a in range(40) %}{% set n.t = n.t ~ n.t %}{% endfor %}",
    "a list": "{{ [1] * 10**10 }}",
    "a width": "{{ 'x'.ljust(10**10) }}",
    "a format": "{{ '%010000000000d' | format(1) }}",
    "a centered text": "{{ 'x' | center(10**10) }}",
    "a text of a moderate size": "{{ 'x' * (2**24 + 1) }}",
}


@pytest.mark.parametrize("kind", LARGE)
def test_a_template_that_takes_all_memory_ends_in_one_sentence(kind):
    with pytest.raises((DataError, StageError), match="the chat template of the checkpoint"):
        rendered(LARGE[kind])


REFUSED = {
    "an error of its own": "{{ raise_exception('roles must alternate') }}",
    "a fault": "{{ messages[9].content.x }}",
    "a syntax error": "{% for %}",
    "endless recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "what is private": "{{ messages.__class__.__mro__[1].__subclasses__() }}",
    "what is imported": "{% include '/etc/passwd' %}",
    "a change of its input": "{{ messages.append(1) }}",
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_template_that_fails_is_one_sentence(kind):
    with pytest.raises(DataError, match="the chat template of the checkpoint refuses a conversation: "):
        rendered(REFUSED[kind])


def test_a_template_goes_on_after_another_was_killed():
    assert rendered("{{ bos_token }}{{ messages[0].content }}", bos_token="<s>") == "<s>Why?"


@pytest.mark.parametrize("template", [None, {}, {"tool_use": "x"}, ["x"]])
def test_without_a_template_there_is_a_sentence(template):
    with pytest.raises(StageError, match=r"has no chat template of its own; add its chat_template\.jinja"):
        rendered(template)


TURNS = {
    "one": [Message(role="user", content="Why?")],
    "many": [
        Message(role="system", content="Be brief."),
        Message(role="user", content="One"),
        Message(role="assistant", content="Two"),
        Message(role="user", content="Three\n<b> & 'c'"),
    ],
}


@pytest.mark.parametrize("name", families.each())
@pytest.mark.parametrize("template", [None, "{{ bos_token }}{% for m in messages %}[{{ m | tojson }}]{% endfor %}"])
def test_a_worker_renders_as_transformers_does(name, template, tmp_path, monkeypatch):
    """The tiny models' own templates are rendered here without one; both ways are compared."""
    encoder = families.FAMILIES[name].encoder.from_checkpoint(families.build(name, tmp_path / name))
    if template is not None:
        encoder.processor.chat_template = template
    own = [encoder.render(turns) for turns in TURNS.values()]
    monkeypatch.setattr(chat, "OWN", frozenset())
    monkeypatch.setattr(chat, "render_jinja_template", None)  # only a worker has it now
    assert [encoder.render(turns) for turns in TURNS.values()] == own
    monkeypatch.undo()
    assert own == [by_transformers(encoder, turns) for turns in TURNS.values()]


def by_transformers(encoder, turns):
    text_alone = encoder.processor is encoder.tokenizer
    conversation = [
        {"role": turn.role, "content": turn.content if text_alone else [{"type": "text", "text": turn.content}]}
        for turn in turns
    ]
    return encoder.processor.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)


def test_templates_of_ours_need_no_worker(monkeypatch):
    monkeypatch.setattr(chat, "_pool", None)
    assert rendered(CHAT_TEMPLATE).endswith("<|im_start|>assistant\n")
    with pytest.raises(TypeError):
        rendered(CHAT_TEMPLATE + " ")
