"""Writes example code for a model card: plain transformers, greedy, with the prompt and media settings of training."""

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from lightning_mmrl.curriculum.card_frames import frame_lines, frames_code, picture_lines, sizes_frames, sizing_code
from lightning_mmrl.errors import StageError
from lightning_mmrl.prompts.labels import names_emotions
from lightning_mmrl.prompts.template import DEFAULT_QUESTION, QUESTION

_OMNI = "qwen2_5_omni_thinker"
_PER_CLIP = "qwen3_vl"
"""The family whose processor bounds the pixels of a whole clip."""
_BY_LONGER_SIDE = ("qwen2_vl", "qwen2_5_vl")
"""Families for which transformers counts text positions from the longer side of a clip; see models/positions.py."""

_PICTURES = """\
def picture_of(path):
    # Upright, and over white where it is transparent.
    picture = ImageOps.exif_transpose(Image.open(path)).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")

"""

_SOUND = """\
def sound_of(path, rate={sample_rate_hz}):
    with av.open(path) as container:
        found = container.streams.audio[0].rate
        planes = av.AudioResampler(format="fltp")
        frames = [*container.decode(audio=0), None]
        pieces = [piece.to_ndarray().mean(0) for frame in frames for piece in planes.resample(frame)]
    samples = np.concatenate(pieces)
    return samples if found == rate else soxr.resample(samples, found, rate).astype(np.float32)
"""


_CLIP = (
    '    shown = {"total_num_frames": len(frames), "fps": fps, "frames_indices": times * fps}',
    '    media |= {"do_sample_frames": False, "video_metadata": [shown]}',
)

_OMNI_CLIP = (
    "    # Without this size the processor takes one of its own, which training did not use.",
    '    size = {edge: processor.video_processor.size[edge] for edge in ("shortest_edge", "longest_edge")}',
    '    media["videos_kwargs"] = {"do_sample_frames": False, "fps": fps, "size": size}',
)

_SOUND_OF_CLIP = (
    "    if VIDEO:  # the sound is part of the clip",
    "        per_second, chunk = model.config.position_id_per_seconds, float(model.config.seconds_per_chunk)",
    '        turns = {"position_id_per_seconds": per_second, "seconds_per_chunk": chunk}',
    '        media["videos_kwargs"] |= {"use_audio_in_video": True, **turns}',
    "    else:",
    '        content += [{"type": "audio"}]',
)


def call_of(facts: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """Returns Python code that asks the model about media, or about text alone, as training and evaluation do.

    The code needs neither a network nor this package, only torch, transformers and, for media, av, pillow and soxr. Its
    first lines name the folder, the files and the question.

    Args:
        facts: The facts in the handoff's seal.
        config: The model's configuration.

    Raises:
        StageError: The configuration names no architecture that could be imported.
    """
    seen = ("image", "video") if "vision_config" in config else ()
    kinds = (*seen, "audio") if "audio_config" in config else seen
    parts = [_beginning(facts, config, kinds)]
    parts += [_PICTURES] if "image" in kinds else []
    parts += [frames_code(facts["media"])] if "video" in kinds else []
    parts += [sizing_code(facts["media"])] if kinds and sizing_code(facts["media"]) else []
    parts += [_SOUND.format(**facts["media"])] if "audio" in kinds else []
    is_omni = config.get("model_type") == _OMNI
    interleaves = is_omni and facts.get("audio_in_video") == "interleaved"
    parts += [_content(kinds, facts["media"], config, interleaves=interleaves)] if kinds else []
    prompt = _prompt(facts, kinds) if facts["prompt"].get("raw") is None else _raw_prompt(facts, kinds, config)
    return "\n".join([*parts, prompt, _answer(facts, kinds, config, interleaves=interleaves)])


def part_of_text(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the configuration of the part that reads and answers: of a full omni model, its thinker."""
    return config.get("thinker_config") or config


def places_text_otherwise(facts: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    """Whether transformers may give text after a clip other positions than training did."""
    family, by_maximum = config.get("model_type"), facts.get("position_rule") == "previous_maximum"
    interleaves = family == _OMNI and facts.get("audio_in_video") == "interleaved"
    return by_maximum and (family in _BY_LONGER_SIDE or interleaves)


def _beginning(facts: Mapping[str, Any], config: Mapping[str, Any], kinds: tuple[str, ...]) -> str:
    """Writes the imports and the user's settings, and the code that loads the model and the processor."""
    architecture = (config.get("architectures") or ["AutoModelForCausalLM"])[0]
    if not isinstance(architecture, str) or not architecture.isidentifier():  # any other text could run as code
        raise StageError(
            f"config.json has the architecture {str(architecture)[:80]!r}, which is no name of a class; name one"
        )
    packages = ["torch", *(["av", "numpy", "pillow"] if kinds else []), *(["soxr"] if "audio" in kinds else [])]
    loader = "AutoProcessor" if kinds else "AutoTokenizer"
    lines = [f"# With transformers {version('transformers')} and {', '.join(packages)}."]
    lines += ["import math", ""] if kinds and sizing_code(facts["media"]) else []
    lines += ["import av", "import numpy as np"] if kinds else []
    lines += ["import soxr"] if "audio" in kinds else []
    lines += ["import torch"]
    lines += ["from PIL import Image, ImageOps"] if "image" in kinds else []
    lines += [f"from transformers import {loader}, {architecture}", "", 'PATH = "PATH"  # this folder']
    if "audio" in kinds:
        lines += ['VIDEO, SOUND, IMAGE = "clip.mp4", "clip.mp4", None  # None for what there is not']
    elif kinds:
        lines += ['VIDEO, IMAGE = "clip.mp4", None  # None for what there is not']
    dtype = facts.get("dtype", "float32")
    lines += [f'QUESTION = "{DEFAULT_QUESTION if names_emotions(facts["labels"]) else "Your question?"}"', ""]
    lines += [f"model = {architecture}.from_pretrained(PATH, dtype=torch.{dtype}).eval()"]
    lines += [f"processor = {loader}.from_pretrained(PATH)", "", *([""] if kinds else [])]
    return "\n".join(lines)


def _content(kinds: tuple[str, ...], media: Mapping[str, Any], config: Mapping[str, Any], *, interleaves: bool) -> str:
    """Writes code that sets `content` (the media of the user's turn) and `media` (the processor's arguments)."""
    as_it_is = ['    media.setdefault("videos_kwargs", {})["do_resize"] = False'] if sizes_frames(media) else []
    lines = [
        "",
        "content, media = [], {}",
        "if IMAGE:",
        '    content += [{"type": "image"}]',
        '    media["images"] = [picture_of(IMAGE)]',
        *picture_lines(media),
        "if VIDEO:",
        "    frames, times, fps = frames_of(VIDEO)",
        *frame_lines(media, per_clip=config.get("model_type") == _PER_CLIP),
        '    content += [{"type": "video"}]',
        '    media["videos"] = [frames]',
        *(_OMNI_CLIP if config.get("model_type") == _OMNI else _CLIP),
        *as_it_is,
    ]
    if "audio" in kinds:
        lines += ["if SOUND:"]
        lines += _SOUND_OF_CLIP if interleaves else ['    content += [{"type": "audio"}]']
        lines += ['    media["audio"] = [sound_of(SOUND)]']
        lines += [f'    media["audio_kwargs"] = {{"sampling_rate": {media["sample_rate_hz"]}}}']
    return "\n".join([*lines, ""])


def _prompt(facts: Mapping[str, Any], kinds: tuple[str, ...]) -> str:
    prompt = facts["prompt"]
    question = _question(prompt)
    user = f'[*content, {{"type": "text", "text": {question}}}]' if kinds else question
    lines = [f'messages = [{{"role": "user", "content": {user}}}]']
    if prompt["system"] is not None:
        system = f'[{{"type": "text", "text": {prompt["system"]!r}}}]' if kinds else repr(prompt["system"])
        lines += [f'messages.insert(0, {{"role": "system", "content": {system}}})']
    lines += ["text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)"]
    lines += [f"text += {prompt['prefill']!r}"] if prompt["prefill"] else []
    return "\n".join(lines)


def _question(prompt: Mapping[str, Any]) -> str:
    """Writes code for the question between its prefix and its suffix."""
    texts = (prompt.get("prefix"), "QUESTION", prompt["suffix"])
    return " + ".join(text if text == "QUESTION" else repr(text) for text in texts if text)


def _raw_prompt(facts: Mapping[str, Any], kinds: tuple[str, ...], config: Mapping[str, Any]) -> str:
    """Writes code for a prompt without the chat template: each medium becomes its placeholder between its markers."""
    prompt = facts["prompt"]
    before, after = prompt["raw"].split(QUESTION)
    question = _question(prompt)
    marks = {}
    for kind in kinds:
        sense = "audio" if kind == "audio" else "vision"
        placeholder = config.get(f"{kind}_token_id", config.get(f"{kind}_token_index"))
        marks[kind] = [config[f"{sense}_start_token_id"], placeholder, config[f"{sense}_end_token_id"]]
    lines = [f"marks = {marks}"] if kinds else []
    lines += ['marked = [token for part in content for token in marks[part["type"]]]'] if kinds else []
    media = '"".join(processor.tokenizer.convert_ids_to_tokens(marked)) + ' if kinds else ""
    return "\n".join([*lines, f"text = {before!r} + {media}{question} + {after + prompt['prefill']!r}"])


def _answer(facts: Mapping[str, Any], kinds: tuple[str, ...], config: Mapping[str, Any], *, interleaves: bool) -> str:
    """Writes code that generates and prints an answer; ids of media and of their markers are never generated."""
    marks = (f"{what}_{side}_token_id" for what in ("vision", "audio") for side in ("start", "end"))
    pads = (f"{kind}_token_{word}" for kind in ("image", "video", "audio") for word in ("id", "index"))
    media_ids = sorted({config[key] for key in (*marks, *pads) if isinstance(config.get(key), int)})
    prefill = facts["prompt"]["prefill"]
    plain = '[text], add_special_tokens=False, return_tensors="pt"'  # the chat template has written them
    given = 'text=[text], return_tensors="pt", **media' if kinds else plain
    tokenizer = "processor.tokenizer" if kinds else "processor"
    settings = ["do_sample=False", "repetition_penalty=1.0", "suppress_tokens=unsaid or None"]
    settings += [f"max_new_tokens={facts['max_new_tokens']}"]
    settings += ['use_audio_in_video="audio" in media and "videos" in media'] if interleaves else []
    lines = [
        f"inputs = processor({given}).to(model.device)",
        f"# Never said in training: {'media, and ' if kinds else ''}rows of the head that stand for no token.",
        f"unsaid = [*range(len({tokenizer}), model.config.get_text_config().vocab_size)]",
        *([f"unsaid += {media_ids}"] if media_ids else []),
        "output = model.generate(",
        "    **inputs,",
        *(f"    {setting}," for setting in settings),
        ")",
        'answer = processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)',
        f"print({f'{prefill!r} + ' if prefill else ''}answer)",
    ]
    return "\n".join(lines)
