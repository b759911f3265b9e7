"""A small file of pairs in the layouts that TRL documents, and the samples that it holds."""

from published_layout import Published, asked, image, write_lines

from lightning_mmrl.types.records import Sample

IMAGE_A = (image("pics/a.png"),)
PAIRS = Published(
    format="hugging_face",
    file="preferences.jsonl",
    rows=[
        {
            "prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "How many?"}]}],
            "images": ["/mnt/old/place/pics/a.png"],
            "chosen": [{"role": "assistant", "content": [{"type": "text", "text": "3"}]}],
            "rejected": "4",
        },
        {
            "chosen": [{"role": "user", "content": "How?"}, {"role": "assistant", "content": "So."}],
            "rejected": [{"role": "user", "content": "How?"}, {"role": "assistant", "content": "No."}],
            "score_chosen": 9.0,
            "score_rejected": 2.5,
        },
        {"question": "<image>How many?", "image": "pics/a.png", "chosen": "3", "rejected": "4"},
    ],
    samples=[
        Sample(
            id="preferences-000001",
            messages=asked("<image>How many?"),
            media=IMAGE_A,
            extras={"chosen": "3", "rejected": "4"},
        ),
        Sample(
            id="preferences-000002",
            messages=asked("How?"),
            extras={"chosen": "So.", "rejected": "No.", "chosen_score": 9.0, "rejected_score": 2.5},
        ),
        Sample(
            id="preferences-000003",
            messages=asked("<image>How many?"),
            media=IMAGE_A,
            extras={"chosen": "3", "rejected": "4"},
        ),
    ],
    write=write_lines,
)
