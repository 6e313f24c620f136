"""The oracle: does an image show what was asked? GenEval's rule (arXiv 2310.11513), with fine attributes.

Each asked thing is matched with a thing found (the assignment that satisfies most), then every clause is
scored: attributes, exact counts for "two" and more, the relation, the ground. ``soft`` is the mean of the
clauses' scores, ``strict`` is 1 only when every clause holds. Things that nobody asked for do not count
against an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, final

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from promptloop.names import one_of
from promptloop.world.captions import Ask, Group, parse, phrase_group
from promptloop.world.reading import SLOTS, Reading, read
from promptloop.world.scene import COLOURS, GROUNDS, PATTERNS, SHAPES, SIDE, SIZES
from promptloop.world.words import PLACES

HOLDS = 0.5  # a clause holds from this score on
ASPECTS = {  # the kinds of clauses that people may be asked to judge by, apart from the others
    "attributes": ("shape", "colour", "size", "pattern", "outlined"),
    "spatial": ("place", "relation"),
    "count": ("count",),
}


@dataclass(frozen=True)
class Clause:
    """One thing that was asked, in words, how far it is true (0 to 1), and of what kind it is: an attribute
    ("shape", "colour", ..., "place"), "count", "relation" or "ground".
    """

    text: str
    score: float
    kind: str = ""


@dataclass(frozen=True)
class Grades:
    """``soft`` [N] in [0, 1], ``strict`` [N] 0 or 1, and the clauses of each image."""

    soft: Tensor
    strict: Tensor
    reasons: tuple[tuple[Clause, ...], ...]


def grade(images: Tensor | np.ndarray, asks: Sequence[Ask | str]) -> Grades:
    """Grades images [N, 3, 64, 64] in [0, 1] (or uint8 [N, 64, 64, 3]) against N asks or queries.

    Raises ``ValueError`` for a query outside the world's grammar, or when the numbers differ.
    """
    if len(images) != len(asks):
        raise ValueError(f"{len(images)} images but {len(asks)} queries: one query for each image")
    reading = read(images)
    reasons = tuple(clauses(reading, i, parse(a) if isinstance(a, str) else a) for i, a in enumerate(asks))
    soft = torch.tensor([sum(c.score for c in row) / len(row) for row in reasons])
    strict = torch.tensor([float(all(c.score >= HOLDS for c in row)) for row in reasons])
    return Grades(soft, strict, reasons)


@final
@dataclass(frozen=True)
class OracleReward:
    """The oracle as a reward: ``reward(images, queries) -> [B]``, scale 0 to 1, not differentiable.

    It is the soft score, or with ``strict`` 1 where every clause holds and else 0. With an ``aspect`` only
    its clauses count, and a query that asks nothing of that kind is met by every image.
    """

    strict: bool = False
    aspect: str = "all"
    differentiable: ClassVar[bool] = False

    def __post_init__(self) -> None:
        one_of(self.aspect, ("all", *ASPECTS), "aspect")

    @property
    def __name__(self) -> str:
        side = () if self.aspect == "all" else (self.aspect,)
        return "-".join(("oracle", *side, *(("strict",) if self.strict else ())))

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        found = grade(images, prompts)
        if self.aspect == "all":
            return found.strict if self.strict else found.soft
        scores = [[c.score for c in row if c.kind in ASPECTS[self.aspect]] or [1.0] for row in found.reasons]
        if self.strict:
            return torch.tensor([float(min(row) >= HOLDS) for row in scores])
        return torch.tensor([sum(row) / len(row) for row in scores])


def strict() -> OracleReward:
    """The oracle that gives no part of a point."""
    return OracleReward(strict=True)


def attributes() -> OracleReward:
    """The oracle's clauses on shapes, colours, sizes, patterns and outlines alone."""
    return OracleReward(aspect="attributes")


def spatial() -> OracleReward:
    """The oracle's clauses on where things are alone."""
    return OracleReward(aspect="spatial")


def count() -> OracleReward:
    """The oracle's clauses on exact numbers alone."""
    return OracleReward(aspect="count")


def attribute_scores(reading: Reading, image: int, group: Group) -> dict[str, np.ndarray]:
    """Scores [SLOTS] of each attribute that ``group`` asks for, for every thing found."""
    present = reading.shape[image].max(-1) > 0
    scores = {}
    if group.shape:
        scores["shape"] = reading.shape[image, :, SHAPES.index(group.shape)]
    if group.colour:
        scores["colour"] = reading.colour[image, :, tuple(COLOURS).index(group.colour)]
    if group.size:
        scores["size"] = reading.size[image, :, tuple(SIZES).index(group.size)]
    if group.pattern:
        scores["pattern"] = reading.pattern[image, :, PATTERNS.index(group.pattern)]
    if group.outlined is not None:
        drawn = reading.outlined[image]
        scores["outlined"] = np.clip(0.5 + ((drawn if group.outlined else 1 - drawn) - 0.5) * 1.5, 0, 1)
    if group.place is not None:
        # "at the top" leaves the column open, "at the left" the row; "centre" means both
        column, row = group.place
        across = near(reading.x[image], column) if column != 1 or row == 1 else 1.0
        along = near(reading.y[image], row) if row != 1 or column == 1 else 1.0
        scores["place"] = np.asarray(across * along)
    return {name: s * present for name, s in scores.items()} or {"shape": present.astype(np.float32)}


def near(pixel: np.ndarray, third: int) -> np.ndarray:
    """1 inside the asked third of the image, falling to 0 half a third outside."""
    width = SIDE / 3
    outside = np.maximum(abs(np.nan_to_num(pixel, nan=1e3) - (third + 0.5) * width) - width / 2, 0)
    return np.clip(1 - outside / (width / 2), 0, 1)


def clauses(reading: Reading, image: int, ask: Ask) -> tuple[Clause, ...]:
    """Every clause of ``ask`` with its score on one image."""
    scores = [attribute_scores(reading, image, g) for g in ask.groups]
    wanted = [g for g, group in enumerate(ask.groups) for _ in range(group.count)]
    fit = np.array([np.mean(list(scores[g].values()), 0) for g in wanted])
    padded = np.concatenate(
        [fit, np.zeros((len(wanted), len(wanted)))], 1
    )  # a wanted thing may stay unmatched
    rows, columns = linear_sum_assignment(-padded)
    match = {
        r: c if padded[r, c] > 0 else SLOTS for r, c in zip(rows.tolist(), columns.tolist(), strict=True)
    }
    out = []
    for row, g in enumerate(wanted):
        slot = match[row] if match[row] < SLOTS else None
        name = phrase_group(replace(ask.groups[g], count=1, place=None))
        for attribute, score in scores[g].items():
            word = attribute if attribute != "place" else f"at the {PLACES[ask.groups[g].place]}"  # type: ignore[index]
            out.append(Clause(f"{name}: {word}", float(score[slot]) if slot is not None else 0.0, attribute))
    for g, group in enumerate(ask.groups):
        if group.count > 1:
            found = int((np.min(list(scores[g].values()), 0) >= HOLDS).sum())
            off = abs(found - group.count)
            told = f"exactly {phrase_group(group)} (found {found})"
            out.append(Clause(told, max(0.0, 1 - 0.6 * off) if off else 1.0, "count"))
    if ask.relation:
        held = relation_score(reading, image, ask, wanted, match, fit)
        out.append(Clause(f"first is {ask.relation} second", held, "relation"))
    if ask.ground:
        drawn = float(reading.ground[image, GROUNDS.index(ask.ground)])
        out.append(Clause(f"{ask.ground} background", drawn, "ground"))
    return tuple(out)


def relation_score(
    reading: Reading, image: int, ask: Ask, wanted: list[int], match: dict[int, int], fit: np.ndarray
) -> float:
    """How far the first group's things lie on the asked side of the second's; 0 when either is missing."""
    slots = [[match[r] for r, g in enumerate(wanted) if g == side] for side in (0, 1)]
    if any(s >= SLOTS for side in slots for s in side):
        return 0.0
    centre = reading.x[image] if ask.relation in ("left of", "right of") else reading.y[image]
    first, second = centre[slots[0]], centre[slots[1]]
    gap = second.min() - first.max() if ask.relation in ("left of", "above") else first.min() - second.max()
    there = min(float(fit[r, match[r]]) for r, g in enumerate(wanted) if g < 2)
    return float(np.clip(gap / 10, 0, 1)) * there
