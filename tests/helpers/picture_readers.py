"""Reads the answers of tasks with pictures of tiles from question and pixels, without the code that drew them.

Also an own Sokoban: a dictionary of characters, and every plan tried in turn.
"""

import re
from itertools import product

import numpy as np
from task_decoders import components, dots_in, result_of

FRAME_PX = 5
TILE_PX = 28
STEPS = {"Left": (0, -1), "Right": (0, 1), "Up": (-1, 0), "Down": (1, 0)}


def masks_of(pixels: np.ndarray) -> dict[str, np.ndarray]:
    """Where each color is, bool (H, W); the frame at the edges is left out."""
    red, green, blue = np.moveaxis(pixels.astype(float), 2, 0)
    masks = {
        "red": (red > green + 70) & (red > blue + 70),
        "green": (green > red + 60) & (green > blue + 50),
        "blue": (blue > red + 70) & (blue > green + 40),
        "yellow": (np.minimum(red, green) > blue + 60) & (np.abs(red - green) < 65),
    }
    inside = np.zeros_like(masks["red"])
    inside[FRAME_PX:-FRAME_PX, FRAME_PX:-FRAME_PX] = True
    return {color: mask & inside for color, mask in masks.items()}


def letter_of(text: str, question: str) -> str:
    """The letter of the only option line with a text."""
    [letter] = [letter for letter, option in re.findall(r"^([A-D])\) (.+)$", question, re.MULTILINE) if option == text]
    return letter


def number_in(question: str, pixels: np.ndarray | None) -> str:
    """The answer of the numbers: the result of a sum, or the number of dots."""
    return result_of(question) if pixels is None else str(sum(dots_in(pixels)))


def described_dots(question: str, pixels: np.ndarray | None) -> tuple[int, ...]:
    """The red and the blue dots of a picture or of a description."""
    if pixels is not None:
        return dots_in(pixels)
    return tuple(int(number) for number in re.match(r"(\d) red and (\d) blue dots", question).groups())


def relation_in(question: str, pixels: np.ndarray) -> str:
    """The text that answers a question about shapes."""
    masks = masks_of(pixels)
    if asked := re.search(r"Where is the (\w+) shape, seen from the (\w+) shape", question):
        one, other = (np.argwhere(masks[color]).mean(axis=0) for color in asked.groups())
        down, right = one - other
        if abs(right) > abs(down):
            return "right" if right > 0 else "left"
        return "below" if down > 0 else "above"
    if asked := re.search(r"How many (\w+) shapes", question):
        return ("zero", "one", "two", "three", "four")[len(components(masks[asked[1]], least=30))]
    seen = {color: np.argwhere(mask) for color, mask in masks.items() if mask.sum() > 25}
    assert len(seen) == 2
    # Of two overlapping shapes of one size, the nearer one shows more.
    return max(seen, key=lambda color: len(seen[color]))


def bars_in(pixels: np.ndarray) -> dict[str, int]:
    """The height of each color, in sixths of the picture."""
    red, green, blue = np.moveaxis(pixels.astype(float), 2, 0)
    heights = {}
    for place in range(4):
        column = slice(place * 21 + 7, place * 21 + 14)
        r, g, b = (channel[-8:-2, column].mean() for channel in (red, green, blue))
        color = (
            "yellow" if min(r, g) > b + 60 and abs(r - g) < 65 else ("red", "green", "blue")[int(np.argmax([r, g, b]))]
        )
        bright = pixels[:, column].max(axis=2).mean(axis=1) > 130
        heights[color] = round(bright.sum() / 14)
    return heights


def chart_answer(question: str, pixels: np.ndarray) -> str:
    """The text that answers a question about bars."""
    heights = bars_in(pixels)
    if asked := re.search(r"How tall is the (\w+) bar", question):
        return ("zero", "one", "two", "three", "four", "five", "six")[heights[asked[1]]]
    return max(heights, key=lambda color: heights[color])


def level_in(pixels: np.ndarray) -> list[str]:
    """The rows of a level in the usual characters."""
    looks = {"#": (120, 120, 130), ".": (225, 60, 60), "$": (190, 130, 60), "@": (70, 130, 240), " ": (25, 25, 25)}
    rows = []
    for top in range(0, len(pixels), TILE_PX):
        row = ""
        for left in range(0, len(pixels), TILE_PX):
            middle = pixels[top + 11 : top + 17, left + 11 : left + 17].reshape(-1, 3).mean(axis=0)
            row += min(looks, key=lambda each: np.abs(middle - looks[each]).sum())
        rows.append(row)
    return rows


def plays(rows: list[str], moves: tuple[str, ...]) -> bool:
    """Whether moves solve a level, at the end or before."""
    cells = {(y, x): each for y, row in enumerate(rows) for x, each in enumerate(row) if each != "#"}
    goals = {cell for cell, each in cells.items() if each in ".+*"}
    boxes = {cell for cell, each in cells.items() if each in "$*"}
    [(y, x)] = [cell for cell, each in cells.items() if each in "@+"]
    for move in moves:
        if boxes == goals:
            return True
        dy, dx = STEPS[move]
        one, two = (y + dy, x + dx), (y + 2 * dy, x + 2 * dx)
        if one not in cells or (one in boxes and (two not in cells or two in boxes)):
            continue
        if one in boxes:
            boxes = boxes - {one} | {two}
        y, x = one
    return boxes == goals


def fewest_moves(rows: list[str], longest: int) -> int | None:
    """The length of the shortest of all plans, each of which is tried."""
    lengths = range(1, longest + 1)
    return next((n for n in lengths if any(plays(rows, plan) for plan in product(STEPS, repeat=n))), None)
