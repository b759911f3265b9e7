"""Arguments of `mmrl predict` that are refused before it looks for a model, and missing files."""

from pathlib import Path

import foreign
import pytest

from lightning_mmrl.app import predict as answer
from lightning_mmrl.cli.main import main
from lightning_mmrl.data.media.asked import chosen_media
from lightning_mmrl.data.media.guard import GuardedDecoder
from lightning_mmrl.errors import MediaError
from lightning_mmrl.settings.data import MediaSettings
from lightning_mmrl.types.records import Completion


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--max-new-tokens", "0", "a.wav"], "--max-new-tokens is 0; it must be at least 1"),
        (["a.wav", "--max-new-tokens", "-1"], "--max-new-tokens is -1; it must be at least 1"),
        (["--question", "Who?", "--max-new-tokens=-7"], "--max-new-tokens is -7; it must be at least 1"),
        (["--memory-mb", "0", "a.wav"], "--memory-mb is 0; it must be above 0"),
        (["--deadline", "nan", "a.wav"], "--deadline is nan; it must be above 0"),
        (["--question", ""], "--question is '', which is empty; say what to ask or leave it out"),
        (["--question", " \n", "a.wav"], "--question is ' \\n', which is empty; say what to ask"),
        ([], "there is nothing to ask about; name a video, picture or sound file, or give --question"),
    ],
)
def test_arguments_that_say_nothing_are_refused(capsys, arguments, sentence):
    assert main(["predict", "no handoff", *arguments]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"mmrl predict: {sentence}")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["H", "--audio", "a.wav", "v.mp4"],
        ["H", "v.mp4", "--audio", "a.wav"],
        ["--audio", "a.wav", "H", "v.mp4"],
        ["H", "--audio", "a.wav", "--", "v.mp4"],
    ],
)
def test_options_may_stand_anywhere(monkeypatch, arguments):
    asked = []

    def answers(checkpoint, files, *, sound, **_):
        asked.append((checkpoint, files, sound))
        return Completion(text="", num_tokens=1, truncated=False), ()

    monkeypatch.setattr(answer, "answer_question", answers)
    assert main(["predict", *arguments]) == 0
    assert asked == [(Path("H"), [Path("v.mp4")], Path("a.wav"))]


def test_the_bounds_of_decoding_reach_the_decoder(monkeypatch, tmp_path):
    """`mmrl data` has the same options, which its messages name."""
    made = []

    def media(files, settings, decoder, **_):
        made.append((decoder.deadline_s, decoder.memory_mb))
        raise MediaError("far enough")

    monkeypatch.setattr(answer, "chosen_media", media)
    handoff = str(foreign.write(tmp_path / "handoff", {}))
    assert main(["predict", handoff, "a.wav"]) == 2
    assert main(["predict", handoff, "a.wav", "--deadline", "60.5", "--memory-mb", "2048"]) == 2
    assert made == [(30.0, 1024), (60.5, 2048)]


@pytest.mark.parametrize(("name", "what"), [("folder", "is a folder"), ("none.wav", "does not exist")])
@pytest.mark.parametrize("as_sound", [False, True])
def test_no_file_is_said_as_it_is(tmp_path, name, what, as_sound):
    (tmp_path / "folder").mkdir()
    path = tmp_path / name
    with pytest.raises(MediaError, match=f"{name} {what}; name a video, picture or sound file$"):
        chosen_media(
            [] if as_sound else [path], MediaSettings(), GuardedDecoder(), sound=path if as_sound else None, hear=True
        )
