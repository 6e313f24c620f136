"""Scripted policies for the headroom study: what can be gained by rewriting ahead, by timing, by looking.

They know the world's language (``captions``), and ``Look`` reads estimates with the oracle's own eyes
(``reading``). None is trained; none is used outside the study and the tests.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Literal, final

from promptloop.policies.contract import Request
from promptloop.policies.fixed import Fixed
from promptloop.world.captions import Ask, Group, parse, phrase
from promptloop.world.oracle import HOLDS, attribute_scores
from promptloop.world.reading import SLOTS, Reading, read

SIDES = {
    "left of": ((0, None), (2, None)),
    "right of": ((2, None), (0, None)),
    "above": ((None, 0), (None, 2)),
}
SIDES["below"] = (SIDES["above"][1], SIDES["above"][0])


def laid_out(ask: Ask, rng: random.Random) -> Ask:
    """``ask`` with a place for every single thing, the relation turned into places."""
    free = [(0, 0), (2, 0), (0, 2), (2, 2)]  # corners satisfy every relation and keep things apart
    rng.shuffle(free)
    groups = []
    for index, group in enumerate(ask.groups):
        want = SIDES[ask.relation][index] if ask.relation and index < 2 else (None, None)
        place = next(p for p in free if all(w is None or w == x for w, x in zip(want, p, strict=True)))
        free.remove(place)
        groups.append(replace(group, place=place if group.count == 1 else None))
    keep = ask.relation if any(g.count > 1 for g in groups[:2]) else None
    return Ask(tuple(groups), keep, ask.ground)


@final
@dataclass(frozen=True)
class Ahead(Fixed):
    """Rewrites the query in the captions' words before the first step, and then leaves it."""

    terse: bool = False
    places: bool = False

    def answer(self, request: Request, rng: random.Random) -> str:
        if request.progress > 0:
            return request.prompt
        ask = parse(request.query)
        return phrase(laid_out(ask, rng) if self.places else ask, terse=self.terse)


@final
@dataclass(frozen=True)
class Timed(Fixed):
    """Writes by the clock, never looks.

    ``order`` "turns": everything first, then one group at a time in turn; "coarse": shapes and colours first,
    fine details from ``late`` on; "fine": as turns, with the ground last.
    """

    order: str = "turns"
    late: float = 0.3
    every: float = 0.1
    terse: bool = True

    def answer(self, request: Request, rng: random.Random) -> str:
        ask = parse(request.query)
        if self.order == "coarse":
            if request.progress >= self.late:
                return phrase(ask, terse=self.terse)
            bare = tuple(replace(g, pattern=None, outlined=None, size=None) for g in ask.groups)
            return phrase(Ask(bare, ask.relation), terse=self.terse)
        turn = round(request.progress / self.every)
        parts = [Ask((g,)) for g in ask.groups] if not ask.relation else [ask]
        if self.order == "turns" and turn == 0 or len(ask.groups) == 1:
            return phrase(ask, terse=self.terse)
        if self.order == "fine" and turn >= len(parts):
            return phrase(ask, terse=self.terse)
        return phrase(parts[turn % len(parts)], terse=self.terse)


@final
@dataclass(frozen=True)
class Look(Fixed):
    """Reads the estimate and speaks of what it sees missing or wrong; restates everything when nothing is.

    ``emphasis`` "only" names nothing else; "repeat" says it first, then the rest, then it once more.
    """

    emphasis: Literal["only", "repeat"] = "repeat"
    terse: bool = True
    places: bool = False

    def answer(self, request: Request, rng: random.Random) -> str:
        ask = parse(request.query)
        if request.estimate is None:
            return phrase(ask, terse=self.terse)
        reading = read(request.estimate[None])
        wrong = self.wrong(reading, ask)
        ground = ask.ground
        if ground and reading.ground[0].argmax() == ("plain", "checkered", "lined").index(ground):
            ground = None  # it is there
        if not wrong:
            return phrase(Ask(ask.groups, ask.relation, ask.ground), terse=self.terse)
        groups = tuple(self.placed(g, i, reading, ask, rng) for i, g in wrong)
        if self.emphasis == "only":
            return phrase(Ask(groups, None, ground), terse=self.terse)
        there = tuple(g for i, g in enumerate(ask.groups) if i not in dict(wrong))
        return phrase(Ask((*groups, *there, *groups), None, ask.ground), terse=self.terse)

    def wrong(self, reading: Reading, ask: Ask) -> list[tuple[int, Group]]:
        """The groups (index, group) that do not hold in the image, with the number of things that lack."""
        out, taken = [], set[int]()
        for index, group in enumerate(ask.groups):
            fit = attribute_scores(reading, 0, group)
            holds = [s for s in range(SLOTS) if all(v[s] >= HOLDS for v in fit.values()) and s not in taken]
            taken |= set(holds[: group.count])
            if len(holds) < group.count:
                out.append((index, group))
        return out

    def placed(self, group: Group, index: int, reading: Reading, ask: Ask, rng: random.Random) -> Group:
        """``group`` at a place that is free in the image and on the asked side, when it is one thing."""
        if not self.places or group.count > 1:
            return group
        seen = reading.things(0)
        taken = {(t.column, t.row) for t in seen}
        free = [(c, r) for c in range(3) for r in range(3) if (c, r) not in taken] or [(1, 1)]
        if ask.relation and index < 2:
            want = SIDES[ask.relation][index]
            free = [p for p in free if all(w is None or w == x for w, x in zip(want, p, strict=True))] or free
        half = [t for t in seen if t.shape == group.shape or t.colour == group.colour]
        if half and not ask.relation:  # mend what is half right where it stands
            return replace(group, place=(half[0].column, half[0].row))
        return replace(group, place=rng.choice(free))
