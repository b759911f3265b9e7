"""Paths that try to leave the folder of a manifest, and witnesses that see whether anything outside was opened."""

import ctypes
import json
import os
import struct
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from lightning_mmrl.data.media.guard import DecodeTask, decode
from lightning_mmrl.data.media_files import resolve_media
from lightning_mmrl.data.schema import Problem, scan_manifest
from lightning_mmrl.errors import MmrlError
from lightning_mmrl.settings.data import MediaSettings


def run_escapes(base: Path) -> tuple[Counter, list[str], dict[str, int]]:
    """Outcomes of all escapes, the faults, and how many the witnesses saw a naive reader get."""
    root, folder = base / "set", base / "outside"
    root.mkdir()
    folder.mkdir()
    write_clip = clip_writer()
    write_clip(root / "a.mp4")
    secret = folder / "secret.ts"
    write_clip(secret)
    witness = Witness(folder)
    paths = escapes(root, secret)
    outcomes: Counter = Counter()
    faults = []
    for path in paths:
        for column, kind in (("videos", "video"), ("audios", "audio")):
            outcome = try_escape(path, column, kind, root)
            opened = witness.take()
            outcomes[outcome] += 1
            if outcome == "read" or opened != (0, 0):
                faults.append(f"{path[:100]!r} as {kind}: {outcome}, {opened[0]} + {opened[1]} opens outside")
    got = 0
    for path in paths:
        open_naively(path, root)
        got += witness.take() > (0, 0)
    with open(secret, "rb"):
        seen, heard = witness.take()
    return outcomes, faults, {"paths": len(paths), "naive_reads": got, "control_seen": seen, "control_heard": heard}


def clip_writer() -> Callable[[Path], None]:
    """Writes a real clip of a tenth of a second."""
    import numpy as np

    from lightning_mmrl.data.synthetic.video_file import write_clip

    frames = np.zeros((4, 64, 64, 3), dtype=np.uint8)
    sound = np.zeros(1600, dtype=np.float32)

    def write(path: Path) -> None:
        made = path.with_suffix(".made.mp4")
        write_clip(made, frames, 8, sound, 16_000)
        made.rename(path)

    return write


def escapes(root: Path, outside: Path) -> list[str]:
    """Paths that try to leave `root`, with the links and playlists they need; `outside` is a clip beside it."""
    up = os.path.relpath(outside, root)
    plain = str(outside)
    (root / "clips").mkdir(exist_ok=True)
    paths = [
        plain,
        f"/{plain}",
        f"//{plain}",
        f"/.{plain}",
        f"{root}/{up}",
        f"{root}-other/secret.ts",
        str(root / "a.mp4"),
    ]
    for prefix in ("", "./", ".//", "clips/", "clips/./", "clips/../", "clips//../", "a.mp4/", "none/", "none/../"):
        paths += [f"{prefix}{'../' * depth}{up.removeprefix('../')}" for depth in (1, 2, 3)]
    paths += [
        "../" * 40 + plain[1:],
        ".." + plain,
        "..",
        "../",
        "clips/..",
        "clips/../..",
        "...",
        ".../" + up,
        "",
        ".",
        "/",
    ]
    paths += [f"~{plain}", "~/secret.ts", "~root/secret.ts", "$HOME/secret.ts", "${HOME}/x", "`id`", "$(id)"]
    schemes = ("file://", "file:", "http://127.0.0.1:9", "https://x", "ftp://x", "data:,", "concat:", "pipe:", "fd:")
    paths += [scheme + plain for scheme in (*schemes, "subfile:", "cache:", "async:", "FILE://", "s3://b", "hf://d")]
    paths += ["concat:a.mp4|" + plain, "subfile,,start,0,end,0,,:" + plain, "tee:" + plain, "pipe:0", "crypto:" + plain]
    paths += [
        up.replace("/", "\\"),
        "clips\\..\\" + up.replace("/", "\\"),
        "C:\\secret.ts",
        "c:/secret.ts",
        "\\\\host\\x",
    ]
    paths += [up.replace("..", "%2e%2e"), up.replace("/", "%2f"), up.replace("..", "..%00"), up + "\0", "a.mp4\0" + up]
    paths += [up.replace("..", "\uff0e\uff0e"), up.replace("/", "\u2215"), up.replace("..", ". ."), " " + up, up + " "]
    paths += [plain + "/.", f"/proc/self/root{plain}", f"/proc/self/cwd/{up}", "/dev/stdin", "/dev/fd/0", "/etc/passwd"]
    return [*paths, *linked(root, outside), *playlists(root, outside)]


def linked(root: Path, outside: Path) -> list[str]:
    """Links of all sorts that lead out, and what is no regular file."""
    links = {
        "link.ts": str(outside),
        "relative.ts": os.path.relpath(outside, root),
        "chain.ts": "link.ts",
        "folder": str(outside.parent),
        "up": "..",
        "dangling.ts": str(outside.parent / "none"),
        "loop": "loop",
        "zero": "/dev/zero",
        "stdin": "/dev/stdin",
        "passwd": "/etc/passwd",
        "proc": "/proc/self/environ",
    }
    for name, target in links.items():
        (root / name).symlink_to(target)
    os.mkfifo(root / "fifo.ts")
    through = [f"folder/{outside.name}", f"up/{outside.parent.name}/{outside.name}", "clips/../link.ts", "./link.ts"]
    return [*links, *through, "fifo.ts", "folder/../a.mp4", "up/x/../link.ts"]


def playlists(root: Path, outside: Path) -> list[str]:
    """Files inside of the root that FFmpeg would follow to the outside."""
    hls = "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:1.0,\n{}\n#EXT-X-ENDLIST\n"
    up = os.path.relpath(outside, root)
    texts = {
        "a.m3u8": hls.format(f"file://{outside}"),
        "b.m3u8": hls.format(up),
        "c.mp4": hls.format(up),
        "d.ffconcat": f"ffconcat version 1.0\nfile {outside}\n",
        "e.txt": f"ffconcat version 1.0\nfile '{up}'\n",
        "f.m3u": hls.format(outside),
    }
    for name, text in texts.items():
        (root / name).write_text(text)
    return list(texts)


class Witness:
    """Sees opens below a folder: by any library through inotify, by Python through its audit hook."""

    _IN_OPEN = 0x20

    def __init__(self, folder: Path) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._handle = self._libc.inotify_init1(os.O_NONBLOCK)
        watch = self._libc.inotify_add_watch(self._handle, os.fsencode(folder), self._IN_OPEN)
        if self._handle < 0 or watch < 0:
            raise OSError(ctypes.get_errno(), "inotify cannot watch", str(folder))
        self._folder = folder.resolve()
        self._opened: list[str] = []
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple) -> None:
        if event == "open" and isinstance(arguments[0], str | bytes):
            name = os.fsdecode(arguments[0])
            with suppress(OSError, ValueError, RuntimeError):  # RuntimeError: a loop of links
                if Path(name).resolve().is_relative_to(self._folder):
                    self._opened.append(name)

    def take(self) -> tuple[int, int]:
        """Opens since the last call, as inotify and as Python saw them."""
        seen = 0
        with suppress(BlockingIOError):
            while data := os.read(self._handle, 65536):
                while data:
                    length = struct.unpack_from("iIII", data)[3]
                    seen, data = seen + 1, data[16 + length :]
        heard, self._opened[:] = len(self._opened), []
        return seen, heard


def try_escape(path: str, column: str, kind: str, root: Path) -> str:
    """How an escape ends: refused by the manifest's reader, by the decoder, or "read" if it was decoded."""
    row = {"messages": [{"role": "user", "content": f"<{kind}>?"}], column: [path]}
    (root / "escape.jsonl").write_text(json.dumps(row) + "\n")
    [item] = scan_manifest(root / "escape.jsonl", root)
    if isinstance(item, Problem):
        return f"refused: {item.group}"
    [ref] = item.sample.media
    try:
        decode(DecodeTask(path=resolve_media(ref.path, root, "here"), ref=ref, settings=MediaSettings()))
    except MmrlError:
        return "refused: decoder"
    return "read"


def open_naively(path: str, root: Path) -> None:
    """Opens as a reader without checks would, to control the witnesses. It waits for no pipe."""
    with suppress(OSError, ValueError):
        os.close(os.open(os.path.expanduser(os.path.join(root, path)), os.O_RDONLY | os.O_NONBLOCK))
