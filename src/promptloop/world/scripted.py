"""Scripted policies for the headroom study: what can be gained by rewriting ahead, by timing, by looking.

They know the world's language (``captions``), and ``Look`` reads estimates with the oracle's own eyes
(``reading``). None is trained; none is used outside the study and the tests.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, final

from promptloop.policies.contract import Request
from promptloop.policies.fixed import Fixed
from promptloop.world.captions import Ask, Group, parse, phrase
from promptloop.world.oracle import HOLDS, attribute_scores
from promptloop.world.reading import SLOTS, Reading, read
from promptloop.world.scene import COLOURS, SHAPES, cell_of
from promptloop.world.spelling import WINDOW

SIDES = {
    "left of": ((0, None), (2, None)),
    "right of": ((2, None), (0, None)),
    "above": ((None, 0), (None, 2)),
}
CORNERS = ((0, 0), (2, 0), (0, 2), (2, 2))
SIDES["below"] = (SIDES["above"][1], SIDES["above"][0])


def laid_out(ask: Ask, rng: random.Random) -> Ask:
    """``ask`` with a place for every single thing, the relation turned into places."""
    free = list(CORNERS)  # they satisfy every relation and keep things apart
    rng.shuffle(free)
    groups = []
    for index, group in enumerate(ask.groups):
        want = SIDES[ask.relation][index] if ask.relation and index < 2 else (None, None)
        place = next(p for p in free if all(w is None or w == x for w, x in zip(want, p, strict=True)))
        free.remove(place)
        groups.append(replace(group, place=place if group.count == 1 else None))
    keep = ask.relation if any(g.count > 1 for g in groups[:2]) else None
    return Ask(tuple(groups), keep, ask.ground)


def bare(ask: Ask) -> Ask:
    """``ask`` without surface details, sizes and ground: shapes, colours, counts, places, the relation."""
    groups = tuple(replace(g, pattern=None, outlined=None, size=None) for g in ask.groups)
    return Ask(groups, ask.relation)


def whole_of(ask: Ask) -> Ask:
    """``ask`` without places."""
    return Ask(tuple(replace(g, place=None) for g in ask.groups), ask.relation, ask.ground)


def fitting(asks: Sequence[Ask]) -> str:
    """The first of ``asks`` that the backbones' text encoders can read, in full sentences or else as tags."""
    for ask in asks:
        for terse in (False, True):
            text = phrase(ask, terse=terse)
            if readable(text):
                return text
    return phrase(asks[-1], terse=True)


def readable(text: str) -> bool:
    """Whether the backbones' text encoders read all of ``text``."""
    return len(text.replace(",", " ,").split()) <= WINDOW - 2


def other_thing(ask: Ask, rng: random.Random) -> Group:
    """A thing that ``ask`` could not be met by: other in shape and in colour than everything asked for."""
    shapes = [s for s in SHAPES if s not in {g.shape for g in ask.groups}] or list(SHAPES)
    colours = [c for c in COLOURS if c not in {g.colour for g in ask.groups}]
    return Group(rng.choice(shapes), colour=rng.choice(colours))


def coloured(ask: Ask, rng: random.Random) -> Ask:
    """``ask`` with a colour for everything that may have any, no two alike: vague words draw vaguely."""
    free = [c for c in COLOURS if c not in {g.colour for g in ask.groups}]
    rng.shuffle(free)
    groups = tuple(g if g.colour else replace(g, colour=free.pop()) for g in ask.groups)
    return Ask(groups, ask.relation, ask.ground)


@final
@dataclass(frozen=True)
class Ahead(Fixed):
    """Rewrites the query in the captions' words before the first step, and then leaves it.

    ``company`` names one thing more where something is counted, so that not all things become alike.
    """

    terse: bool = False
    places: bool = False
    colours: bool = False
    company: bool = False

    def answer(self, request: Request, rng: random.Random) -> str:
        if request.progress > 0:
            return request.prompt
        ask = parse(request.query)
        ask = coloured(ask, rng) if self.colours else ask
        if self.company and any(1 < g.count < 4 for g in ask.groups):
            ask = Ask((*ask.groups, other_thing(ask, rng)), ask.relation, ask.ground)
        said = laid_out(ask, rng) if self.places else ask
        return phrase(said, terse=True) if self.terse else fitting([said, ask])


@final
@dataclass(frozen=True)
class Timed(Fixed):
    """Writes by the clock, never looks.

    ``order`` "turns": everything first, then one group at a time in turn; "coarse": shapes and colours first,
    fine details from ``late`` on; "fine": as turns, with the ground last. ``definite`` gives vague things a
    colour and single ones a place.
    """

    order: str = "turns"
    late: float = 0.3
    every: float = 0.1
    terse: bool = True
    definite: bool = False

    def answer(self, request: Request, rng: random.Random) -> str:
        ask = parse(request.query)
        if self.definite:
            plan = random.Random(request.query)  # the same colours and places all along
            ask = laid_out(coloured(ask, plan), plan)
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
    """Reads the estimate and sends what lacks to where something too much or too vague stands.

    What lacks is said first, with the place of the thing that may become it, then what is right already
    ("only": nothing else is said). Surface details are judged from ``fine`` on, when they
    can be read. Where too many of a kind stand, one of them is made into something else. From ``until`` on,
    and when nothing lacks, everything is said once more.
    """

    emphasis: Literal["rest", "only"] = "rest"
    places: bool = True
    colours: bool = True
    fine: float = 0.35
    until: float = 0.55

    def answer(self, request: Request, rng: random.Random) -> str:
        asked = parse(request.query)
        ask = coloured(asked, random.Random(request.query)) if self.colours else asked
        whole = fitting([ask, bare(ask)])
        if request.estimate is None or request.progress >= self.until:
            return whole
        reading = read(request.estimate[None])
        lacking = self.lacking(reading, asked if request.progress >= self.fine else bare(asked))
        sent = (*self.sent(lacking, reading, ask), *self.surplus(reading, ask, rng))
        if not sent:
            return whole
        if self.emphasis == "only":
            return fitting([Ask(sent, None, ask.ground), Ask(sent), Ask(sent[:1])])
        right = tuple(g for k, g in enumerate(ask.groups) if k not in lacking)
        plain = bare(Ask((*sent, *right))).groups
        return fitting([Ask((*sent, *right), None, ask.ground), Ask((*sent, *right)),
                        Ask((*sent, *plain[len(sent) :])), Ask(plain), whole_of(ask)])  # fmt: skip

    def lacking(self, reading: Reading, ask: Ask) -> list[int]:
        """The groups that do not hold in the image, by their number."""
        out, taken = [], set[int]()
        for index, group in enumerate(ask.groups):
            fit = attribute_scores(reading, 0, group)
            holds = [s for s in range(SLOTS) if all(v[s] >= HOLDS for v in fit.values()) and s not in taken]
            taken |= set(holds[: group.count])
            if len(holds) < group.count:
                out.append(index)
        return out

    def surplus(self, reading: Reading, ask: Ask, rng: random.Random) -> list[Group]:
        """Something else in the place of each thing that is one too many of its kind."""
        out = []
        for group in ask.groups if self.places else ():
            fit = attribute_scores(reading, 0, replace(group, place=None))
            holds = [s for s in range(SLOTS) if all(v[s] >= HOLDS for v in fit.values())]
            for slot in holds[group.count :] if group.count > 1 else ():
                place = (cell_of(float(reading.x[0, slot])), cell_of(float(reading.y[0, slot])))
                out.append(replace(other_thing(ask, rng), place=place))
        return out

    def sent(self, lacking: list[int], reading: Reading, ask: Ask) -> tuple[Group, ...]:
        """The groups that lack, single things sent where a spare one stands, else a free place."""
        if not self.places:
            return tuple(ask.groups[k] for k in lacking)
        seen = reading.things(0)
        spare = list(seen)
        for k, group in enumerate(ask.groups):
            if k not in lacking:
                match = [
                    t for t in spare if group.shape in (None, t.shape) and group.colour in (None, t.colour)
                ]
                spare = [t for t in spare if not match or t is not match[0]]
        standing = {(t.column, t.row) for t in seen}
        out = []
        for k in lacking:
            group = ask.groups[k]
            want = SIDES[ask.relation][k] if ask.relation and k < 2 else (None, None)
            spare.sort(key=lambda t, g=group: -(t.shape == g.shape) - (t.colour == g.colour))  # type: ignore[misc]
            free = [p for p in CORNERS if p not in standing]
            places = [p for p in [*((t.column, t.row) for t in spare), *free]
                      if all(w is None or w == x for w, x in zip(want, p, strict=True))]  # fmt: skip
            if group.count == 1 and places:
                group = replace(group, place=places[0])
                spare = [t for t in spare if (t.column, t.row) != places[0]]
                standing.add(places[0])
            out.append(group)
        return tuple(out)
