"""A dataset without a model: an encoder of one token per character, a decoder that counts, and manifests to write."""

import json
import threading
from contextlib import contextmanager
from functools import partial

import clips
import numpy as np
import torch
from PIL import Image

from lightning_mmrl.data.collate import collate_prompts
from lightning_mmrl.data.in_order import eval_loader
from lightning_mmrl.data.media.cache import MediaCache
from lightning_mmrl.data.media.guard import decode
from lightning_mmrl.data.pipeline import MediaPipeline
from lightning_mmrl.data.sampler import Draw
from lightning_mmrl.data.stream import StreamedSets
from lightning_mmrl.errors import MediaError, MmrlError
from lightning_mmrl.protocols.ranks import ALONE
from lightning_mmrl.settings.data import MediaSettings, ReadAheadSettings
from lightning_mmrl.workers.pool import CallResult


class WordEncoder:
    """One token per character; a video is its frames' mean levels, a sound its length."""

    family, fingerprint, pad_token_id, media_kinds = "Words", "words", 0, frozenset({"image", "video", "audio"})
    own_sizes, max_positions = None, 100

    def encode_image(self, image):
        return {"corner": torch.tensor(image.pixels[0, 0].tolist())[None]}

    def blank_image(self, encoded):
        return {"corner": torch.full_like(encoded["corner"], 128)}

    def encode_video(self, video):
        return {"levels": torch.tensor(video.frames.mean(axis=(1, 2, 3), dtype="float32"))[:, None].contiguous()}

    def encode_audio(self, audio):
        if audio.duration_s > 1.5:
            raise MediaError("longer than the window; cut it")
        return {"sound": torch.full((1, 1, 2), audio.duration_s)}

    def blank_video(self, encoded):
        return {"levels": torch.full_like(encoded["levels"], 128.0)}

    def silent_audio(self, encoded):
        return {"sound": torch.zeros_like(encoded["sound"])}

    def encode_prompt(self, messages, prefill, media, raw=None):
        text = "|".join(turn.content for turn in messages)
        text = (text if raw is None else raw.replace("{question}", text)) + prefill
        ids = torch.tensor([ord(letter) for letter in text])
        merged = {name: value for each in media for name, value in each.items()}
        return {
            "input_ids": ids,
            "position_ids": torch.arange(len(ids)).expand(3, -1),
            "next_position": torch.tensor([len(ids)]),
            **merged,
        }

    def encode_target(self, text):
        return [*map(ord, text), 1]

    def encode_continuation(self, asked, target, again, prefill):
        """Turns are joined by bars; with a prefill the next prompt begins in another way."""
        before, after = ("|".join(turn.content for turn in turns) for turns in (asked, again))
        return None if prefill else [*map(ord, after.removeprefix(f"{before}|{target}"))]

    def banned_token_ids(self):
        return (ord("@"),)


class CountingDecoder:
    """Decodes here, in reverse order, and remembers what."""

    def __init__(self):
        self.decoded = []

    def decode_all(self, tasks, on_done):
        for index, task in reversed(list(enumerate(tasks))):
            self.decoded.append((task.path.name, task.ref.kind))
            try:
                outcome = CallResult(value=decode(task))
            except MmrlError as error:
                outcome = CallResult(error=str(error))
            if task.path.name == "hangs.mp4":
                outcome = CallResult(error="deadline of 30 s exceeded")
            on_done(index, outcome)

    @contextmanager
    def session(self):
        yield Session(self)


class Session:
    """A decoder's workers, which are none."""

    def __init__(self, decoder):
        self.decode_all = decoder.decode_all

    def end(self):
        pass


class Monitor:
    """Remembers what it hears."""

    def __init__(self):
        self.steps, self.left_out, self.warnings = [], [], []

    def progress(self, *step):
        self.steps.append(step)

    def leave_out(self, manifest, num_samples, num_left_out, new):
        self.left_out.append((manifest, num_samples - num_left_out, [(each.sample_id, each.reason) for each in new]))

    def warn(self, manifest, warnings):
        self.warnings.append((manifest, warnings))


def pipeline(directory):
    """Everything is decoded in this process, and cached below `directory`."""
    return MediaPipeline(
        encoder=WordEncoder(),
        settings=MediaSettings(num_frames=2),
        cache=MediaCache(directory / "cache"),
        decoder=CountingDecoder(),
    )


def read(found, index=0, variant="full"):
    """A sample of a `PreparedSet`, or why it cannot be used."""
    [item], _ = found.read([Draw(index=index, serial=index, variant=variant)], found._pipeline.decoder.decode_all)
    return item


def in_order(sets, *, batch_size=4, ranks=ALONE, prefetch=0, **how):
    """A loader of `StreamedSets` that goes through all samples once."""
    return eval_loader(
        sets,
        partial(collate_prompts, pad_token_id=0),
        batch_size=batch_size,
        ranks=ranks,
        decoder=sets._sets[0][1]._pipeline.decoder,
        settings=ReadAheadSettings(prefetch_samples=prefetch),
        **how,
    )


class Settled:
    """A `PreparedSet` after a pass through all its samples: what was read, and what was left out."""

    def __init__(self, found, monitor=None):
        self.sets = StreamedSets([("train.jsonl", found)], monitor or Monitor())
        self.batches = list(in_order(self.sets))

    @property
    def usable(self):
        return [sample.id for batch in self.batches for sample in batch.samples]

    @property
    def reasons(self):
        return {sample.id: reason for sample, reason in self.sets.left_out()}


class Rank:
    """One of two ranks, in a thread each."""

    lockstep, world_size = False, 2

    def __init__(self, rank, barrier, shared):
        self.rank, self._barrier, self._shared = rank, barrier, shared

    def gather(self, item):
        self._shared[self.rank] = item
        self._barrier.wait(30)
        found = list(self._shared)
        self._barrier.wait(30)
        return found

    def any(self, flags):
        return [any(column) for column in zip(*self.gather(flags), strict=True)]


def on_two_ranks(run):
    """What `run(rank)` returns on each rank; raises the first error of any."""
    barrier, shared, found, errors = threading.Barrier(2), [None, None], [None, None], []

    def begin(rank):
        try:
            found[rank] = run(Rank(rank, barrier, shared))
        except BaseException as error:
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=begin, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return found


def decisions(path):
    """The ids of a file of exclusions: used ones and left-out ones."""
    used, left_out = set(), set()
    for line in path.read_text().splitlines():
        used |= set(json.loads(line).get("used", {}))
        left_out |= set(json.loads(line).get("left_out", {}))
    return used, left_out


def write_media(root):
    """Clips of several lengths, one that a decoder would hang on, sounds of three lengths, pictures, and junk."""
    root.mkdir()
    for name, frame_s in (("one.mp4", 0.1), ("two.mp4", 0.2), ("hangs.mp4", 0.3)):
        clips.write_grey(root / name, [frame_s * index for index in range(4)])
    clips.write_grey(root / "more.mp4", [0.1 * index for index in range(8)])
    clips.write_wav(root / "one.wav", clips.tone(440, 1.0, 16_000), 16_000)
    clips.write_wav(root / "half.wav", clips.tone(440, 0.5, 16_000), 16_000)
    clips.write_wav(root / "long.wav", clips.tone(440, 2.0, 16_000), 16_000)
    Image.fromarray(np.full((8, 8, 3), (10, 20, 30), dtype=np.uint8)).save(root / "one.png")
    (root / "broken.mp4").write_bytes(b"nothing")
    (root / "broken.png").write_bytes(b"nothing")
    return root


def row(name, videos=(), audios=(), images=(), target=None, text="Which?", solution="sad"):
    """One line of a manifest."""
    content = "<image>" * len(images) + "<video>" * len(videos) + "<audio>" * len(audios) + text
    turns = [{"role": "user", "content": content}]
    turns += [] if target is None else [{"role": "assistant", "content": target}]
    media = {"images": list(images), "videos": list(videos), "audios": list(audios)}
    return {"id": name, "messages": turns, **media, "solution": solution}


def write(root, *rows, name="train.jsonl"):
    """A manifest of these lines."""
    (root / name).write_text("".join(json.dumps(each) + "\n" for each in rows))
    return root / name
