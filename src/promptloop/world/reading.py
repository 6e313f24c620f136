"""What is in an image of the embedded world: things and their attributes, by rule, vectorised over images.

No learned part. Colour is read by hue, shape by overlap with rendered templates, size by area, patterns by
the brightness of their phases, outlines by the darkness of the ring around a thing, the ground by its phases.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import ndimage
from torch import Tensor

from promptloop.world.render import CHECKS, DARK, DOTS, GROUND_STEP, LINES, STRIPES, render
from promptloop.world.scene import CELLS, COLOURS, PATTERNS, SHAPES, SIDE, SIZES, Scene, Thing

SLOTS = 8  # things read per image, largest first
GRID = 16  # a thing's mask is compared with templates at this size
SMALLEST = 14  # pixels; anything smaller is a speck


@dataclass(frozen=True)
class Reading:
    """Things of N images in SLOTS slots each; scores in [0, 1], all 0 where a slot is empty.

    ``shape`` [N, S, 4], ``colour`` [N, S, 6], ``size`` [N, S, 2], ``pattern`` [N, S, 3], ``outlined`` [N, S],
    ``x`` and ``y`` [N, S] in pixels (nan where empty), ``ground`` [N, 3].
    """

    shape: np.ndarray
    colour: np.ndarray
    size: np.ndarray
    pattern: np.ndarray
    outlined: np.ndarray
    x: np.ndarray
    y: np.ndarray
    ground: np.ndarray

    def things(self, image: int) -> list[Thing]:
        """The best reading of one image's things, as a scene would hold them."""
        rows = [s for s in range(SLOTS) if self.shape[image, s].max() > 0.5]
        return [
            Thing(
                shape=SHAPES[self.shape[image, s].argmax()],
                colour=tuple(COLOURS)[self.colour[image, s].argmax()],
                size=tuple(SIZES)[self.size[image, s].argmax()],
                pattern=PATTERNS[self.pattern[image, s].argmax()],
                outlined=bool(self.outlined[image, s] > 0.5),
                x=float(self.x[image, s]),
                y=float(self.y[image, s]),
            )
            for s in rows
        ]


def read(images: Tensor | np.ndarray) -> Reading:
    """Reads images [N, 3, 64, 64] in [0, 1], or uint8 [N, 64, 64, 3].

    Raises ``ValueError`` for another size or type, and for an image that is not finite, by its index.
    """
    if isinstance(images, Tensor):
        rgb = images.detach().float().cpu().permute(0, 2, 3, 1).numpy()
    elif images.dtype == np.uint8:
        rgb = images / np.float32(255)
    else:
        raise ValueError(f"an array of {images.dtype}: give uint8 [N, 64, 64, 3], or a tensor in [0, 1]")
    if rgb.ndim != 4 or rgb.shape[1:] != (SIDE, SIDE, 3):
        raise ValueError(
            f"the oracle reads {SIDE}x{SIDE} colour images, got {rgb.shape}: decode without resizing"
        )
    broken = np.flatnonzero(~np.isfinite(rgb).all((1, 2, 3)))
    if len(broken):
        raise ValueError(f"image {broken[0]} of {len(rgb)} is not finite; nothing is scored")
    rgb = np.clip(rgb, 0, 1)
    masks, light = colour_masks(rgb)
    labels, found = ndimage.label(masks.reshape(-1, SIDE, SIDE), structure=IN_PLANE)
    blobs = measure(labels.reshape(masks.shape), found, light)
    return fill_slots(blobs, len(rgb), read_ground(masks, light))


IN_PLANE = np.zeros((3, 3, 3), bool)
IN_PLANE[1] = True  # diagonal neighbours touch; images do not


def hue(rgb: np.ndarray) -> np.ndarray:
    """Hue in degrees of rgb [..., 3]."""
    red, green, blue = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    return np.degrees(np.arctan2(np.sqrt(3) * (green - blue), 2 * red - green - blue)) % 360


def colour_masks(rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Masks [N, 6, 64, 64] of pixels of each colour, and brightness [N, 64, 64]."""
    red, green, blue = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    light = np.maximum(np.maximum(red, green), blue)  # numpy is slow to reduce an axis of three
    chroma = light - np.minimum(np.minimum(red, green), blue)
    solid = (chroma > 0.12) & (chroma > 0.33 * light)
    centres = hue(np.array(list(COLOURS.values()), np.float32) / 255)
    angle = abs((hue(rgb[solid])[:, None] - centres + 180) % 360 - 180)
    image, row, column = np.nonzero(solid)
    masks = np.zeros((len(rgb), len(COLOURS), *solid.shape[1:]), bool)
    masks[image, angle.argmin(1), row, column] = True
    return masks, light


def overlap(masks: np.ndarray, templates: np.ndarray) -> np.ndarray:
    """Intersection over union [L, T] of masks [L, G] with templates [T, G], both in [0, 1]."""
    common = masks @ templates.T
    return common / (masks.sum(1)[:, None] + templates.sum(1)[None] - common)


@cache
def templates() -> tuple[np.ndarray, np.ndarray]:
    """Masks [4, V, GRID*GRID] of each shape over sizes and sub-pixel offsets, and areas [4, 2] by size."""
    offsets = [(dx, dy) for dx in (0.0, 0.33, 0.66) for dy in (0.0, 0.33, 0.66)]
    things = [
        Thing(shape, "red", size, "plain", False, CELLS[1] + dx, CELLS[1] + dy)
        for shape in SHAPES
        for size in SIZES
        for dx, dy in offsets
    ]
    masks, _ = colour_masks(render([Scene((t,)) for t in things]) / np.float32(255))
    labels, found = ndimage.label(masks.reshape(-1, SIDE, SIDE), structure=IN_PLANE)
    labels = labels.reshape(masks.shape)
    grids = normalised(labels, extents(labels, found))
    areas = np.bincount(labels[labels > 0])[1:].reshape(len(SHAPES), len(SIZES), -1).mean(-1)
    return grids.reshape(len(SHAPES), -1, GRID * GRID), areas


def extents(labels: np.ndarray, found: int) -> np.ndarray:
    """Rows [L, 6] of (image, colour, first row, end row, first column, end column) of each label."""
    flat = labels.reshape(-1, SIDE, SIDE)
    boxes = ndimage.find_objects(flat, found)
    rows = [
        (
            b[0].start // labels.shape[1],
            b[0].start % labels.shape[1],
            b[1].start,
            b[1].stop,
            b[2].start,
            b[2].stop,
        )
        for b in boxes
    ]
    return np.array(rows, np.int64).reshape(-1, 6)


def normalised(labels: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Each label's mask, stretched to GRID x GRID: float [L, GRID*GRID]."""
    steps = (np.arange(GRID) + 0.5) / GRID
    rows = (box[:, 2:3] + steps * (box[:, 3:4] - box[:, 2:3])).astype(np.int64)
    columns = (box[:, 4:5] + steps * (box[:, 5:6] - box[:, 4:5])).astype(np.int64)
    image, colour = box[:, 0, None, None], box[:, 1, None, None]
    own = np.arange(1, len(box) + 1)[:, None, None]
    return (
        (labels[image, colour, rows[:, :, None], columns[:, None, :]] == own)
        .reshape(len(box), GRID * GRID)
        .astype(np.float32)
    )


def measure(labels: np.ndarray, found: int, light: np.ndarray) -> dict[str, np.ndarray]:
    """Attributes of every blob that is large enough to be a thing."""
    area = np.bincount(labels.ravel(), minlength=found + 1)
    keep = np.flatnonzero(area[1:] >= SMALLEST) + 1
    renumber = np.zeros(found + 1, np.int64)
    renumber[keep] = np.arange(1, len(keep) + 1)
    labels, area = renumber[labels], area[keep].astype(np.float32)
    box = extents(labels, len(keep))
    shapes, areas = templates()
    grids = normalised(labels, box)
    likeness = (
        np.stack([overlap(grids, t).max(1) for t in shapes], 1) if len(keep) else np.zeros((0, len(shapes)))
    )
    best = likeness.argmax(1)
    rivals = np.sort(likeness, 1)
    margin = likeness - np.where(likeness == rivals[:, -1:], rivals[:, -2:-1], rivals[:, -1:])
    shape = np.clip(0.5 + margin / 0.12, 0, 1) * np.clip((likeness - 0.5) / 0.25, 0, 1)
    large = np.clip(0.5 + np.log(area / np.sqrt(areas[best].prod(1))) / 0.4, 0, 1)
    image, colour, row, column = np.nonzero(labels)
    label = labels[image, colour, row, column] - 1

    def mean(values: np.ndarray) -> np.ndarray:
        return np.bincount(label, values, len(keep)) / np.maximum(area, 1)

    return {
        "image": box[:, 0],
        "colour": box[:, 1],
        "area": area,
        "shape": shape,
        "size": np.stack([1 - large, large], 1),
        "x": mean(column),
        "y": mean(row),
        "pattern": read_pattern(labels, light, (image, colour, row, column), label, len(keep)),
        "outlined": read_outline(labels, light, (image, colour, row, column), label, len(keep)),
    }


def read_pattern(
    labels: np.ndarray, light: np.ndarray, at: tuple, label: np.ndarray, found: int
) -> np.ndarray:
    """Scores [L, 3] of plain, striped, dotted: brightness of the phases against each pattern's profile."""
    image, colour, row, column = at
    inside = np.ones(len(label), bool)
    for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0)):
        r, c = np.clip(row + dy, 0, SIDE - 1), np.clip(column + dx, 0, SIDE - 1)
        inside &= labels[image, colour, r, c] == label + 1
    nominal = np.array(list(COLOURS.values()), np.float32).max(1) / 255
    bright = light[image, row, column] / nominal[colour]
    phase = (
        label * 4
        + 2 * STRIPES[row, column]
        + (DOTS[row, column] | (~STRIPES[row, column] & ((row // 2) % 2 == 1)))
    )
    weight = np.bincount(phase[inside], minlength=4 * found).reshape(found, 4).astype(np.float32)
    level = np.bincount(phase[inside], bright[inside], 4 * found).reshape(found, 4) / np.maximum(weight, 1)
    striped, dotted = DARK["striped"], DARK["dotted"]
    profiles = np.array([(1, 1, 1, 1), (1, 1, striped, striped), (1, 1, 1, dotted)], np.float32)
    gap = np.sqrt(
        (weight[:, None] * (level[:, None] - profiles) ** 2).sum(-1) / np.maximum(weight.sum(-1), 1)[:, None]
    )
    rivals = np.sort(gap, 1)
    margin = np.where(gap == rivals[:, :1], rivals[:, 1:2], rivals[:, :1]) - gap
    return np.clip(0.5 + margin / 0.2, 0, 1)


def read_outline(
    labels: np.ndarray, light: np.ndarray, at: tuple, label: np.ndarray, found: int
) -> np.ndarray:
    """Score [L] of having an outline: how dark the ring of pixels just outside is."""
    image, _, row, column = at
    taken = np.asarray((labels > 0).any(1))
    dark, seen = np.zeros(found), np.zeros(found)
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            r, c = row + dy, column + dx
            ring = (r >= 0) & (r < SIDE) & (c >= 0) & (c < SIDE)
            r, c = np.clip(r, 0, SIDE - 1), np.clip(c, 0, SIDE - 1)
            ring &= ~taken[image, r, c]
            dark += np.bincount(label[ring], np.clip((0.62 - light[image, r, c][ring]) / 0.3, 0, 1), found)
            seen += np.bincount(label[ring], minlength=found)
    return dark / np.maximum(seen, 1)


def read_ground(masks: np.ndarray, light: np.ndarray) -> np.ndarray:
    """Scores [N, 3] of plain, checkered, lined, from pixels away from every thing."""
    busy = masks.any(1) | (light < 0.45)
    free = ~ndimage.binary_dilation(busy, structure=IN_PLANE, iterations=2)

    def contrast(dark: np.ndarray) -> np.ndarray:
        off, on = free & ~dark, free & dark
        step = (light * off).sum((1, 2)) / np.maximum(off.sum((1, 2)), 1) - (light * on).sum(
            (1, 2)
        ) / np.maximum(on.sum((1, 2)), 1)
        return np.clip(step / GROUND_STEP, 0, 1)

    checkered, lined = contrast(CHECKS), contrast(LINES)
    most = np.maximum(checkered, lined)
    sharp = np.clip((most - 0.5) * 2.5 + 0.5, 0, 1)  # half the nominal contrast is the border to plain
    return np.stack([1 - sharp, sharp * (checkered >= lined), sharp * (lined > checkered)], 1)


def fill_slots(blobs: dict[str, np.ndarray], count: int, ground: np.ndarray) -> Reading:
    """Sorts blobs into the slots of their images, largest first."""
    order = np.lexsort((-blobs["area"], blobs["image"]))
    image = blobs["image"][order]
    slot = np.arange(len(order)) - np.searchsorted(image, image)
    order, image, slot = order[slot < SLOTS], image[slot < SLOTS], slot[slot < SLOTS]

    def slots(values: np.ndarray, empty: float = 0.0) -> np.ndarray:
        out = np.full((count, SLOTS, *values.shape[1:]), empty, np.float32)
        out[image, slot] = values[order]
        return out

    return Reading(
        shape=slots(blobs["shape"]),
        colour=slots(np.eye(len(COLOURS), dtype=np.float32)[blobs["colour"]]),
        size=slots(blobs["size"]),
        pattern=slots(blobs["pattern"]),
        outlined=slots(blobs["outlined"]),
        x=slots(blobs["x"], np.nan),
        y=slots(blobs["y"], np.nan),
        ground=ground.astype(np.float32),
    )
