"""Scenes to images: signed distances, antialiased, vectorised over scenes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from promptloop.world.scene import COLOURS, SHAPES, SIDE, SIZES, Scene

DARK = {"striped": 0.5, "dotted": 0.4}  # how much of its colour a dark part of a pattern keeps
INK = 0.1  # grey level of outlines
OUTLINE = 1.5  # pixels
GROUND_STEP = 0.16  # how much darker the dark parts of a patterned ground are

_ROWS, _COLUMNS = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32)
STRIPES = (_COLUMNS // 2 % 2) == 1
DOTS = STRIPES & ((_ROWS // 2 % 2) == 1)
CHECKS = ((_COLUMNS // 8 + _ROWS // 8) % 2) == 1
LINES = (_ROWS // 2 % 4) == 1


def signed_distance(shape: np.ndarray, dx: np.ndarray, dy: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Distance in pixels to the border of each shape (index into SHAPES), negative inside.

    All arguments broadcast; ``radius`` is the circle's, other shapes are scaled to a similar area.
    """
    circle = np.hypot(dx, dy) - radius
    square = np.maximum(abs(dx), abs(dy)) - 0.9 * radius
    height = 0.72 * radius  # inradius of the triangle, which points up and sits a little low
    low = dy - 0.15 * radius
    half = 0.5 * math.sqrt(3)
    triangle = np.maximum(low, half * abs(dx) - 0.5 * low) - height
    angle = np.arctan2(dx, -dy)
    sector = math.pi / 5
    folded = abs((angle + sector) % (2 * sector) - sector)
    distance = np.hypot(dx, dy)
    px, py = distance * np.cos(folded), distance * np.sin(folded)
    outer, inner = 1.38 * radius, 0.62 * radius  # star: the edge from the tip (outer, 0) to the notch
    nx, ny = inner * math.sin(sector), outer - inner * math.cos(sector)
    star = ((px - outer) * nx + py * ny) / np.hypot(nx, ny)
    return np.choose(shape, (circle, square, triangle, star))


def render(scenes: Sequence[Scene]) -> np.ndarray:
    """Images uint8 [N, 64, 64, 3] of ``scenes``."""
    return np.concatenate([_render(scenes[i : i + 256]) for i in range(0, len(scenes), 256)])


def _render(scenes: Sequence[Scene]) -> np.ndarray:
    tone = np.array([s.tone for s in scenes], np.float32)[:, None, None]
    ground = np.array([s.ground for s in scenes])[:, None, None]
    grey = tone - GROUND_STEP * (((ground == "checkered") & CHECKS) | ((ground == "lined") & LINES))
    image = np.repeat(grey[..., None], 3, axis=-1)
    for slot in range(max(len(s.things) for s in scenes)):
        rows = [i for i, s in enumerate(scenes) if len(s.things) > slot]
        things = [scenes[i].things[slot] for i in rows]

        def column(values: list, kind: type = np.float32) -> np.ndarray:
            return np.array(values, kind)[:, None, None]

        distance = signed_distance(
            column([SHAPES.index(t.shape) for t in things], np.int64),
            _COLUMNS - column([t.x for t in things]),
            _ROWS - column([t.y for t in things]),
            column([SIZES[t.size] for t in things]),
        )
        shade = 1 - (1 - DARK["striped"]) * (column([t.pattern == "striped" for t in things], bool) & STRIPES)
        shade = shade - (1 - DARK["dotted"]) * (column([t.pattern == "dotted" for t in things], bool) & DOTS)
        colour = np.array([COLOURS[t.colour] for t in things], np.float32)[:, None, None, :] / 255
        width = column([OUTLINE if t.outlined else 0.0 for t in things])
        ink = np.clip(0.5 + width - distance, 0, 1)[..., None] * (width > 0)[..., None]
        body = np.clip(0.5 - distance, 0, 1)[..., None]
        patch = image[rows] * (1 - ink) + INK * ink
        image[rows] = patch * (1 - body) + colour * shade[..., None] * body
    return (image * 255 + 0.5).clip(0, 255).astype(np.uint8)
