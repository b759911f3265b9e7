"""Texts that a model may write and that try to leave their place in a page, and runs that hold them everywhere."""

import json
from itertools import product
from pathlib import Path

from run_folders import RunFolder, rollout, whole_run

CODE = "alert(document.title)"
BREAKERS = (
    f"<script>{CODE}</script>",
    f"</script><script>{CODE}</script>",
    f"<img src=x onerror={CODE}>",
    f"<svg onload={CODE}>",
    f"<svg><animate onbegin={CODE} attributeName=x dur=1s>",
    f"<iframe srcdoc='<script>{CODE}</script>'></iframe>",
    "<iframe src=https://example.invalid/></iframe>",
    f"<body onload={CODE}>",
    f"<details open ontoggle={CODE}>x</details>",
    f"<input autofocus onfocus={CODE}>",
    f'<a href="javascript:{CODE}">x</a>',
    f"<math><mtext><style><img src=x onerror={CODE}></style></mtext></math>",
    "<meta http-equiv=refresh content='0;url=https://example.invalid/'>",
    "<link rel=stylesheet href=https://example.invalid/x.css>",
    "<base href=https://example.invalid/>",
    "<form action=https://example.invalid/><button>x</button></form>",
    "<object data=https://example.invalid/></object>",
    "<style>*{display:none}</style>",
    "<video src=https://example.invalid/ autoplay></video>",
    f"<template><script>{CODE}</script></template>",
    "<!--<script>",
    "--><!--",
    "]]>",
    "<textarea></textarea><title></title>",
    f"${{{CODE}}} #{{{CODE}}} {{{{constructor.constructor('{CODE}')()}}}} <%= {CODE} %> {{% raw %}}",
    f"`${{{CODE}}}`",
    '"}],"groups":[],"x":"',
    '\\u003cscript\\u003e\\\\\\"',
    "__proto__",
    "&lt;script&gt;&#60;&amp;&NewLine;",
    "a\x00b\x07c\x1b[2J\x1b]0;title\x07\x1b]8;;https://example.invalid/\x1b\\link\x1b]8;;\x1b\\",
    "\u202egnp.exe\u2066\u2067\u2069\u200f\u061c",
    "line\u2028separator\u2029paragraph\x85next\x0bvertical\x0cfeed",
    "\ufeff\u200b\u2060\u00ad zero width",
    "\ud800 half \udfff a character",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \u0645\u0631\u062d\u0628\u0627 \u8352\u8c2c e" + "\u0301" * 400,
    '=HYPERLINK("https://example.invalid/")',
    "../../../../etc/passwd file:///etc/passwd",
    "A" * 1_000_000,
    "<b>" * 300_000,
)
"""Markup, handlers, scripts, addresses, templates, JSON, escapes, control codes, directions, megabytes."""
WRAPS = (
    "{}",
    "<think>{}</think><answer>happy</answer>",
    "\"'>{}<\"'",
    "</pre></div></script>{}",
    "\n\n{}\r\n\t",
)
HOSTILE = tuple(wrap.replace("{}", text) for wrap, text in product(WRAPS, BREAKERS))
"""Two hundred of them."""
GROUP = 8
LONG = 800
"""Characters from which on the page lets the keyboard scroll an answer."""


def hostile_run(folder: Path) -> RunFolder:
    """A run whose answers, prompts, labels, ids, reasons, names of metrics, and name are hostile."""
    return _run(folder, HOSTILE, short=[text[:200] for text in BREAKERS])


def harmless_run(folder: Path) -> RunFolder:
    """A run of the same shape with plain texts: a page of it has the same elements."""
    plain = [_plain(place, text) for place, text in enumerate(HOSTILE)]
    return _run(folder, plain, short=[f"text {place}" for place in range(len(BREAKERS))])


def _plain(place: int, text: str) -> str:
    """A text of as many words, long if the other one is: such a one can be scrolled by the keyboard."""
    first = f"answer{place}" + ("x" * LONG if len(text) > LONG else "")
    return " ".join([first, *["word"] * (len(text.split()) - 1)])


def _run(folder: Path, texts, short) -> RunFolder:
    run = whole_run(folder)
    settings = run.folder / "config.yaml"
    settings.write_text(settings.read_text().replace(f"run_name: {folder.name}", f"run_name: {json.dumps(short[1])}"))
    for name in short:
        run.log("reason", name, [1.0, 2.0])
    rows = []
    for number in range(0, len(texts), GROUP):
        own = tuple(texts[number : number + GROUP])
        rewards = (1.0, 0.0) * (GROUP // 2)
        rows.append(rollout(number, texts=own, rewards=rewards, label=short[number // GROUP]))
    run.roll("reason", rows)
    run.evaluate("reason", [("happy", "happy"), ("sad", "sad")], texts=[texts[1], texts[2]])
    return run
