"""A small file in the published layout of each benchmark, and the samples that it holds.

The columns are those of the data sets on Hugging Face and of the projects' own repositories; all values are made up.
"""

from published_layout import A, B, Published, asked, image, inline, write_array, write_lines, write_parquet

from lightning_mmrl.types.records import MediaRef, Sample

PICTURE_A, PICTURE_B = {"bytes": A, "path": "a.png"}, {"bytes": B, "path": "b.png"}
VISTA_TASKS = {"split": "testmini", "task": "geometry problem solving", "grade": "high school", "skills": ["algebra"]}
VISTA_ROW = {
    "pid": "1",
    "question": "How long is it?",
    "image": "images/1.jpg",
    "decoded_image": PICTURE_A,
    "choices": None,
    "unit": "cm",
    "precision": 1.0,
    "answer": "1.2",
    "question_type": "free_form",
    "answer_type": "float",
    "metadata": VISTA_TASKS,
    "query": "Hint: Give one decimal place.\nQuestion: How long is it? (Unit: cm)",
}
VISTA_KEPT = {"subject": "geometry problem solving", "metadata": VISTA_TASKS}
MATHVISTA = Published(
    format="mathvista",
    file="testmini.parquet",
    rows=[
        VISTA_ROW,
        VISTA_ROW
        | {"pid": "2", "decoded_image": PICTURE_B, "choices": ["red", "blue"], "unit": None, "precision": None}
        | {"answer": "red", "question_type": "multi_choice", "answer_type": "text", "query": None},
    ],
    samples=[
        Sample(
            id="1",
            messages=asked(f"<image>{VISTA_ROW['query']}"),
            media=(inline(A),),
            solution="1.2",
            extras=VISTA_KEPT | {"unit": "cm", "precision": 1.0, "question_type": "free_form", "answer_type": "float"},
        ),
        Sample(
            id="2",
            messages=asked("<image>How long is it?\n(A) red\n(B) blue"),
            media=(inline(B),),
            solution="red",
            extras=VISTA_KEPT
            | {"choices": ["red", "blue"], "options": ["red", "blue"]}
            | {"question_type": "multi_choice", "answer_type": "text"},
        ),
    ],
    write=write_parquet,
)
VERSE_TASKS = {"split": "testmini", "source": "GeoQA", "subject": "Plane Geometry", "subfield": "Angle"}
VERSE_ROW = {
    "sample_index": "1",
    "problem_index": "1",
    "problem_version": "Text Dominant",
    "question": "Find x.",
    "image": PICTURE_A,
    "answer": "D",
    "question_type": "multi-choice",
    "metadata": VERSE_TASKS,
    "query_wo": "Answer directly.\nFind x.",
    "query_cot": "Reason first.\nFind x.",
}
VERSE_KEPT = {"problem_index": "1", "metadata": VERSE_TASKS, "subject": "Plane Geometry"}
MATHVERSE = Published(
    format="mathverse",
    file="verse.parquet",
    rows=[
        VERSE_ROW,
        VERSE_ROW
        | {"sample_index": "2", "problem_version": "Vision Only", "question": "", "image": PICTURE_B, "answer": "7"}
        | {"question_type": "free-form", "query_cot": "Reason from the picture."},
    ],
    samples=[
        Sample(
            id="1",
            messages=asked("<image>Reason first.\nFind x."),
            media=(inline(A),),
            solution="D",
            extras=VERSE_KEPT | {"problem_version": "Text Dominant", "question_type": "multi-choice"},
        ),
        Sample(
            id="2",
            messages=asked("<image>Reason from the picture."),
            media=(inline(B),),
            solution="7",
            extras=VERSE_KEPT | {"problem_version": "Vision Only", "question_type": "free-form"},
        ),
    ],
    write=write_parquet,
)
VISION_ROW = {
    "id": "4",
    "question": "How many digits?\n<image1>",
    "options": [],
    "answer": "6",
    "solution": None,
    "level": 1,
    "subject": "counting",
    "image": "pics/a.png",
}
MATH_VISION = Published(
    format="math_vision",
    file="test.jsonl",
    rows=[
        VISION_ROW,
        VISION_ROW | {"id": "6", "options": ["A", "B"], "answer": "B", "solution": "It is B.", "image": "pics/b.png"},
    ],
    samples=[
        Sample(
            id="4",
            messages=asked("<image>How many digits?\n<image1>"),
            media=(image("pics/a.png"),),
            solution="6",
            extras={"level": 1, "subject": "counting"},
        ),
        Sample(
            id="6",
            messages=asked("<image>How many digits?\n<image1>\n(A) A\n(B) B"),
            media=(image("pics/b.png"),),
            solution="B",
            extras={"level": 1, "subject": "counting", "options": ["A", "B"], "rationale": "It is B."},
        ),
    ],
    write=write_lines,
)
MMMU_ROW = {
    "id": "validation_Art_Theory_1",
    "question": "Which is older, <image 1> or <image 2>?",
    "options": "['the first', \"the second: <image 1>\"]",
    "explanation": "",
    "image_1": PICTURE_A,
    "image_2": PICTURE_B,
    "image_3": None,
    "img_type": "['Paintings']",
    "answer": "A",
    "topic_difficulty": "Medium",
    "question_type": "multiple-choice",
    "subfield": "Painting",
}
MMMU_KEPT = {"img_type": "['Paintings']", "topic_difficulty": "Medium", "subfield": "Painting", "explanation": ""}
MMMU = Published(
    format="mmmu",
    file="mmmu.parquet",
    rows=[
        MMMU_ROW,
        MMMU_ROW
        | {"id": "test_Math_2", "question": "Compute the area in <image 2>.", "options": "[]", "answer": "2.5"}
        | {"question_type": "open"},
    ],
    samples=[
        Sample(
            id="validation_Art_Theory_1",
            messages=asked("Which is older, <image> or <image>?\n(A) the first\n(B) the second: <image>"),
            media=(inline(A), inline(B), inline(A)),
            solution="A",
            extras=MMMU_KEPT
            | {"options": ["the first", "the second: <image 1>"], "question_type": "multiple-choice"}
            | {"subject": "Art_Theory"},
        ),
        Sample(
            id="test_Math_2",
            messages=asked("Compute the area in <image>."),
            media=(inline(B),),
            solution="2.5",
            extras=MMMU_KEPT | {"question_type": "open", "subject": "Math"},
        ),
    ],
    write=write_parquet,
)
STEP = {
    "ID": "2steps_1",
    "split": "testmini",
    "knowledge concept": "Circles",
    "question": "OA = ( ) m",
    "option": "A. 300; B. 400; C. No correct answer",
    "answer": "C",
    "image_path": "pics/a.png",
    "key": "2steps_1",
    "question number": 1,
}
WE_MATH = Published(
    format="we_math",
    file="we_math.json",
    rows=[STEP, STEP | {"answer": "A", "key": "2steps_multi", "image_path": "pics/b.png"}],
    samples=[
        Sample(
            id=f"2steps_1-{part}",
            messages=asked("<image>OA = ( ) m\nA. 300; B. 400; C. No correct answer"),
            media=(image(path),),
            solution=answer,
            speaker="2steps_1",
            split="testmini",
            extras={
                "knowledge concept": "Circles",
                "subject": "Circles",
                "key": f"2steps_{part}",
                "question number": 1,
            },
        )
        for part, answer, path in (("1", "C", "pics/a.png"), ("multi", "A", "pics/b.png"))
    ],
    write=write_array,
)
CV_BENCH = Published(
    format="cv_bench",
    file="cv_bench.parquet",
    rows=[
        {
            "idx": 0,
            "type": "2D",
            "task": "Count",
            "image": PICTURE_A,
            "question": "How many organs?",
            "choices": ["3", "1"],
            "answer": "(B)",
            "prompt": "How many organs? Select from the following choices.\n(A) 3\n(B) 1",
            "source": "ADE20K",
        },
    ],
    samples=[
        Sample(
            id="0",
            messages=asked("<image>How many organs? Select from the following choices.\n(A) 3\n(B) 1"),
            media=(inline(A),),
            solution="(B)",
            extras={"type": "2D", "task": "Count", "subject": "Count", "source": "ADE20K"}
            | {"choices": ["3", "1"], "options": ["3", "1"]},
        )
    ],
    write=write_parquet,
)
FEELINGS = ["Anger", "Sadness"]
CLIP = tuple(MediaRef(kind=kind, path="clips/1.mp4") for kind in ("video", "audio"))
EMOTION_LAB = Published(
    format="mme_emotion",
    file="ER_Lab.json",
    rows=[{"video_id": "clips/1.mp4", "label": "Anger", "label_set": FEELINGS}],
    samples=[
        Sample(
            id="clips/1.mp4",
            messages=asked("<video><audio>Which of these labels describes the person in the video: Anger, Sadness?"),
            media=CLIP,
            solution="Anger",
            extras={"label_set": FEELINGS, "subject": "ER_Lab"},
        )
    ],
    write=write_array,
)
EMOTION_SETS = Published(
    format="mme_emotion",
    file="ML_ER.json",
    rows=[{"video_id": "clips/1.mp4", "label": "Anger,Sadness", "label_set": FEELINGS}],
    samples=[
        Sample(
            id="clips/1.mp4",
            messages=asked("<video><audio>Which of these labels describe the person in the video: Anger, Sadness?"),
            media=CLIP,
            solution="Anger,Sadness",
            extras={"label_set": FEELINGS, "subject": "ML_ER"},
        )
    ],
    write=write_array,
)
BENCHMARKS = (MATHVISTA, MATHVERSE, MATH_VISION, MMMU, WE_MATH, CV_BENCH, EMOTION_LAB, EMOTION_SETS)
