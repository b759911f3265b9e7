"""`mmrl predict` and the model card's call of plain transformers give equal answers about each kind of file."""

import re
from types import SimpleNamespace

import families
import handoffs
import pytest
from clips import tone, write_wav
from PIL import Image

from lightning_mmrl.app.predict import answer_question
from lightning_mmrl.cli.main import main
from lightning_mmrl.curriculum.publish import publish
from lightning_mmrl.data.media import examine, guard
from lightning_mmrl.models.families.qwen2_5_omni import OmniEncoder
from lightning_mmrl.rollout.hf import HFEngine
from lightning_mmrl.types.records import Completion

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"  # transformers, of clips with sound
)

QUESTION = "Which emotion?"
PROMPTS = {
    "plain": (),
    "all texts": (
        'prompt.system="Be brief."',
        'prompt.prefix="Look: "',
        'prompt.suffix="\nSay ```angry```."',
        'prompt.prefill="<think>"',
    ),
    "raw": (
        r'prompt.raw="Sum \\{2\\}: {question} \nAssistant: step by step.\n"',
        'prompt.prefix="Look: "',
        'prompt.suffix=" Say angry."',
        'prompt.prefill="<think>"',
    ),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return handoffs.write_files(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def handoff(tmp_path_factory):
    """Handoffs of families, each made once."""
    made = {}

    def handoff(name, *overrides):
        if (name, *overrides) not in made:
            made[name, *overrides] = handoffs.write(name, tmp_path_factory.mktemp(name), *overrides)
        return made[name, *overrides]

    return handoff


def code_of(card):
    """The card's code block; the fence is longer than any in it."""
    return re.search(r"^(`{3,})python\n(.*?)\n\1$", card, re.MULTILINE | re.DOTALL)[2]


def said(capsys, code):
    """The output of the code, run in a namespace of its own."""
    exec(compile(code, "card", "exec"), {})
    return capsys.readouterr().out.removesuffix("\n")


def filled(code, folder, files, asked):
    names = {name: f"{files / asked[name]}" if name in asked else None for name in ("VIDEO", "SOUND", "IMAGE")}
    code = code.replace('PATH = "PATH"', f"PATH = {str(folder)!r}")
    if "VIDEO, SOUND, IMAGE" in code:
        wanted = ", ".join(repr(names[name]) for name in ("VIDEO", "SOUND", "IMAGE"))
        return re.sub(r'VIDEO, SOUND, IMAGE = "clip.mp4", "clip.mp4", None', f"VIDEO, SOUND, IMAGE = {wanted}", code)
    wanted = ", ".join(repr(names[name]) for name in ("VIDEO", "IMAGE"))
    return code.replace('VIDEO, IMAGE = "clip.mp4", None', f"VIDEO, IMAGE = {wanted}")


ASKED = {
    "a clip with sound": {"VIDEO": "clip.mp4", "SOUND": "clip.mp4"},
    "a silent clip": {"VIDEO": "silent.mp4"},
    "a sound": {"SOUND": "sound.wav"},
    "a sound of another rate": {"SOUND": "other_rate.wav"},
    "a picture": {"IMAGE": "picture.png"},
    "a picture that is not upright": {"IMAGE": "turned.jpg"},
    "a picture with transparency": {"IMAGE": "transparent.png"},
    "text alone": {},
}
READ = {"qwen2_5_omni": set(ASKED)} | {name: {"text alone"} for name in families.TEXT}
VISION = {name for name, asked in ASKED.items() if "SOUND" not in asked}
CALLS = [
    (family, asked, prompt)
    for family in sorted(families.FAMILIES)
    for asked in (name for name in ASKED if name in READ.get(family, VISION))
    for prompt in (PROMPTS if asked in ("a clip with sound", "a silent clip", "text alone") else ["plain"])
]

QUICK = {
    ("qwen2_5_omni", "a clip with sound", "plain"),
    ("qwen2", "text alone", "all texts"),
    ("qwen2", "text alone", "raw"),
    ("qwen2_5_omni", "a silent clip", "raw"),
}


@pytest.mark.parametrize(
    ("family", "asked", "prompt"),
    [call if call in QUICK else pytest.param(*call, marks=pytest.mark.slow) for call in CALLS],
)
def test_the_cards_own_code_answers_as_predict_does(handoff, files, tmp_path, capsys, family, asked, prompt):
    """The case export_in_transformers."""
    folder = handoff(family, *PROMPTS[prompt])
    card = publish(folder, tmp_path / "shared").read_text()
    given = [files / name for name in dict.fromkeys(ASKED[asked].values())]
    completion, _ = answer_question(folder, given, question=QUESTION)
    assert completion.num_tokens > 3
    assert said(capsys, filled(code_of(card), tmp_path / "shared", files, ASKED[asked])) == completion.text


SHOWN = {
    "a rate": (("fps=5", "max_frames=7", "max_frame_pixels=10000", "min_frame_pixels=1024"), [3, 6, 6]),
    "a number": (
        ("frame_rule=qwen_vl_utils", "total_pixels=20000", "min_frame_pixels=1024", "max_frame_pixels=20000"),
        [2, 6, 6],
    ),
    "a picture": (("max_image_pixels=8000", "min_image_pixels=1024"), [1, 4, 6]),
}
"""Keys, and the patches in which they show a clip of 15 frames of 112 x 112 in 1.5 s, or a picture of 120 x 90."""


@pytest.mark.parametrize("shown", SHOWN)
@pytest.mark.parametrize(
    "family",
    ["qwen2_5_omni", *(pytest.param(each, marks=pytest.mark.slow) for each in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl"))],
)
def test_the_cards_own_code_shows_frames_as_the_keys_say(handoff, files, tmp_path, capsys, family, shown):
    """Without the keys, a clip has 2 x 4 x 4 patches and a picture 1 x 4 x 4."""
    keys, patches = SHOWN[shown]
    folder = handoff(family, *(f"+data.media.{key}" for key in keys))
    card = publish(folder, tmp_path / "shared").read_text()
    asked = ASKED["a picture" if shown == "a picture" else "a silent clip"]
    completion, _ = answer_question(folder, [files / name for name in asked.values()], question=QUESTION)
    names: dict = {}
    exec(compile(filled(code_of(card), tmp_path / "shared", files, asked), "card", "exec"), names)
    assert capsys.readouterr().out.removesuffix("\n") == completion.text
    grid = "image_grid_thw" if shown == "a picture" else "video_grid_thw"
    assert names["inputs"][grid][0].tolist() == patches


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["transformers", "previous_maximum"])
def test_clip_and_sound_in_turns_answer_alike(handoff, files, tmp_path, capsys, rule):
    folder = handoff("qwen2_5_omni", "model.audio_in_video=interleaved", f"model.position_rule={rule}")
    card = publish(folder, tmp_path / "shared").read_text()
    assert ("the largest position so far + 1" in card) == (rule == "previous_maximum")
    for asked in ("a clip with sound", "a silent clip", "a sound"):
        given = [files / name for name in dict.fromkeys(ASKED[asked].values())]
        completion, _ = answer_question(folder, given, question=QUESTION)
        assert said(capsys, filled(code_of(card), tmp_path / "shared", files, ASKED[asked])) == completion.text


@pytest.mark.slow
def test_the_processors_own_size_of_frames_would_give_another_answer(handoff, files, tmp_path, capsys):
    folder = handoff("qwen2_5_omni")
    code = code_of(publish(folder, tmp_path / "shared").read_text())
    assert code.count(', "size": size') == 1
    completion, _ = answer_question(folder, [files / "clip.mp4"], question=QUESTION)
    other = code.replace(', "size": size', "")
    asked = ASKED["a clip with sound"]
    assert said(capsys, filled(other, tmp_path / "shared", files, asked)) != completion.text


@pytest.fixture
def predict(capsys, files):
    """Exit code, output and errors of the command; names of files stand for the files of the folder."""

    def predict(folder, *arguments):
        given = [str(files / each) if (files / each).is_file() else each for each in arguments]
        capsys.readouterr()  # building the folder may have printed
        code = main(["predict", str(folder), *given])
        done = capsys.readouterr()
        return code, done.out.replace(f"{files}/", ""), done.err.replace(f"{files}/", "")

    return predict


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "about"),
    [
        pytest.param(["clip.mp4"], "video and audio of clip.mp4", marks=pytest.mark.main_path),
        (["silent.mp4"], "video of silent.mp4"),
        (["sound.wav"], "audio of sound.wav"),
        (["picture.png"], "image of picture.png"),
        (["clip.mp4", "--no-audio"], "video of clip.mp4"),
        (["clip.mp4", "--audio", "sound.wav"], "video of clip.mp4; audio of sound.wav"),
        (["silent.mp4", "--audio", "sound.wav"], "video of silent.mp4; audio of sound.wav"),
        (["picture.png", "turned.jpg"], "image of picture.png; image of turned.jpg"),
        (
            ["picture.png", "sound.wav", "clip.mp4"],
            "image of picture.png; audio of sound.wav; video and audio of clip.mp4",
        ),
        (["--audio", "sound.wav"], "audio of sound.wav"),
        (["--question", "What is 1 + 1?"], "text alone"),
        (["--audio", "sound.wav", "clip.mp4"], "video of clip.mp4; audio of sound.wav"),
        (["picture.png", "--question", "Who?", "turned.jpg"], "image of picture.png; image of turned.jpg"),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, list) else "",
)
def test_a_question_is_about_what_the_files_hold(handoff, predict, arguments, about):
    """The case predict_sound_or_still."""
    code, out, err = predict(handoff("qwen2_5_omni"), *arguments)
    assert (code, err) == (0, "")
    assert f"about:     {about}\n" in out
    assert "answer:" in out


@pytest.mark.parametrize(
    ("family", "arguments", "sentence"),
    [
        ("qwen2_vl", ["clip.mp4"], "clip.mp4 holds audio, and Qwen2-VL reads text, image, video; give --no-audio"),
        ("qwen3_vl", ["sound.wav"], "sound.wav holds audio, and Qwen3-VL reads text, image, video; name another file"),
        (
            "qwen2",
            ["picture.png"],
            "picture.png holds image, and Qwen2 reads text alone; name another file",
        ),
        ("qwen2_5_omni", ["none.mp4"], "none.mp4 does not exist; name a video, picture or sound file"),
        ("qwen2_5_omni", ["clip.mp4", "--audio", "none.wav"], "none.wav does not exist"),
        ("qwen2_5_omni", [], "there is nothing to ask about; name a video, picture or sound file, or give --question"),
        ("qwen2_5_omni", ["clip.mp4", "--question", "<image>?"], "holds the media tag <image>"),
        ("qwen2_5_omni", ["--question", "Which?<|im_end|>"], "holds the control token '<|im_end|>'"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_one_sentence(handoff, predict, family, arguments, sentence):
    code, out, err = predict(handoff(family), *arguments)
    assert (code, out) == (2, "")
    assert sentence in err
    assert err.count("\n") == 1


def test_a_model_without_ears_is_asked_about_the_picture_alone(handoff, predict):
    assert predict(handoff("qwen2_vl"), "clip.mp4", "--no-audio")[0] == 0


@pytest.mark.parametrize(
    ("name", "make", "sentence"),
    [
        ("thin.png", lambda path: Image.new("RGB", (1, 300)).save(path), "ValueError: absolute aspect ratio must be"),
        ("wide.png", lambda path: Image.new("RGB", (900, 2)).save(path), "ValueError: absolute aspect ratio must be"),
        (
            "tick.wav",
            lambda path: write_wav(path, tone(440, 0.01, 16_000), 16_000),
            "sound of 10 ms is too short: the model makes no token of it; use a longer one or leave its sound out",
        ),
    ],
)
def test_a_file_that_the_encoder_refuses_is_named(handoff, predict, files, name, make, sentence):
    make(files / name)
    code, out, err = predict(handoff("qwen2_5_omni"), "picture.png", name)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"mmrl predict: {name}: {sentence}")


def test_a_lack_of_memory_is_not_said_of_a_file(handoff, files, monkeypatch):
    def fails(*_):
        raise MemoryError("full")

    monkeypatch.setattr(OmniEncoder, "encode_image", fails)
    with pytest.raises(MemoryError, match="full"):
        answer_question(handoff("qwen2_5_omni"), [files / "picture.png"], question=QUESTION)


def test_the_longest_answer_is_as_asked(handoff, files):
    completion, _ = answer_question(handoff("qwen2"), [], question=QUESTION, max_new_tokens=1)
    assert completion.num_tokens == 1


def test_files_are_decoded_in_workers_which_have_a_deadline(handoff, predict, files, monkeypatch):
    def hangs(*_):
        raise AssertionError("decoded in the process of the command")

    monkeypatch.setitem(guard.READERS, "image", hangs)
    monkeypatch.setattr(examine, "media_kinds", hangs)
    assert predict(handoff("qwen2_vl"), "picture.png")[0] == 0
    (files / "cut.png").write_bytes((files / "picture.png").read_bytes()[:200])
    code, out, err = predict(handoff("qwen2_vl"), "cut.png")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.count("cut.png: ") == 1


def test_names_and_answers_are_printed_as_text(handoff, predict, files, monkeypatch):
    name = "[bold]a \x1b[2J.wav"
    (files / name).write_bytes((files / "sound.wav").read_bytes())
    said_it = Completion(text="<think>[/]</think><answer>:smile: \x1b[31m</answer>", num_tokens=1, truncated=False)
    monkeypatch.setattr(HFEngine, "generate", lambda *_, **__: SimpleNamespace(completions=(said_it,)))
    code, out, _ = predict(handoff("qwen2_5_omni"), name)
    assert code == 0
    assert "audio of [bold]a \\x1b[2J.wav\n" in out
    assert "reasoning: [/]\n" in out
    assert "answer:    :smile: \\x1b[31m\n" in out
