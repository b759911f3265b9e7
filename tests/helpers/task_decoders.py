"""Reads the answers of generated tasks back from the signals, without the code that drew them."""

import math
import re
from collections import deque

import numpy as np

ROWS_HZ, COLUMNS_HZ = (697, 770, 852), (1209, 1336, 1477)


def foreground(pixels: np.ndarray) -> np.ndarray:
    """Pixels nearer to the brightest color than to the color of the border, bool (H, W)."""
    gray = pixels.astype(float).mean(axis=2)
    border = np.concatenate([gray[0], gray[-1], gray[:, 0], gray[:, -1]])
    return gray > (np.median(border) + np.quantile(gray, 0.995)) / 2


def components(mask: np.ndarray, least: int = 8) -> list[np.ndarray]:
    """The 4-connected groups of at least `least` pixels, each as (y, x) rows."""
    pending = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    found = []
    while pending:
        queue = deque([pending.pop()])
        group = []
        while queue:
            y, x = queue.popleft()
            group.append((y, x))
            for near in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)):
                if near in pending:
                    pending.remove(near)
                    queue.append(near)
        if len(group) >= least:
            found.append(np.array(group))
    return found


def shape_in(pixels: np.ndarray) -> str:
    """Names the one shape by its hole, or by the harmonics of its outline around its center."""
    mask = foreground(pixels)
    (group,) = components(mask, least=60)
    y, x = group.mean(axis=0)
    if not mask[round(y), round(x)]:
        return "ring"
    angle = np.arctan2(group[:, 0] - y, group[:, 1] - x)
    distance = np.hypot(group[:, 0] - y, group[:, 1] - x)
    sector = ((angle + math.pi) / (2 * math.pi) * 36).astype(int) % 36
    outline = np.array([distance[sector == each].max(initial=0.0) for each in range(36)])
    harmonics = np.abs(np.fft.rfft(outline / outline.mean())) / 18
    strongest = int(harmonics[3:6].argmax()) + 3
    if harmonics[strongest] < 0.06:
        return "circle"
    if strongest == 4:
        return "cross" if harmonics[4] > 0.18 else "square"
    return {3: "triangle", 5: "star"}[strongest]


def dots_in(pixels: np.ndarray) -> tuple[int, int]:
    """Numbers of red and of blue dots."""
    excess = pixels[..., 0].astype(float) - pixels[..., 2]
    return len(components(excess > 70)), len(components(excess < -70))


def key_in(waveform: np.ndarray, sample_rate_hz: int) -> str:
    """The touch-tone key whose row and column hold the most power within 2 %."""
    power = np.abs(np.fft.rfft(waveform)) ** 2
    frequency_hz = np.fft.rfftfreq(len(waveform), 1 / sample_rate_hz)

    def loudest(candidates: tuple[int, ...]) -> int:
        return int(np.argmax([power[np.abs(frequency_hz / each - 1) < 0.02].sum() for each in candidates]))

    return str(3 * loudest(ROWS_HZ) + loudest(COLUMNS_HZ) + 1)


def disk_center(frame: np.ndarray) -> np.ndarray:
    """The center (y, x) of what is light in all three channels, relative to the frame's."""
    light = np.argwhere(frame.min(axis=2) > 110)
    return light.mean(axis=0) - (np.array(frame.shape[:2]) - 1) / 2


def direction_in(frames: np.ndarray) -> str:
    """Where the disk goes between the first and the last frame."""
    down, right = disk_center(frames[-1]) - disk_center(frames[0])
    if max(abs(down), abs(right)) < 4:
        return "still"
    if abs(right) > abs(down):
        return "right" if right > 0 else "left"
    return "down" if down > 0 else "up"


def side_in(frame: np.ndarray) -> str:
    """The side of the frame where the disk is."""
    down, right = disk_center(frame)
    if abs(right) > abs(down):
        return "right" if right > 0 else "left"
    return "bottom" if down > 0 else "top"


def result_of(question: str) -> str:
    """The result of a sum or difference of three numbers."""
    terms = re.fullmatch(r"What is (\d) ([+-]) (\d) ([+-]) (\d)\?", question).groups()
    signs = {"+": 1, "-": -1}
    return str(int(terms[0]) + signs[terms[1]] * int(terms[2]) + signs[terms[3]] * int(terms[4]))
