"""Stand-in trees of published emotion sets: the original names and lists, with empty or tiny files."""

from dataclasses import replace
from pathlib import Path

from lightning_mmrl.data.prepare.card import read_card
from lightning_mmrl.data.prepare.writer import PrepareSettings, prepare_set
from lightning_mmrl.data.synthetic.emotion_layouts import Layout, dfew_layout, mafw_layout, ravdess_names
from lightning_mmrl.workers.pool import CallResult

NOUNS = (
    *("anger", "disgust", "fear", "happiness", "neutral", "sadness", "surprise"),
    *("contempt", "anxiety", "helplessness", "disappointment"),
)
NUMBERED = ("happy", "sad", "neutral", "angry", "surprise", "disgust", "fear")
"""The labels of DFEW, 1 to 7."""
NUM_CLIPS = 20


class SaidKinds:
    """A guard that opens no file: it says what each holds, by its suffix, or as `held` says for the end of its path."""

    def __init__(self, **held):
        self.held = {name.replace("__", "."): kinds for name, kinds in held.items()}
        self.opened = []

    def run(self, examination, media, root, on_progress):
        outcomes = []
        for path, ref in media:
            self.opened.append(ref.path)
            usual = ["audio"] if path.suffix == ".wav" else ["video", "audio"]
            kinds = next((kinds for end, kinds in self.held.items() if ref.path.endswith(end)), usual)
            outcomes.append(
                CallResult(error=f"{ref.path}: file cannot be decoded; re-encode it")
                if kinds is None
                else CallResult(value=kinds)
            )
        return outcomes


def prepare(name, root, out, *, guard=None, counts=None, also=None, **settings):
    """Prepares a stand-in; `counts` and `also` take the place of the published ones."""
    card = read_card(name)
    options = {key: option.default for key, option in card.options.items()} | settings.pop("options", {})
    if counts is not None:
        subsets = {key: replace(subset, counts=counts, also=also or {}) for key, subset in card.subsets.items()}
        card = replace(card, subsets=subsets)
    return prepare_set(
        card,
        root,
        out,
        settings=PrepareSettings(options=options, **settings),
        guard=guard or SaidKinds(),
        on_progress=lambda done, total: None,
    )


def write_ravdess(root: Path, channel="speech", modality="01", suffix=".mp4", content=b"", actors=range(1, 25)) -> Path:
    """Folders such as Actor_01 with the recordings of one channel and one modality."""
    for name in ravdess_names(channel, list(actors)):
        folder = root / f"Actor_{name[-2:]}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{modality}-{name}{suffix}").write_bytes(content)
    return root


def write_dfew(root: Path, content=b"clip") -> Path:
    """Clips 1.mp4 to 20.mp4 with the labels 1 to 7 in turn, and the lists of five folds."""
    return _write(root, dfew_layout([NUMBERED[clip % 7] for clip in range(1, NUM_CLIPS + 1)]), content)


def write_mafw(root: Path, content=b"clip") -> Path:
    """Clips 00001.mp4 to 00020.mp4 with the eleven nouns in turn, and the lists of five folds."""
    labels = read_card("mafw").subsets["single"].labels
    return _write(root, mafw_layout([labels[NOUNS[clip % 11]] for clip in range(1, NUM_CLIPS + 1)]), content)


def _write(root: Path, layout: Layout, content: bytes) -> Path:
    files = dict.fromkeys(layout.clips, content) | {path: text.encode() for path, text in layout.lists.items()}
    for path, held in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(held)
    return root


def write_mer2025(root: Path, content=b"clip") -> Path:
    """Twelve clips with tables of labels, sets of words, descriptions and subtitles."""
    (root / "video").mkdir(parents=True)
    (root / "audio").mkdir()
    names = [f"sample_{number:08d}" for number in range(12)]
    for name in names:
        (root / "video" / f"{name}.mp4").write_bytes(content)
    labels = ["neutral", "angry", "happy", "sad", "worried", "surprise"]
    tables = {
        "track1_train_disdim": ["name,discrete,valence", *(f"{n},{labels[i % 6]},0.{i}" for i, n in enumerate(names))],
        "track2_train_ovmerd": ["name,openset", *(f"{name},\"['happy', 'relaxed']\"" for name in names[:5])],
        "track3_train_ovmerd": ["name,reason", *(f'{name},"She smiles, and nods."' for name in names[:5])],
        "subtitle_chieng": ["name,chinese,english", *(f"{name},\u4f60\u597d,Hello {name[-1]}" for name in names)],
    }
    for name, lines in tables.items():
        (root / f"{name}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


def counts_of(preparation) -> dict:
    """The user's counts by name."""
    return {each.name: each.found for each in preparation.counts}


def groups_of(preparation) -> list[str]:
    """The sorts of faults, in order."""
    return [problem.group for problem in preparation.problems]
