"""The embedded world's scenes: 1-4 things on a 64x64 ground, with attributes at several scales.

Coarse (decided early in a trajectory): how many things, where, how large. Middle: shape, colour.
Fine (decided late): surface pattern, outline, background pattern.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

SIDE = 64
SHAPES = ("circle", "square", "triangle", "star")
COLOURS = {
    "red": (225, 40, 40),
    "green": (45, 175, 65),
    "blue": (50, 85, 230),
    "yellow": (240, 220, 40),
    "purple": (165, 60, 205),
    "orange": (245, 135, 25),
}
SIZES = {"small": 6.0, "large": 9.0}  # radius in pixels of the circle; other shapes have a similar area
PATTERNS = ("plain", "striped", "dotted")
GROUNDS = ("plain", "checkered", "lined")
CELLS = (12.5, 32.0, 51.5)  # centres of the 3x3 layout, in pixels
JITTER = 1.0
SPREAD = (
    (0, 2, 4, 6, 8),
    (1, 3, 5, 7),
)  # a scene's things stand on one of these sets of cells, so none touch


@dataclass(frozen=True)
class Thing:
    """One object. ``x`` and ``y`` are pixels (column, row) of its centre."""

    shape: str
    colour: str
    size: str
    pattern: str
    outlined: bool
    x: float
    y: float

    @property
    def column(self) -> int:
        return cell_of(self.x)

    @property
    def row(self) -> int:
        return cell_of(self.y)


@dataclass(frozen=True)
class Scene:
    """Things on a ground. ``tone`` is the ground's grey level in [0, 1]; no caption ever names it."""

    things: tuple[Thing, ...]
    ground: str = "plain"
    tone: float = 0.8


def cell_of(pixel: float) -> int:
    """Index 0, 1 or 2 of the third of the image that ``pixel`` lies in."""
    return min(2, max(0, int(pixel * 3 / SIDE)))


def random_thing(rng: random.Random, column: int, row: int) -> Thing:
    return Thing(
        shape=rng.choice(SHAPES),
        colour=rng.choice(tuple(COLOURS)),
        size=rng.choice(tuple(SIZES)),
        pattern=rng.choices(PATTERNS, (0.6, 0.2, 0.2))[0],
        outlined=rng.random() < 0.25,
        x=CELLS[column] + rng.uniform(-JITTER, JITTER),
        y=CELLS[row] + rng.uniform(-JITTER, JITTER),
    )


def random_scene(rng: random.Random, count: int | None = None) -> Scene:
    """A scene as the training set has them; things repeat often enough that counting can be learned."""
    count = count or rng.choices((1, 2, 3, 4), (0.06, 0.44, 0.3, 0.2))[0]
    things: list[Thing] = []
    for place in rng.sample(rng.choices(SPREAD, (0.6, 0.4))[0], count):
        thing = random_thing(rng, place % 3, place // 3)
        if things and rng.random() < 0.3:  # a twin of an earlier one
            twin = rng.choice(things)
            thing = Thing(twin.shape, twin.colour, twin.size, twin.pattern, twin.outlined, thing.x, thing.y)
        things.append(thing)
    ground = rng.choices(GROUNDS, (0.5, 0.25, 0.25))[0]
    return Scene(tuple(things), ground, rng.uniform(0.72, 0.92))
