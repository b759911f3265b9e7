"""Sokoban in text: levels as rows of characters, plans as lists of moves, and the rules of the game."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lightning_mmrl.errors import DataError
from lightning_mmrl.prompts.answers import typeset
from lightning_mmrl.types.records import Sample

Cell = tuple[int, int]
"""Row and column, from 0 at the top left."""
MOVES = {"Left": (0, -1), "Right": (0, 1), "Up": (-1, 0), "Down": (1, 0)}
"""Maps each move to its change of row and column."""
LEVEL = "level"
"""Column of a manifest with the rows of the level."""
WALL, TARGET = "#", "."
_THINGS = {"@": "player", "+": "player", "$": "box", "*": "box", TARGET: "target", " ": "floor", WALL: "wall"}
_ON_TARGET = frozenset("+*.")
_SEPARATORS = re.compile(r"[\s,]+")
_BY_NAME = {move.casefold(): move for move in MOVES}


@dataclass(frozen=True, slots=True)
class State:
    """Where player and boxes are."""

    player: Cell
    boxes: frozenset[Cell]


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """A board and where player and boxes start; what is outside the rows is wall."""

    size: tuple[int, int]
    walls: frozenset[Cell]
    targets: frozenset[Cell]
    start: State

    @classmethod
    def parse(cls, rows: Sequence[str]) -> "Level":
        """Read a level in the usual characters: `#` wall, `@` player, `$` box, `.` target, `+` and `*` on a target.

        Raises:
            DataError: A character is unknown, or there is not one player and a target for each box.

        >>> Level.parse(["#####", "#@$.#", "#####"]).start.boxes
        frozenset({(1, 2)})
        """
        cells = {(row, column): each for row, line in enumerate(rows) for column, each in enumerate(line)}
        unknown = sorted(set(cells.values()) - _THINGS.keys())
        if unknown:
            raise DataError(f"a level has the character {unknown[0]!r}; use {''.join(_THINGS)!r}")

        def all_of(name: str) -> frozenset[Cell]:
            return frozenset(cell for cell, each in cells.items() if _THINGS[each] == name)

        players, boxes = all_of("player"), all_of("box")
        targets = frozenset(cell for cell, each in cells.items() if each in _ON_TARGET)
        if len(players) != 1 or not boxes or len(boxes) != len(targets):
            raise DataError(
                f"a level has {len(players)} players, {len(boxes)} boxes and {len(targets)} targets; "
                "it needs one player, and as many targets as boxes"
            )
        [player] = players
        size = (len(rows), max(map(len, rows)))
        return cls(size=size, walls=all_of("wall"), targets=targets, start=State(player, boxes))

    def rows(self) -> list[str]:
        """Return the level in characters, as `parse` reads it.

        >>> Level.parse(["#####", "#@$.#", "#####"]).rows()
        ['#####', '#@$.#', '#####']
        """
        return [
            "".join(self._character((row, column)) for column in range(self.size[1])) for row in range(self.size[0])
        ]

    def _character(self, cell: Cell) -> str:
        plain, on_target = (" ", TARGET)
        if cell in self.walls:
            return WALL
        if cell == self.start.player:
            plain, on_target = "@", "+"
        elif cell in self.start.boxes:
            plain, on_target = "$", "*"
        return on_target if cell in self.targets else plain

    def is_solved(self, state: State) -> bool:
        """Whether every box is on a target."""
        return state.boxes == self.targets

    def step(self, state: State, move: str) -> State:
        """Return the state after a move of `MOVES`; a move that a wall or a second box stops changes nothing.

        The player pushes the box in front, and never pulls one.
        """
        down, right = MOVES[move]
        ahead = (state.player[0] + down, state.player[1] + right)
        if not self._is_open(ahead):
            return state
        if ahead not in state.boxes:
            return State(ahead, state.boxes)
        behind = (ahead[0] + down, ahead[1] + right)
        if not self._is_open(behind) or behind in state.boxes:
            return state
        return State(ahead, state.boxes - {ahead} | {behind})

    def _is_open(self, cell: Cell) -> bool:
        row, column = cell
        return 0 <= row < self.size[0] and 0 <= column < self.size[1] and cell not in self.walls

    def play(self, plan: Iterable[str]) -> list[State]:
        """Return the state after each move of a plan; the game ends when it is solved, so later moves have no state.

        >>> level = Level.parse(["@$.", "   "])
        >>> [state.player for state in level.play(["Down", "Up", "Right", "Left"])]
        [(1, 0), (0, 0), (0, 1)]
        """
        states, state = [], self.start
        for move in plan:
            if self.is_solved(state):
                break
            state = self.step(state, move)
            states.append(state)
        return states

    def solves(self, plan: Sequence[str]) -> bool:
        """Whether a plan puts every box on a target."""
        return self.is_solved([self.start, *self.play(plan)][-1])


def level_of(sample: Sample) -> Level:
    """Return the level of a sample: the column `level`, a list of rows or one text with line breaks.

    Raises:
        DataError: The sample has no level, or one that cannot be read.
    """
    rows = sample.extras.get(LEVEL)
    rows = rows.splitlines() if isinstance(rows, str) else rows
    if not isinstance(rows, list | tuple) or not rows or not all(isinstance(row, str) for row in rows):
        raise DataError(f"sample {sample.id!r} has no level; give the column {LEVEL!r}, a list of rows such as '#@$.#'")
    try:
        return Level.parse(rows)
    except DataError as error:
        raise DataError(f"sample {sample.id!r}: {error}") from error


def read_plan(answer: str) -> tuple[str, ...] | None:
    r"""Return the moves that an answer lists, separated by commas or whitespace; None if a word is no move.

    >>> read_plan(" Left, up,\nUp. "), read_plan("Left or Up"), read_plan("")
    (('Left', 'Up', 'Up'), None, None)
    """
    words = [word.casefold() for word in _SEPARATORS.split(typeset(answer).rstrip(" .")) if word]
    return tuple(_BY_NAME[word] for word in words) if words and all(word in _BY_NAME for word in words) else None


def write_plan(plan: Iterable[str]) -> str:
    """Return a plan in the text that `read_plan` reads.

    >>> write_plan(["Left", "Up"])
    'Left, Up'
    """
    return ", ".join(plan)


def shortest_plan(level: Level, longest: int) -> tuple[str, ...] | None:
    """Return the first of the shortest plans, by breadth-first search in the order of `MOVES`.

    None if no plan of at most `longest` moves solves the level.

    >>> shortest_plan(Level.parse(["   ", "@$ ", " . "]), 3)
    ('Up', 'Right', 'Down')
    """
    frontier: dict[State, tuple[str, ...]] = {level.start: ()}
    seen = set(frontier)
    for _ in range(longest + 1):
        found = next((plan for state, plan in frontier.items() if level.is_solved(state)), None)
        if found is not None:
            return found
        following: dict[State, tuple[str, ...]] = {}
        for state, plan in frontier.items():
            for move in MOVES:
                reached = level.step(state, move)
                if reached not in seen:
                    seen.add(reached)
                    following[reached] = (*plan, move)
        frontier = following
    return None
