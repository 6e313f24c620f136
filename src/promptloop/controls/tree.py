"""A tree of trajectories for every sample: how it grows, and how rewards at its ends become values above."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import final

import torch

from promptloop.controls.groups import check_number
from promptloop.controls.route import Route
from promptloop.rewards.contract import Reward
from promptloop.sample import State, join
from promptloop.state import seed_of


@final
class Point:
    """A point of a tree at `depth` (the root: -1): row `row` of the states `batch`, which the root has not.

    `value` is None until a reward below it is known. `visits` counts the rollouts that went through, and 1.
    """

    batch: State
    row: int
    value: float | None = None

    def __init__(self, parent: Point | None, seed: int) -> None:
        self.parent, self.seed = parent, seed
        self.depth: int = -1 if parent is None else parent.depth + 1
        self.children: list[Point] = []
        self.visits = 1

    @property
    def known(self) -> list[Point]:
        """The children that have a value."""
        return [child for child in self.children if child.value is not None]

    @property
    def worth(self) -> float:
        """The value, where there is one."""
        assert self.value is not None
        return self.value

    def child(self, step: int) -> Point:
        """One more child, to be drawn at this step. The first keeps the seed, the others get their own."""
        number = len(self.children)
        made = Point(self, seed_of(self.seed, max(step, 0), f"child {number}") if number else self.seed)
        self.children.append(made)
        return made

    def ends(self) -> Iterator[Point]:
        """The finished images below."""
        if not self.children:
            yield self
        for child in self.children:
            yield from child.ends()


Choice = Callable[[Point, torch.Generator], Point]  # one of the known children


@final
@dataclass(frozen=True)
class Shape:
    """How trees grow; the settings of `trees.dts`."""

    strength: float
    branches: int
    width: float
    growth: float
    together: int

    def __post_init__(self) -> None:
        check_number("branches", self.branches, 0, "a number of levels from 0")
        check_number("width", self.width, 1, "a number of children from 1")
        check_number("together", self.together, 1, "a number of rollouts from 1")
        if not 0 <= self.growth <= 1:
            raise ValueError(f"growth is {self.growth}; give a power of the visits from 0 to 1")

    def depths(self, steps: int) -> list[int]:
        """The step of each depth, then the end. None starts the last step, which draws nothing."""
        places = [k * steps // self.branches for k in range(self.branches)]
        return [*(step for step in dict.fromkeys(places) if step < steps - 1), steps]

    def soft(self, values: Sequence[float]) -> float:
        """log(mean exp(strength value)) / strength: the mean at strength 0, the highest at inf."""
        top = max(values)
        if self.strength == math.inf:
            return top
        if self.strength == 0:
            return sum(values) / len(values)
        mean = sum(math.exp(self.strength * (value - top)) for value in values) / len(values)
        return top + math.log(mean) / self.strength


@final
@dataclass(frozen=True)
class Forest:
    """One tree for each sample, and what they grow by. `name` is the method's, for its errors."""

    route: Route
    reward: Reward
    shape: Shape
    choose: Choice
    queries: Sequence[str]
    roots: Sequence[Point]
    name: str

    def grow(self, rollouts: int) -> None:
        """So many rollouts of every tree. The first ones do not depend on how many follow."""
        check_number("rollouts", rollouts, 1, "a number of rollouts from 1")
        drawing = self.name if rollouts > 1 else None
        for begun in range(0, rollouts, self.shape.together):
            count = min(self.shape.together, rollouts - begun)
            self._rolled_out([self._selected(root) for root in self.roots for _ in range(count)], drawing)

    def walk(self, root: Point, purpose: str) -> Point:
        """From the root to an end, by choice alone."""
        point, generator = root, self._generator(root, purpose)
        while point.children:
            point = self.choose(point, generator)
        return point

    def _generator(self, root: Point, purpose: str) -> torch.Generator:
        return torch.Generator().manual_seed(seed_of(root.seed, 0, purpose))

    def _selected(self, root: Point) -> Point:
        """A new child of the first point that may have one more (2506.20701, alg. 1, selection). The last
        point before the end always may, so that every rollout finds a new image.
        """
        point, generator = root, self._generator(root, f"walk {root.visits}")
        depths = self.shape.depths(self.route.steps)
        while True:
            full = len(point.children) >= self.shape.width * point.visits**self.shape.growth
            point.visits += 1
            if not full or not point.known or point.depth == len(depths) - 2:
                return point.child(depths[point.depth])
            point = self.choose(point, generator)

    def _rolled_out(self, new: Sequence[Point], drawing: str | None) -> None:
        """The new points drawn, all the way to the end, and the values above them: all trees at once."""
        depths = self.shape.depths(self.route.steps)
        points: list[Point] = []
        state: State | None = None
        for depth, step in enumerate(depths):
            points = [point.child(depths[depth - 1]) for point in points]
            joining = [point for point in new if point.depth == depth]
            if joining:
                start = self._start(joining)
                state = start if state is None else join([state, start])
                points += joining
            if state is None:
                continue  # nobody branches as early as here
            state = self.route.onward(state, step, drawing if depth else None)
            for row, point in enumerate(points):
                point.batch, point.row = state, row
        assert state is not None
        found = self.route.rewards(state, self.reward).tolist()
        for point, value in zip(points, found, strict=True):
            point.value = value
        for point in points:
            self._back_up(point)

    def _start(self, points: Sequence[Point]) -> State:
        """The states that the points, all of one depth, are drawn from, with the points' seeds."""
        if points[0].depth:
            return gathered([parent for point in points if (parent := point.parent)], points)
        rows = {id(root): query for root, query in zip(self.roots, self.queries, strict=True)}
        prompts = [rows[id(point.parent)] for point in points]
        return self.route.opened(prompts, [point.seed for point in points], self.name)

    def _back_up(self, point: Point) -> None:
        above = point.parent
        while above is not None:
            above.value = self.shape.soft([child.worth for child in above.known])
            above = above.parent


def gathered(points: Sequence[Point], seeded: Sequence[Point]) -> State:
    """The states of the points, all of one depth, in order, with the seeds of the others."""
    batches: dict[int, list[int]] = {}
    for k, point in enumerate(points):
        batches.setdefault(id(point.batch), []).append(k)
    parts = []
    for places in batches.values():
        batch, rows = points[places[0]].batch, [points[k].row for k in places]
        whole = rows == list(range(len(batch)))  # then shared and not copied
        parts.append(batch if whole else batch.take(rows))
    order = [k for places in batches.values() for k in places]
    state = join(parts)
    if order != sorted(order):
        state = state.take(torch.tensor(order).argsort())
    return replace(state, seeds=torch.tensor([point.seed for point in seeded], dtype=torch.long))
