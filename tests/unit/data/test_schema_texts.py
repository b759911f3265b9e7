"""Texts of a manifest stay texts: media tags in answers and typed control tokens are refused with their line."""

import json

import pytest

from lightning_mmrl.cli.main import main
from lightning_mmrl.data.schema import Problem, read_manifest, scan_manifest
from lightning_mmrl.errors import DataError

ANSWER = "<think>Brows.</think><answer>happy</answer>"


@pytest.fixture
def scan(tmp_path):
    for name in ("1.png", "2.png"):
        (tmp_path / name).write_bytes(b"x")

    def scan(*rows):
        (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return list(scan_manifest(tmp_path / "train.jsonl", tmp_path))

    return scan


def turns(*contents):
    """Turns of user and assistant."""
    roles = ("user", "assistant") * 3
    return [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]


TAGGED = {
    "a target": {"messages": turns("<image>Describe", "The <image> is red"), "images": ["1.png", "2.png"]},
    "a target with an entry too few": {"messages": turns("<image>Describe", "<image>"), "images": ["1.png"]},
    "an earlier answer": {"messages": turns("?", "I drew <image>", "<image>And?"), "images": ["1.png", "2.png"]},
    "an answer about no medium": {"messages": turns("?", "say <audio>")},
    "a response": {"query": "<image>?", "response": "<image>", "images": ["1.png", "2.png"]},
    "a history": {"query": "?", "history": [["<image>?", "<video>"]], "images": ["1.png"]},
    "a conversation": {
        "conversations": [{"from": "human", "value": "<image>?"}, {"from": "gpt", "value": "<image>!"}],
        "images": ["1.png", "2.png"],
    },
}


@pytest.mark.parametrize("row", TAGGED.values(), ids=TAGGED.keys())
def test_a_media_tag_in_what_the_assistant_says_is_refused(scan, row):
    [problem] = scan(row)
    assert isinstance(problem, Problem)
    assert (problem.line, problem.group) == (1, "media tags")
    assert "the assistant turn" in problem.reason
    assert "media belong to the turns of user and system: reword the answer" in problem.reason


def test_media_of_users_and_of_the_system_count_wherever_they_stand(scan):
    messages = [{"role": "system", "content": "Like <image>:"}, *turns("<image>?", ANSWER, "And now?", ANSWER)]
    [entry] = scan({"messages": messages, "images": ["1.png", "2.png"]})
    assert [ref.path for ref in entry.sample.media] == ["1.png", "2.png"]


CONTROL = {
    "the end of a turn": ({"messages": turns("Which? <|im_end|>")}, "<|im_end|>"),
    "a turn of its own": ({"messages": turns("a<|im_end|>\n<|im_start|>system\nb")}, "<|im_end|>"),
    "a medium": ({"messages": turns("Which? <|AUDIO|>")}, "<|AUDIO|>"),
    "a marker": ({"messages": turns("<|vision_start|>?")}, "<|vision_start|>"),
    "the end of a text, in a target": ({"messages": turns("?", "happy<|endoftext|>")}, "<|endoftext|>"),
    "a system turn": ({"messages": [{"role": "system", "content": "<|im_start|>"}, *turns("?")]}, "<|im_start|>"),
    "a query": ({"query": "<|image_pad|>?", "response": "a"}, "<|image_pad|>"),
    "a response": ({"query": "?", "response": "<|box_start|>(1,2)<|box_end|>"}, "<|box_start|>"),
    "a system text": ({"query": "?", "system": "be <|im_end|>"}, "<|im_end|>"),
    "a history": ({"query": "?", "history": [["a", "<|eot_id|>"]]}, "<|eot_id|>"),
    "a conversation": ({"conversations": [{"from": "human", "value": "<|video_pad|>"}]}, "<|video_pad|>"),
}


@pytest.mark.parametrize(("row", "token"), CONTROL.values(), ids=CONTROL.keys())
def test_a_control_token_typed_in_a_text_is_refused(scan, row, token):
    [problem] = scan(row)
    assert isinstance(problem, Problem)
    assert (problem.line, problem.group) == (1, "control token")
    assert f"holds the control token '{token}', which" in problem.reason
    assert f"write it with a space, as '< {token[1:]}'" in problem.reason


@pytest.mark.parametrize(
    "text",
    ["< |im_end|>", "<|x|>", "a <| b", "|im_end|", "<think>|</think>", "<|a b|>", "<" + "|" * 90 + ">", "a<b|c>d"],
)
def test_a_text_that_only_looks_like_a_control_token_stays(scan, text):
    [entry] = scan({"messages": turns(text, text), "solution": "<|im_end|>"})
    assert entry.sample.messages[0].content == text


def test_validate_and_training_name_the_lines(tmp_path, scan, capsys):
    """The case tag_in_answer."""
    scan(TAGGED["a target"], {"messages": turns("?")}, CONTROL["a medium"][0])
    assert main(["data", "validate", f"{tmp_path}/train.jsonl", "--media-root", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "train.jsonl:1: the assistant turn 'The <image> is red' holds the media tag <image>" in out
    assert "train.jsonl:3: the user turn holds the control token '<|AUDIO|>'" in out
    assert "1 sample usable, 2 bad lines" in out
    with pytest.raises(DataError, match=r"train.jsonl:1: the assistant turn"):
        read_manifest(tmp_path / "train.jsonl", tmp_path)
