"""`mmrl predict CHECKPOINT clip.mp4`: the reasoning and the answer for one clip."""

import argparse
from collections.abc import Sequence
from pathlib import Path


def run(arguments: Sequence[str]) -> int:
    """Runs the command and returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="mmrl predict", description="Answer for one clip: the reasoning and the answer."
    )
    parser.add_argument("checkpoint", type=Path, help="a stage's handoff folder")
    parser.add_argument("clip", type=Path, help="a video file; its own sound track is heard too")
    parser.add_argument("--question", default="Which emotion?", help="what to ask (default: %(default)s)")
    parser.add_argument("--audio", type=Path, help="a separate sound file instead of the clip's own track")
    parser.add_argument("--no-audio", action="store_true", help="show the picture alone")
    parser.add_argument("--max-new-tokens", type=int, help="longest answer (default: as the checkpoint was evaluated)")
    options = parser.parse_args(arguments)

    # Loaded here: argument errors need no torch.
    from lightning_mmrl.config.answer import answer_clip

    answer = answer_clip(
        options.checkpoint,
        options.clip,
        question=options.question,
        sound=None if options.no_audio else options.audio or options.clip,
        max_new_tokens=options.max_new_tokens,
    )
    print(f"reasoning: {answer.think if answer.think is not None else '-'}")
    print(f"answer:    {answer.answer if answer.answer is not None else '-'}")
    if not answer.valid:
        print(f"the answer is not in the expected format: {answer.problem}")
    return 0
