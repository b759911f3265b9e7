"""The commonest mistakes in each format: a change of a published row, and what the message must say."""

import json
from typing import Any, NamedTuple

from published_layout import A

DROP = object()
TOKEN = "Which? <|im_end|>"
LATE = [{"role": "user", "content": "<image>Q"}, {"role": "system", "content": "S"}]
SAYS_IMAGE = [{"role": "user", "content": "<image>Q"}, {"role": "assistant", "content": "see <image>"}]
TOOL = [{"role": "tool", "content": "<image>Q"}]
NO_TEXT = [{"role": "user", "text": "<image>Q"}]
BLANK = [{"role": "user", "content": " "}]
TWO_TAGS = [{"role": "user", "content": "<image><image>Q"}]
ROLES = "user, gpt, assistant, system"


class Mistake(NamedTuple):
    """Changes of the published row (`row`, from 0) by dotted paths, and parts of the message."""

    what: str
    changes: dict[str, Any]
    says: tuple[str, ...]
    row: int = 0


def turns(column: str, row: int = 0) -> list[Mistake]:
    """Mistakes in a list of role and content."""
    needs = f"{column!r} turn "
    return [
        Mistake("no turns", {column: DROP}, (repr(column),), row),
        Mistake("empty turns", {column: []}, (repr(column),), row),
        Mistake("turns as number", {column: 7}, (f"{column!r} is 7", "must be a list"), row),
        Mistake("role of a tool", {column: TOOL}, (needs, "'tool'", "needs a 'role' of", ROLES), row),
        Mistake("content missing", {column: NO_TEXT}, (needs, "needs text or a list of parts in 'content'"), row),
        Mistake("blank turn", {column: BLANK}, (f"{needs}1, the user's, is blank", "write its text"), row),
        Mistake("late system turn", {column: LATE}, (f"{needs}2 is a system turn", "move or merge"), row),
        Mistake("turn is a text", {column: ["Q"]}, (f"{needs}'Q' needs a 'role' of",), row),
        Mistake("tag in an answer", {column: SAYS_IMAGE}, ("<image>", "tag"), row),
    ]


def asks(column: str, row: int = 0, *, system: bool = False, tag: str = "<image>") -> list[Mistake]:
    """Mistakes in a column with the text of a question."""
    more = (
        [Mistake("system is a list", {"system": ["S"]}, ("'system' is ['S']", "must be text"), row)] if system else []
    )
    return [
        Mistake("question missing", {column: DROP}, (repr(column), "missing"), row),
        Mistake("question blank", {column: " "}, (f"{column!r} is missing or blank", "fill it in"), row),
        Mistake("question is a list", {column: ["Q"]}, (f"{column!r} is ['Q']", "must be text"), row),
        Mistake("control token", {column: f"{tag}{TOKEN}"}, ("<|im_end|>", "remove it"), row),
        Mistake(
            "too many tags", {column: "<image><image><image>Q"}, (f"3 <image> tags in {column!r}", "one entry"), row
        ),
        *more,
    ]


def files(column: str, row: int = 0, *, single: bool = False) -> list[Mistake]:
    """Mistakes in a column of paths."""

    def mistake(what: str, value: Any, *says: str) -> Mistake:
        return Mistake(what, {column: value if single else [value]}, says, row)

    return [
        mistake("file missing", "pics/none.png", "'pics/none.png' does not exist", "add it or drop"),
        mistake("path climbs", "../a.png", "'../a.png' must be relative to media_root"),
        mistake("address", "https://a.b/c.png", f"{column!r} entry 'https://a.b/c.png' is an address", "download"),
        mistake("absolute elsewhere", "/data/none.png", f"{column!r} entry '/data/none.png' is an absolute path"),
        mistake("entry is a number", 7, f"{column!r} entry 7 must be a path"),
        mistake("entry is blank", " ", f"{column!r} entry ' ' must be a path"),
        mistake("list of frames", [["f1.png", "f2.png"]], f"{column!r} entry ", "is a list of frames", "name one file"),
        mistake("broken base64", "data:image/png;base64,@@", f"{column!r} entry holds a medium that is no base64"),
        mistake("a folder", "pics", "'pics' does not exist", "no regular file"),
    ]


def inside(column: str, row: int = 0) -> list[Mistake]:
    """Mistakes in a column of media that lie in the table."""
    return [
        Mistake(
            "no bytes", {column: [{"bytes": b"", "path": None}]}, (f"{column!r} entry holds a medium of 0 bytes",), row
        ),
        Mistake("nothing in it", {column: [{"path": None}]}, (f"{column!r}",), row),
        Mistake("bytes as text", {column: [{"bytes": "x"}]}, (f"{column!r} entry", "'bytes' that are no bytes"), row),
        Mistake("entry is a number", {column: [7]}, (f"{column!r} entry 7 must be a path or {{bytes, path}}",), row),
        Mistake("file missing", {column: [{"path": "no.png"}]}, ("'no.png' does not exist",), row),
        Mistake("address", {column: [{"path": "https://a.b/c"}]}, ("https://a.b/c", "is an address"), row),
        Mistake("list of frames", {column: [["a.png", "b.png"]]}, ("is a list of frames",), row),
        Mistake("climbs", {column: [{"path": "../a.png"}]}, ("'../a.png' must be relative",), row),
    ]


def golds(column: str, row: int = 0, *, required: bool = True) -> list[Mistake]:
    """Mistakes in a column with the right answer."""
    more = [
        Mistake("answer missing", {column: DROP}, (f"{column!r} is missing or blank", "fill it in"), row),
        Mistake("answer blank", {column: " "}, (f"{column!r} is missing or blank",), row),
    ]
    return [
        Mistake("answer is a list", {column: ["3", "4"]}, (f"{column!r} is ['3', '4']", "must be text"), row),
        Mistake("answer is an object", {column: {"a": "3"}}, (f"{column!r} is ", "must be text"), row),
        Mistake("answer is true", {column: True}, (f"{column!r} is True", "must be text"), row),
        *(more if required else []),
    ]


BOTH = {"image": "pics/a.png", "images": ["pics/a.png"]}
SWIFT = [
    *turns("messages")[2:],
    *files("images"),
    *golds("solution", required=False),
    Mistake("no layout", {"messages": DROP}, ("the row has none of messages, conversations, query, instruction",)),
    Mistake("two layouts", {"query": "Q"}, ("the row has 'messages', 'query'", "one layout")),
    Mistake("both columns", BOTH, ("both 'images' and 'image' are given", "keep")),
    Mistake("history", {"history": ["Hi."]}, ("'history' entry 'Hi.' must be a pair",), 1),
    Mistake(
        "two tags, one picture", {"messages": TWO_TAGS}, ("2 <image> tags in 'messages' but 1 entries in 'images'",)
    ),
]
LLAMA = [
    *turns("messages")[1:3],
    Mistake("role of a tool", {"messages": TOOL}, ("'messages' turn", "'tool'", "of user, assistant, system")),
    *turns("messages")[4:],
    *files("images"),
    Mistake(
        "two tags, one picture", {"messages": TWO_TAGS}, ("2 <image> tags in 'messages' but 1 entries in 'images'",)
    ),
    Mistake("tools", {"tools": "[{}]"}, ("'tools' is '[{}]'", "turns of tools are not read")),
    Mistake("solution is a list", {"solution": ["3"]}, ("'solution' is ['3']", "must be text")),
]
ALPACAS = [
    *asks("instruction", 1, system=True),
    *files("images", 1),
    Mistake("history", {"history": [["Hi."]]}, ("'history' entry ['Hi.'] must be a pair of two texts",)),
    Mistake("history is a number", {"history": 0.1}, ("'history' is 0.1", "must be a list of pairs")),
    Mistake("history of objects", {"history": [{"q": "a"}]}, ("'history' entry {'q': 'a'} must be a pair",)),
    Mistake("output is a list", {"output": ["3"]}, ("'output' is ['3']", "must be text")),
    Mistake("input is a list", {"input": ["3"]}, ("'input' is ['3']", "must be text")),
    Mistake("tag in the answer", {"output": "<image>"}, ("<image>",)),
]
LLAVAS = [
    *files("image", 1, single=True)[:6],
    *files("image", 1, single=True)[7:],
    *golds("answer", 1, required=False),
    Mistake("no turns", {"conversations": DROP}, ("'conversations' is None", "must be a list of {from, value}")),
    Mistake("turns as text", {"conversations": {}}, ("'conversations' is {}", "must be a list")),
    Mistake("role", {"conversations.0.from": "robot"}, ("'robot'", "needs a 'from' of human, user, gpt")),
    Mistake("value missing", {"conversations.0.value": DROP}, ("needs text or a list of parts in 'value'",)),
    Mistake("value blank", {"conversations.0.value": ""}, ("turn 1, the user's, is blank",)),
    Mistake(
        "two videos for one tag", {"video": ["clips/1.mp4"] * 2}, ("1 <video> tags in 'conversations' but 2 entries",)
    ),
    Mistake("both columns", {"images": ["pics/a.png"]}, ("both 'images' and 'image' are given",), 1),
    Mistake("tag in the answer", {"conversations.1.value": "<video>"}, ("<video>", "tag")),
    Mistake("control token", {"conversations.0.value": f"<video>{TOKEN}"}, ("<|im_end|>", "remove it")),
]
MODEL = "reward_model"
VERLS = [
    *turns("prompt")[2:8],
    *inside("images"),
    Mistake("no prompt", {"prompt": DROP}, ("'prompt' is None", "must be a list")),
    Mistake("no reward model", {MODEL: DROP}, ("'reward_model' is None", "an object with 'ground_truth'")),
    Mistake("reward model as text", {MODEL: "x"}, ("'reward_model' is 'x', which is no JSON",)),
    Mistake("no ground truth", {MODEL: {"style": "rule"}}, ("'reward_model.ground_truth' is missing or blank",)),
    Mistake("blank ground truth", {f"{MODEL}.ground_truth": ""}, ("'reward_model.ground_truth' is missing or blank",)),
    Mistake("several truths", {f"{MODEL}.ground_truth": ["1", "2"]}, ("'reward_model.ground_truth' is ['1', '2']",)),
    Mistake(
        "two tags", {"prompt": TWO_TAGS}, ("2 <image> tags in 'prompt' but 1 entries in 'images'", "one entry per tag")
    ),
]
ASKED = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "a"}]
TRL = [
    *inside("images"),
    *golds("solution", required=False),
    Mistake("nothing asked", {"prompt": DROP}, ("neither 'messages' nor 'prompt'", "must have one")),
    Mistake("both", {"messages": TWO_TAGS}, ("both 'messages' and 'prompt'",)),
    Mistake("another question", {"chosen": ASKED}, ("'prompt' and 'chosen' begin with different turns",)),
    Mistake("a pair without an answer", {"rejected": ASKED[:1]}, ("'rejected' does not end with an assistant turn",)),
    Mistake("number", {"prompt": 7}, ("'prompt' is 7", "must be a list")),
    Mistake(
        "part",
        {"prompt.0.content": [{"type": "picture"}]},
        ("'prompt' part", "'picture'", "needs a 'type' of text, image"),
    ),
    Mistake("tool", {"prompt": TOOL}, ("'prompt' turn", "needs a 'role' of", ROLES)),
    Mistake("blank", {"prompt": BLANK}, ("'prompt' turn 1, the user's, is blank",)),
    Mistake("late system turn", {"prompt": LATE}, ("'prompt' turn 2 is a system turn",)),
    Mistake("two tags", {"prompt": TWO_TAGS}, ("2 <image> tags in 'prompt' but 1 entries in 'images'",)),
]
EUREKA = [
    *turns("conversations")[1:8],
    *files("image_urls"),
    *golds("answer", required=False),
    Mistake(
        "two tags", {"conversations": TWO_TAGS}, ("2 <image> tags in 'conversations' but 1 entries in 'image_urls'",)
    ),
    Mistake("turns as text", {"conversations": "[{"}, ("'conversations' is '[{', which is no JSON", "list of turns")),
]


def message(content: Any, role: str = "user") -> str:
    return json.dumps([{"role": role, "content": content}])


def part(value: Any, kind: str = "image") -> str:
    return message([{"type": kind, kind: value}, {"type": "text", "text": "Q"}])


LMM = [
    *golds("answer", required=False),
    Mistake("no message", {"message": DROP}, ("'message' is missing or blank", "fill it in")),
    Mistake("blank", {"message": ""}, ("'message' is missing or blank",)),
    Mistake("a list", {"message": []}, ("'message' is []", "must be text")),
    Mistake("no JSON", {"message": "[{'role'}]"}, ("""'message' is "[{'role'}]", which is no JSON""",)),
    Mistake("a number", {"message": "7"}, ("'message' is 7", "must be a list")),
    Mistake("empty", {"message": "[]"}, ("'message' is []",)),
    Mistake("role", {"message": message("Q", "tool")}, ("'message' turn", "'tool'", ROLES)),
    Mistake("no content", {"message": message(None)}, ("'message' turn", "needs text or a list of parts in 'content'")),
    Mistake("blank text", {"message": message(" ")}, ("'message' turn 1, the user's, is blank",)),
    Mistake("part", {"message": message([{"type": "photo"}])}, ("'message' part", "'photo'", "needs a 'type' of")),
    Mistake("part without type", {"message": message([{"image": "a"}])}, ("'message' part", "needs a 'type' of")),
    Mistake("text is null", {"message": message([{"type": "text"}])}, ("'message' part", "needs a 'type' of")),
    Mistake("file missing", {"message": part("pics/none.png")}, ("'pics/none.png' does not exist",)),
    Mistake(
        "elsewhere", {"message": part("file:///data/none.png")}, ("'message' entry 'file:///data/none.png' is an",)
    ),
    Mistake("address", {"message": part("http://a.b/c.png")}, ("'message' entry 'http://a.b/c.png' is an address",)),
    Mistake("climbs", {"message": part("../a.png")}, ("'../a.png' must be relative",)),
    Mistake("no value", {"message": part(None)}, ("1 <image> tags in 'message' but 0 entries in 'images'",)),
    Mistake(
        "base64", {"message": part("data:image/png;base64,@")}, ("'message' entry holds a medium that is no base64",)
    ),
    Mistake("two places", {"images": ["pics/a.png"]}, ("in the parts of 'message' and in 'images' too", "keep one")),
    Mistake("control token", {"message": message(TOKEN)}, ("<|im_end|>",)),
]
COLD = [
    *turns("messages", 1)[1:],
    *files("images", 1),
    Mistake("no turns", {"conversations": DROP}, ("'conversations' is None", "must be a list")),
    Mistake("role", {"conversations.0.from": "robot"}, ("'robot'", "needs a 'from' of")),
    Mistake("two tags", {"messages": TWO_TAGS}, ("2 <image> tags in 'messages' but 1 entries in 'images'",), 1),
    Mistake("both columns", {"images": ["pics/a.png"]}, ("both 'images' and 'image' are given",)),
]
SATS = [
    *asks("question", tag=""),
    *golds("correct_answer"),
    Mistake("no options", {"answers": DROP}, ("'answers' is None", "must be a list of the options' texts")),
    Mistake("empty options", {"answers": []}, ("'answers' is []",)),
    Mistake("options as text", {"answers": "left"}, ("'answers' is 'left'",)),
    Mistake("numbers", {"answers": [1, 2]}, ("'answers' is [1, 2]",)),
    Mistake("blank option", {"answers": ["left", ""]}, ("'answers' is ['left', '']",)),
    Mistake(
        "other answer", {"correct_answer": "up"}, ("'correct_answer' 'up' is none of 'answers' ['left', 'right']",)
    ),
    Mistake("letter", {"correct_answer": "A"}, ("'correct_answer' 'A' is none of 'answers'", "correct it")),
    Mistake("no bytes", {"image_bytes": [b""]}, ("'image_bytes' entry holds a medium of 0 bytes",)),
    Mistake("address", {"image_bytes": ["http://a.b/c"]}, ("'image_bytes' entry 'http://a.b/c' is an address",)),
    Mistake("numbers as pictures", {"image_bytes": [7]}, ("'image_bytes' entry 7 must be a path",)),
    Mistake("one tag", {"question": "<image>Q"}, ("1 <image> tags in 'question' but 2 entries in 'image_bytes'",)),
]
GEOMETRY = [
    *asks("problem"),
    *inside("images"),
    *golds("answer"),
    Mistake("two columns", {"image": {"bytes": A}}, ("both 'images' and 'image' are given",)),
    Mistake("other layout", {"prompt": "Q"}, ("'prompt' stands beside 'problem'", "name the format")),
    Mistake("two tags", {"problem": "<image><image>Q"}, ("2 <image> tags in 'problem' but 1 entries in 'images'",)),
]
TABLE = [
    Mistake("no answer", {"answer": DROP}, ("no answer in any of label, emotion", "fill it in")),
    Mistake("blank answer", {"answer": ""}, ("no answer in any of",)),
    Mistake("file missing", {"video": "clips/none.mp4"}, ("'clips/none.mp4' does not exist",)),
    Mistake(
        "no medium for a tag", {"video": "", "question": "<video>Q"}, ("1 <video> tags in 'question' but 0 entries",)
    ),
    Mistake(
        "absolute", {"video": "/data/x.mp4"}, ("'video' entry '/data/x.mp4' is an absolute path", "set media_root")
    ),
    Mistake("climbs", {"video": "../1.mp4"}, ("'../1.mp4' must be relative",)),
    Mistake("address", {"video": "http://a.b/1.mp4"}, ("'video' entry 'http://a.b/1.mp4' is an address",)),
    Mistake("backslashes", {"video": "\\clips\\1.mp4"}, ("must be relative to media_root",)),
    Mistake("home", {"video": "~/1.mp4"}, ("'~/1.mp4' must be relative",)),
    Mistake("start is a word", {"start": "soon"}, ("'start' is 'soon'", "a time in seconds"), 1),
    Mistake("end is a word", {"end": "late"}, ("'end' is 'late'", "such as 65.5"), 1),
    Mistake("ends early", {"end": "1"}, ("ends before it starts (1.5 to 1.0 s)",), 1),
    Mistake("negative", {"start": "-1"}, ("'start' is '-1'",), 1),
    Mistake(
        "span of a picture", {"video": "", "audio": "", "image": "pics/a.png", "start": "1"}, ("'start' and 'end'",)
    ),
    Mistake("control token", {"question": TOKEN}, ("<|im_end|>",)),
    Mistake("two tags", {"question": "<video><video>Q"}, ("2 <video> tags in 'question' but 1 entries in 'video'",)),
    Mistake(
        "unknown kind",
        {"video": "", "audio": "", "file": "notes.xyz"},
        ("'file' is 'notes.xyz', whose name says no kind",),
    ),
    Mistake("two files", {"file": "clips/1.mp4"}, ("both 'file' and 'video' name a video",)),
    Mistake("a folder", {"video": "clips"}, ("'clips' does not exist",)),
    Mistake("frames", {"image": "f1.png;f2.png"}, ("'f1.png;f2.png' does not exist",)),
]
STRICT = [
    Mistake("no turns", {"messages": DROP}, ("'messages' is missing (found", "give a list")),
    Mistake("empty turns", {"messages": []}, ("'messages' is []", "must be a non-empty list")),
    Mistake("role", {"messages": TOOL}, ("message", "needs a role of system, user, assistant")),
    Mistake("no content", {"messages": NO_TEXT}, ("needs a role of",)),
    Mistake("blank", {"messages": BLANK}, ("turn 1, the user's, is blank",)),
    Mistake("late system turn", {"messages": LATE}, ("turn 2 is a system turn", "move or merge")),
    Mistake("tag in an answer", {"messages": SAYS_IMAGE}, ("holds the media tag <image>",)),
    Mistake("parts", {"messages": [{"role": "user", "content": []}]}, ("has a list as content", "write text with")),
    Mistake("two tags", {"messages": TWO_TAGS}, ("2 <image> tags in the messages but 1 entries in 'images'",)),
    Mistake("no tag", {"messages": [{"role": "user", "content": "Q"}]}, ("0 <image> tags in the messages",)),
    Mistake("control token", {"messages.0.content": f"<image>{TOKEN}"}, ("<|im_end|>", "remove it")),
    Mistake("two layouts", {"query": "Q"}, ("'messages' stands beside 'query'", "keep one layout")),
    Mistake("both columns", BOTH, ("both 'images' and 'image' are given",)),
    Mistake("file missing", {"images": ["no.png"]}, ("'no.png' does not exist",)),
    Mistake("absolute", {"images": ["/a.png"]}, ("'/a.png' must be relative to media_root",)),
    Mistake("inline bytes", {"images": [{"bytes": "x"}]}, ("'images' has an entry with inline bytes", "write a file")),
    Mistake("number", {"images": [7]}, ("'images' entry 7 must be a path",)),
    Mistake("span of a picture", {"images": [{"path": "pics/a.png", "end": 1}]}, ("gives an image a time", "remove")),
    Mistake("solution", {"solution": ["3"]}, ("'solution' is ['3']", "must be a string")),
    Mistake("labels", {"labels": ["1", "2"]}, ("solution '3' is none of 'labels' ['1', '2']", "correct one")),
]
