"""A question to an expert is made of the turns before the answer and the content of the media, and of nothing else."""

import base64
from dataclasses import fields, replace

import pytest
from faulty_endpoint import FaultyEndpoint

from lightning_mmrl.app.experts import Consultation
from lightning_mmrl.curriculum.experts.chat import ChatBodies
from lightning_mmrl.curriculum.experts.endpoint import ChatEndpoint
from lightning_mmrl.curriculum.experts.ledger import Ledger
from lightning_mmrl.errors import DataError
from lightning_mmrl.prompts.template import PromptTemplate
from lightning_mmrl.settings.algorithm import SamplingSettings
from lightning_mmrl.settings.data import PromptSettings
from lightning_mmrl.settings.experts import EndpointSettings, ExpertSettings
from lightning_mmrl.settings.route import RouteSettings
from lightning_mmrl.types.records import MediaRef, Message, Sample

GOLD = "happy"
VIDEO, AUDIO = b"\0\0\0\0ftypmp42", b"RIFF1234WAVEfmt "
ASKED = (Message(role="user", content="<video><audio>2 + 2 = ?"),)
PROMPT = Sample(
    id=f"{GOLD}-001",
    messages=(*ASKED, Message(role="assistant", content=f"<think>I see.</think><answer>{GOLD}</answer>")),
    media=(
        MediaRef(kind="video", path=f"media/{GOLD}/001.mp4"),
        MediaRef(kind="audio", path=f"media/{GOLD}/001.wav"),
    ),
    solution=GOLD,
    speaker=GOLD,
    split=GOLD,
    extras={"label": GOLD, "chosen": f"<answer>{GOLD}</answer>", "answers": [GOLD], GOLD: 1},
)
"""The gold is wherever it can be but in the question."""
OTHERS = {
    "solution": "sad",
    "speaker": "sad",
    "split": "sad",
    "extras": {"label": "sad"},
    "messages": (*ASKED, *(Message(role="assistant", content=text) for text in ("sad", "<answer>sad</answer>"))),
}
"""Other values of all that an expert must not be told."""


@pytest.fixture
def place(tmp_path):
    for folder in (GOLD, "1"):
        (tmp_path / "media" / folder).mkdir(parents=True)
        (tmp_path / "media" / folder / "001.mp4").write_bytes(VIDEO)
        (tmp_path / "media" / folder / "001.wav").write_bytes(AUDIO)
    return tmp_path


def asking(folder, url="http://127.0.0.1:1/v1"):
    """The endpoint of a stage, and the part of the stage that makes its questions."""
    expert, sampling, endpoint = ExpertSettings(model="m"), SamplingSettings(), EndpointSettings(base_url=url)
    bodies = ChatBodies(expert, sampling, endpoint, folder)
    settings = RouteSettings(kind="route", sampling=sampling)
    template = PromptTemplate(PromptSettings(system="Look.", suffix=" Think."))
    consultation = Consultation(settings=settings, stage_seed=3, template=template, judge=None)
    ledger = Ledger(folder / "answers.jsonl")
    return ChatEndpoint(expert=expert, endpoint=endpoint, bodies=bodies, ledger=ledger), consultation


def test_all_that_is_sent_is_known_word_for_word(place):
    with FaultyEndpoint() as server:
        endpoint, consultation = asking(place, server.url)
        request = consultation.request(PROMPT, draw=0)
        endpoint.ask([request])
    assert server.bodies == [
        {
            "model": "m",
            "temperature": 1.0,
            "top_p": 1.0,
            "max_tokens": 512,
            "seed": request.draw_seed,
            "messages": [
                {"role": "system", "content": "Look."},
                {
                    "role": "user",
                    "content": [
                        {
                            "type": "video_url",
                            "video_url": {"url": f"data:video/mp4;base64,{base64.b64encode(VIDEO).decode()}"},
                        },
                        {
                            "type": "input_audio",
                            "input_audio": {"data": base64.b64encode(AUDIO).decode(), "format": "wav"},
                        },
                        {"type": "text", "text": "2 + 2 = ? Think."},
                    ],
                },
            ],
        }
    ]


@pytest.mark.parametrize("name", sorted({each.name for each in fields(Sample)} - {"id", "media"}))
def test_a_question_is_the_same_whatever_the_gold_is(place, name):
    """Each field of a sample but its id and media: a new one is among them by itself, and needs a value in `OTHERS`."""
    _, consultation = asking(place)
    assert consultation.request(replace(PROMPT, **{name: OTHERS[name]}), 0) == consultation.request(PROMPT, 0)


def test_no_id_and_no_path_is_sent(place):
    endpoint, consultation = asking(place)
    elsewhere = tuple(replace(ref, path=ref.path.replace(GOLD, "1")) for ref in PROMPT.media)
    first = consultation.request(PROMPT, 0)
    other = replace(consultation.request(replace(PROMPT, id="1", media=elsewhere), 0), draw_seed=first.draw_seed)
    assert (other.key, other.media) != (first.key, first.media)
    assert endpoint.bodies.body(other) == endpoint.bodies.body(first)
    assert endpoint.bodies.hash(other) == endpoint.bodies.hash(first)


def test_the_turns_and_the_content_of_the_media_are_sent(place):
    """The negative control: what may decide an answer does change the question."""
    endpoint, consultation = asking(place)
    before = endpoint.bodies.body(consultation.request(PROMPT, 0))
    asked = replace(PROMPT, messages=(Message(role="user", content="<video><audio>2 + 3 = ?"), *PROMPT.messages[1:]))
    assert endpoint.bodies.body(consultation.request(asked, 0)) != before
    (place / PROMPT.media[1].path).write_bytes(AUDIO + b"1")
    assert endpoint.bodies.body(consultation.request(PROMPT, 0)) != before


def test_a_prompt_that_does_not_end_with_its_question_is_not_asked(place):
    _, consultation = asking(place)
    last = Message(role="system", content=f"The answer is {GOLD}.")
    with pytest.raises(DataError, match="must end with a user turn"):
        consultation.request(replace(PROMPT, messages=(*PROMPT.messages, last)), 0)
