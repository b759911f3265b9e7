import time

import pytest

from lightning_mmrl.errors import ConfigError, DataError
from lightning_mmrl.prompts.template import PromptTemplate, media_tags
from lightning_mmrl.settings.data import PromptSettings
from lightning_mmrl.types.records import Message

SYSTEM = Message(role="system", content="Be brief.")
USER = Message(role="user", content="<video><audio>Which emotion?")
ASSISTANT = Message(role="assistant", content="<think>Brows.</think><answer>angry</answer>")


def test_apply_adds_the_system_turn_and_the_suffix():
    template = PromptTemplate(PromptSettings(system="You watch faces.", suffix=" Think first."))
    assert template.apply((USER,)) == (
        Message(role="system", content="You watch faces."),
        Message(role="user", content="<video><audio>Which emotion? Think first."),
    )


@pytest.mark.parametrize(
    ("content", "prompt"),
    [
        ("Which?", "Q: Which?!"),
        ("<video><audio>Which?", "<video><audio>Q: Which?!"),
        ("<video>\n<audio>\nWhich?", "<video>\n<audio>\nQ: Which?!"),
        ("Which of <image> and <image>?", "Q: Which of <image> and <image>?!"),
        ("<image> or <image>?", "<image> Q: or <image>?!"),
    ],
)
def test_the_prefix_goes_before_the_question_and_behind_media_that_come_first(content, prompt):
    messages = (ASSISTANT, Message(role="user", content=content))
    asked = PromptTemplate(PromptSettings(prefix="Q: ", suffix="!")).apply(messages)
    assert asked == (ASSISTANT, Message(role="user", content=prompt))


def test_a_hostile_question_takes_linear_time():
    started = time.process_time()
    for piece in ("<image>", "<image> \n", " ", "<"):
        PromptTemplate(PromptSettings(prefix="Q")).apply((Message(role="user", content=piece * 100_000 + "x"),))
    assert time.process_time() - started < 5


def test_apply_keeps_a_system_turn_that_is_there():
    assert PromptTemplate(PromptSettings(system="You watch faces.")).apply((SYSTEM, USER)) == (SYSTEM, USER)


def test_the_suffix_goes_on_the_last_user_turn_and_nothing_is_dropped():
    first, last = Message(role="user", content="Look."), Message(role="user", content="And now?")
    prompt = PromptTemplate(PromptSettings(suffix="!")).apply((SYSTEM, first, ASSISTANT, last))
    assert prompt == (SYSTEM, first, ASSISTANT, Message(role="user", content="And now?!"))


def test_an_empty_template_changes_nothing():
    assert PromptTemplate().apply((SYSTEM, USER)) == (SYSTEM, USER)


@pytest.mark.parametrize(
    ("messages", "sentence"),
    [
        ((), "no user turn"),
        ((SYSTEM,), "no user turn"),
        ((USER, ASSISTANT), "assistant turn"),
        ((USER, SYSTEM), "system turn"),
    ],
)
def test_a_prompt_must_end_with_a_user_turn(messages, sentence):
    with pytest.raises(DataError, match=sentence):
        PromptTemplate().apply(messages)


def test_complete_and_split_target_are_inverse():
    template = PromptTemplate(PromptSettings(prefill="<think>"))
    prompt, target = template.split_target((USER, ASSISTANT))
    assert prompt == (USER,)
    assert target == "Brows.</think><answer>angry</answer>"
    assert template.complete(target) == ASSISTANT.content


def test_without_an_assistant_turn_there_is_no_target():
    assert PromptTemplate(PromptSettings(prefill="<think>")).split_target((SYSTEM, USER)) == ((SYSTEM, USER), None)
    assert PromptTemplate().split_target(()) == ((), None)


def test_a_target_without_the_prefill_is_refused():
    with pytest.raises(DataError, match=r"'angry'.*'<think>'"):
        PromptTemplate(PromptSettings(prefill="<think>")).split_target(
            (USER, Message(role="assistant", content="angry"))
        )


@pytest.mark.parametrize("name", ["system", "prefix", "suffix", "prefill", "raw"])
def test_a_template_with_a_media_tag_is_refused(name):
    with pytest.raises(ConfigError, match=f"prompt.{name}.*<audio>"):
        PromptTemplate(PromptSettings(**{name: "Listen: <audio>"}))


@pytest.mark.parametrize(
    ("content", "tags"),
    [
        ("", ()),
        ("<video><audio>Which?", ("video", "audio")),
        ("<audio> then <image> <image>", ("audio", "image", "image")),
        ("<Video> <video > </video> video <<image>>", ("image",)),
    ],
)
def test_media_tags_come_in_order(content, tags):
    assert media_tags(content) == tags


@pytest.mark.timeout(20)
def test_media_tags_of_a_flood():
    assert media_tags("<" * 500_000 + "<video" * 100_000) == ()
    assert media_tags("<video>" * 100_000) == ("video",) * 100_000


@pytest.mark.parametrize("name", ["system", "prefix", "suffix", "prefill", "raw"])
def test_a_control_token_in_the_template_is_refused(name):
    with pytest.raises(ConfigError, match=rf"prompt.{name} holds the control token '<\|im_end\|>', .* '< \|im_end\|>'"):
        PromptTemplate(PromptSettings(**{name: "Go.<|im_end|>"}))


RAW = "User: {question} \nAssistant: Let me solve this step by step.\n"


def test_a_raw_prompt_has_the_question_with_the_suffix_and_nothing_else():
    template = PromptTemplate(PromptSettings(raw=RAW, suffix=" Think.", prefill="<think>"))
    assert template.apply((USER,)) == (Message(role="user", content=f"{USER.content} Think."),)
    assert template.complete("Brows.</think>") == "<think>Brows.</think>"


@pytest.mark.parametrize(
    ("messages", "roles"),
    [((SYSTEM, USER), "system, user"), ((USER, ASSISTANT, USER), "user, assistant, user")],
)
def test_a_raw_prompt_has_room_for_one_question(messages, roles):
    assert len(PromptTemplate().apply(messages)) == len(messages)
    with pytest.raises(
        DataError, match=rf"turns {roles}, and prompt.raw has room for one question; .* prompt.raw=null"
    ):
        PromptTemplate(PromptSettings(raw=RAW)).apply(messages)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"raw": "User: {q} Assistant:"}, r"prompt.raw holds \{question\} 0 times; write it once"),
        ({"raw": "{question} {question}"}, r"prompt.raw holds \{question\} 2 times"),
        ({"raw": ""}, r"prompt.raw holds \{question\} 0 times"),
        ({"raw": RAW, "system": "Be brief."}, "prompt.system is set, and prompt.raw has no turns"),
        ({"raw": RAW + "<think>"}, "prompt.raw ends with <think>, .* move it to prompt.prefill"),
        ({"raw": RAW + "<think>\n"}, "prompt.raw ends with <think>"),
    ],
)
def test_a_raw_prompt_that_cannot_work_is_refused(settings, sentence):
    with pytest.raises(ConfigError, match=sentence):
        PromptTemplate(PromptSettings(**settings))


def test_other_braces_and_closed_tags_are_text():
    PromptTemplate(PromptSettings(raw="Write \\boxed{2} {} {0} in <answer> </answer>. {question}</think>"))
