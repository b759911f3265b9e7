"""What a test reads from a page of runs."""

import base64
import gzip
import json
from html.parser import HTMLParser

from lightning_mmrl.report.page import page
from lightning_mmrl.report.run_files import read_run


def unpacked(text):
    content = json.loads(gzip.decompress(base64.b64decode(text)))
    texts = content["texts"]
    assert len(set(texts)) == len(texts)
    for group in content["groups"]:
        group["id"], group["label"] = texts[group["id"]], None if group["label"] is None else texts[group["label"]]
        group["turns"] = [[role, texts[number]] for role, number in group["turns"]]
        for each in group["responses"]:
            each["text"] = texts[each["text"]]
    return content["groups"]


class Parsed(HTMLParser):
    """Elements with their attributes, the content of scripts and styles, and the visible text."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.raw, self.text, self._within = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self._within = [tag, dict(attributes)]

    def handle_data(self, data):
        if self._within and self._within[0] in ("script", "style"):
            self.raw.append((*self._within, data))
        else:
            self.text.append(data)

    def handle_endtag(self, tag):
        self._within = []

    @property
    def data(self):
        return json.loads(next(each for _, attributes, each in self.raw if attributes.get("id") == "report-data"))

    @property
    def groups(self):
        """The groups of the browser, with texts in place of their numbers."""
        return unpacked(self.packed)

    @property
    def packed(self):
        return next(each for _, attributes, each in self.raw if attributes.get("id") == "report-answers")

    @property
    def sampled(self):
        return [group for group in self.groups if group["kind"] == "sampled"]

    def ids(self):
        return [attributes["id"] for _, attributes in self.elements if "id" in attributes]


def parsed(*folders):
    return Parsed(page([read_run(folder) for folder in folders]))


def missing(folder):
    run = read_run(folder)
    page([run])
    return run.missing
