"""A small file in the published layout of each format, and the samples that it holds.

The layouts are written down here by hand, from what the publishers document; no code of the package is used to
write them.
"""

import json

from published_benchmarks import BENCHMARKS
from published_layout import (
    CLIP,
    A,
    B,
    Published,
    asked,
    image,
    inline,
    write_array,
    write_arrow,
    write_csv,
    write_lines,
    write_parquet,
)

from lightning_mmrl.types.records import MediaRef, Sample

OLD = "/mnt/old/place/"
THOUGHT = "<think>It is drawn.</think><answer>3</answer>"
LLAMA_INFO = {
    "mmo": {
        "file_name": "mmo.json",
        "formatting": "sharegpt",
        "columns": {"messages": "messages", "images": "images", "videos": "videos", "audios": "audios"},
        "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"},
    }
}
EMOTION = "<video>\n<audio>\nWhich emotion?"
USER_SHAPE = {"role": "user", "content": "<image>How many?"}
PARTS = [
    {"role": "system", "content": "Be brief."},
    {
        "role": "user",
        "content": [{"type": "image", "image": f"file://{OLD}pics/a.png"}, {"type": "text", "text": "How?"}],
    },
]
IMAGE_A, IMAGE_B = (image("pics/a.png"),), (image("pics/b.png"),)
CANONICAL = Published(
    format="canonical",
    file="train.jsonl",
    rows=[
        {"id": "a", "messages": [USER_SHAPE], "images": ["pics/a.png"], "solution": "3", "level": 2},
        {
            "id": "b",
            "messages": [{"role": "user", "content": "<video><audio>Which?"}],
            "videos": ["clips/1.mp4"],
            "audios": [{"path": "clips/1.mp4", "start": 0.5, "end": 2}],
            "solution": "sad",
            "speaker": "s1",
        },
    ],
    samples=[
        Sample(id="a", messages=asked("<image>How many?"), media=IMAGE_A, solution="3", extras={"level": 2}),
        Sample(
            id="b",
            messages=asked("<video><audio>Which?"),
            media=(CLIP[0], MediaRef(kind="audio", path="clips/1.mp4", start_s=0.5, end_s=2.0)),
            solution="sad",
            speaker="s1",
        ),
    ],
    write=write_lines,
)
MS_SWIFT = Published(
    format="ms_swift",
    file="swift.jsonl",
    rows=[
        {
            "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "How many?"}],
            "images": [OLD + "pics/a.png"],
            "solution": "3",
        },
        {"query": "<video>What?", "response": THOUGHT, "videos": ["clips/1.mp4"], "history": [["Hi.", "Yes?"]]},
        {"instruction": "Add.", "input": "1 + 2", "output": THOUGHT, "rejected_response": "4"},
    ],
    samples=[
        Sample(id="swift-000001", messages=asked("<image>How many?", system="Be brief."), media=IMAGE_A, solution="3"),
        Sample(
            id="swift-000002",
            messages=(*asked("Hi.", "Yes?"), *asked("<video>What?", THOUGHT)),
            media=CLIP[:1],
            solution="3",
        ),
        Sample(
            id="swift-000003",
            messages=asked("Add.\n1 + 2", THOUGHT),
            solution="3",
            extras={"rejected_response": "4"},
        ),
    ],
    write=write_lines,
)
LLAMA_FACTORY = Published(
    format="llama_factory",
    file="mmo.json",
    source="dataset_info.json",
    beside={"dataset_info.json": json.dumps(LLAMA_INFO).encode()},
    rows=[
        {"messages": [USER_SHAPE, {"role": "assistant", "content": THOUGHT}], "images": ["pics/a.png"]},
        {
            "messages": [{"role": "user", "content": "<video><audio>Which?"}, {"role": "assistant", "content": "sad"}],
            "videos": ["clips/1.mp4"],
            "audios": ["clips/1.mp4"],
        },
    ],
    samples=[
        Sample(id="mmo-000001", messages=asked("<image>How many?", THOUGHT), media=IMAGE_A, solution="3"),
        Sample(id="mmo-000002", messages=asked("<video><audio>Which?", "sad"), media=CLIP),
    ],
    write=write_array,
)
ALPACA = Published(
    format="llama_factory",
    file="alpaca.json",
    rows=[
        {"instruction": "Add.", "input": "1 + 2", "output": THOUGHT, "system": "Be brief.", "history": []},
        {
            "instruction": "How many?",
            "input": "",
            "output": "3",
            "images": ["pics/a.png"],
            "history": [["Hi.", "Yes?"]],
        },
    ],
    samples=[
        Sample(id="alpaca-000001", messages=asked("Add.\n1 + 2", THOUGHT, system="Be brief."), solution="3"),
        Sample(
            id="alpaca-000002",
            messages=(*asked("<image>Hi.", "Yes?"), *asked("How many?", "3")),
            media=IMAGE_A,
        ),
    ],
    write=write_array,
)
LLAVA = Published(
    format="llava",
    file="r1_omni.json",
    rows=[
        {
            "video": "clips/1.mp4",
            "conversations": [{"from": "human", "value": EMOTION}, {"from": "gpt", "value": "sad"}],
        },
        {
            "id": "7",
            "image": "pics/a.png",
            "conversations": [{"from": "human", "value": "<image>\nHow many?"}, {"from": "gpt", "value": THOUGHT}],
        },
    ],
    samples=[
        Sample(id="r1_omni-000001", messages=asked(EMOTION, "sad"), media=CLIP, solution="sad"),
        Sample(id="7", messages=asked("<image>\nHow many?", THOUGHT), media=IMAGE_A, solution="3"),
    ],
    write=write_array,
)
VERL = Published(
    format="verl",
    file="verl.parquet",
    rows=[
        {
            "data_source": "geo",
            "prompt": [{"role": "system", "content": "Be brief."}, USER_SHAPE],
            "images": [{"bytes": A, "path": None}],
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": "3"},
            "extra_info": {"split": "train", "index": 0},
        },
        {
            "data_source": "geo",
            "prompt": [USER_SHAPE],
            "images": [{"bytes": B, "path": "b.png"}],
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": "2"},
            "extra_info": {"split": "train", "index": 1},
        },
    ],
    samples=[
        Sample(
            id=f"verl-{row:06d}",
            messages=asked("<image>How many?", system=system),
            media=(inline(content),),
            solution=truth,
            extras={
                "data_source": "geo",
                "ability": "math",
                "reward_model": {"style": "rule"},
                "extra_info": {"split": "train", "index": row - 1},
            },
        )
        for row, system, content, truth in ((1, "Be brief.", A, "3"), (2, "", B, "2"))
    ],
    write=write_parquet,
)
HUGGING_FACE = Published(
    format="hugging_face",
    file="trl.parquet",
    rows=[
        {
            "prompt": [
                {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "How?"}]}
            ],
            "images": [{"bytes": A, "path": None}],
            "solution": "$3$",
        },
        {
            "prompt": [{"role": "user", "content": [{"type": "text", "text": "And here?"}]}],
            "images": [{"bytes": None, "path": "pics/b.png"}],
            "solution": "2",
        },
    ],
    samples=[
        Sample(id="trl-000001", messages=asked("<image>How?"), media=(inline(A),), solution="3"),
        Sample(id="trl-000002", messages=asked("<image>And here?"), media=IMAGE_B, solution="2"),
    ],
    write=write_parquet,
)
ARROW = Published(
    format="hugging_face",
    file="data-00000-of-00001.arrow",
    rows=[
        {"messages": [USER_SHAPE, {"role": "assistant", "content": THOUGHT}], "image": {"bytes": A, "path": "x.png"}},
        {"messages": [USER_SHAPE, {"role": "assistant", "content": THOUGHT}], "image": {"bytes": B, "path": None}},
    ],
    samples=[
        Sample(
            id=f"data-00000-of-00001-{row:06d}",
            messages=asked("<image>How many?", THOUGHT),
            media=(inline(content),),
            solution="3",
        )
        for row, content in ((1, A), (2, B))
    ],
    write=write_arrow,
)
PAIR = {"chosen": "3", "rejected": "4"}
PAIRS = Published(
    format="hugging_face",
    file="preferences.jsonl",
    rows=[
        {"question": "<image>How many?", "image": "pics/a.png", **PAIR},
        {
            side: [{"role": "user", "content": "How?"}, {"role": "assistant", "content": text}]
            for side, text in PAIR.items()
        },
    ],
    samples=[
        Sample(id="preferences-000001", messages=asked("<image>How many?"), media=IMAGE_A, extras=PAIR),
        Sample(id="preferences-000002", messages=asked("How?"), extras=PAIR),
    ],
    write=write_lines,
)
MM_EUREKA = Published(
    format="mm_eureka",
    file="dataset.jsonl",
    rows=[
        {"id": "e1", "conversations": [{"role": "user", "content": "How many?"}], "answer": "3"}
        | {"image_urls": [f"file://{OLD}pics/a.png"]},
        {"id": "e2", "message": json.dumps(PARTS), "answer": "$2$"},
    ],
    samples=[
        Sample(id="e1", messages=asked("<image>How many?"), media=IMAGE_A, solution="3"),
        Sample(id="e2", messages=asked("<image>How?", system="Be brief."), media=IMAGE_A, solution="2"),
    ],
    write=write_lines,
)
LMM_R1 = Published(
    format="lmm_r1",
    file="lmm.jsonl",
    rows=[{"message": json.dumps(PARTS), "answer": "$3$", "question": "How?"}, {"message": json.dumps(PARTS)}],
    samples=[
        Sample(
            id="lmm-000001",
            messages=asked("<image>How?", system="Be brief."),
            media=IMAGE_A,
            solution="3",
            extras={"question": "How?"},
        ),
        Sample(id="lmm-000002", messages=asked("<image>How?", system="Be brief."), media=IMAGE_A),
    ],
    write=write_lines,
)
VISION_R1_COLD = Published(
    format="vision_r1_cold",
    file="vision_r1_llava_cot_full.json",
    rows=[
        {"id": "v1", "image": "pics/a.png", "conversations": [{"from": "human", "value": "<image>How many?"}]}
        | {"model": "r1"},
        {
            "messages": [{"role": "user", "content": "<image>How many?"}, {"role": "assistant", "content": THOUGHT}],
            "images": ["pics/b.png"],
        },
    ],
    samples=[
        Sample(id="v1", messages=asked("<image>How many?"), media=IMAGE_A, extras={"model": "r1"}),
        Sample(
            id="vision_r1_llava_cot_full-000002",
            messages=asked("<image>How many?", THOUGHT),
            media=IMAGE_B,
            solution="3",
        ),
    ],
    write=write_array,
)
SAT = Published(
    format="sat",
    file="SAT_train.parquet",
    rows=[
        {
            "image_bytes": [A, B],
            "question": "Which way did it turn?",
            "answers": ["left", "right"],
            "question_type": "action",
            "correct_answer": "left",
        }
    ],
    samples=[
        Sample(
            id="SAT_train-000001",
            messages=asked("<image><image>Which way did it turn? Choose between the following options: left, or right"),
            media=(inline(A), inline(B)),
            solution="left",
            extras={"options": ["left", "right"], "question_type": "action", "subject": "action"},
        )
    ],
    write=write_parquet,
)
GEOMETRY3K = Published(
    format="geometry3k",
    file="geo.parquet",
    rows=[
        {"images": [{"bytes": A, "path": None}], "problem": "<image>Find x.", "answer": "<answer> 48 </answer>"},
        {"images": [{"bytes": B, "path": None}], "problem": "Find y.", "answer": "12 cm"},
    ],
    samples=[
        Sample(id="geo-000001", messages=asked("<image>Find x."), media=(inline(A),), solution="48"),
        Sample(id="geo-000002", messages=asked("<image>Find y."), media=(inline(B),), solution="12 cm"),
    ],
    write=write_parquet,
)
MMK12 = Published(
    format="geometry3k",
    file="mmk12.parquet",
    rows=[
        {
            "id": "k1",
            "question": "<image>Find x.",
            "answer": "A",
            "subject": "math",
            "image": {"bytes": A, "path": None},
        }
    ],
    samples=[
        Sample(
            id="k1",
            messages=asked("<image>Find x."),
            media=(inline(A),),
            solution="A",
            extras={"subject": "math"},
        )
    ],
    write=write_parquet,
)
CSV = Published(
    format="csv",
    file="labels.csv",
    rows=[
        {"video": "clips/1.mp4", "audio": "clips/1.mp4", "question": "Which, so?", "answer": "sad", "speaker": "s1"},
        {"video": "clips/1.mp4", "question": "Which?", "answer": "glad", "start": "0:01.5", "end": "2.5"},
    ],
    samples=[
        Sample(
            id="labels-000002",
            messages=asked("<video><audio>Which, so?"),
            media=CLIP,
            solution="sad",
            speaker="s1",
        ),
        Sample(
            id="labels-000003",
            messages=asked("<video>Which?"),
            media=(MediaRef(kind="video", path="clips/1.mp4", start_s=1.5, end_s=2.5),),
            solution="glad",
        ),
    ],
    write=write_csv,
)
PUBLISHED: tuple[Published, ...] = (
    *(CANONICAL, MS_SWIFT, LLAMA_FACTORY, ALPACA, LLAVA, VERL, HUGGING_FACE, ARROW, PAIRS),
    *(MM_EUREKA, LMM_R1, VISION_R1_COLD, SAT, GEOMETRY3K, MMK12, CSV, *BENCHMARKS),
)
