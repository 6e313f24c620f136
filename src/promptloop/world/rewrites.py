"""Rewrites of what was asked, as mini-vlm is tuned to write them: they keep it, and mend what an image lacks.

None is preferred by a reward. What a pretrained chat model brings is a willingness to keep a prompt whose
picture is right and to say otherwise what is not; so each is as likely as anything else here.
"""

from __future__ import annotations

import random
from dataclasses import replace

from promptloop.policies.message import KEEP
from promptloop.world.captions import Ask, Group, phrase
from promptloop.world.lessons import fits, missing, rewrite, words
from promptloop.world.scene import Scene, Thing
from promptloop.world.scripted import CORNERS, SIDES, bare, coloured, laid_out, readable
from promptloop.world.words import PLACES

SHUFFLED = 0.05  # how often an answer has another order than the query (docs/log.md, sixth session)


def mended(
    scene: Scene, ask: Ask, rng: random.Random, *, first: float = SHUFFLED, alike: bool = False
) -> Ask | None:
    """``ask`` with each single thing that ``scene`` lacks mostly sent to where a spare thing stands, or else
    to a free corner; so often it is said ``first``. Of several spare things the one most ``alike`` is taken,
    or any. A relation limits the places.

    What is there already may be named with the colour it has. None where nothing lacks.
    """
    spare, said, lacking = list(scene.things), list[Group](), list[int]()
    for k, group in enumerate(ask.groups):
        there = [t for t in spare if fits(t, group)][: group.count]
        if len(there) < group.count:
            lacking.append(k)
            said.append(group)
            continue
        spare = [t for t in spare if t not in there]
        named = group.colour is None and group.count == 1 and rng.random() < 0.6
        said.append(replace(group, colour=there[0].colour) if named else group)
    if not lacking:
        return None
    if rng.random() < 0.6:
        said = list(coloured(Ask(tuple(said)), rng).groups)
    if rng.random() < 0.75:
        standing = {(t.column, t.row) for t in scene.things}
        free = [corner for corner in CORNERS if corner not in standing]
        spare = rng.sample(spare, len(spare))
        for k in lacking:
            if alike:
                spare.sort(key=lambda t, g=ask.groups[k]: distance(t, g))  # type: ignore[misc]
            spots = [*((t.column, t.row) for t in spare), *free]
            side = SIDES[ask.relation][k] if ask.relation and k < 2 else (None, None)
            fit = [p for p in spots if all(s in (None, x) for s, x in zip(side, p, strict=True))]
            if said[k].count == 1 and fit:
                said[k] = replace(said[k], place=fit[0])
                spare = [t for t in spare if (t.column, t.row) != fit[0]]
                free = [corner for corner in free if corner != fit[0]]
    if ask.relation is None and rng.random() < first:
        said = [said[k] for k in lacking] + [g for k, g in enumerate(said) if k not in lacking]
    return Ask(tuple(said), ask.relation, ask.ground)


def distance(thing: Thing, group: Group) -> tuple[int, int, int]:
    """How unlike ``thing`` is to what was asked, then where it stands."""
    return (thing.shape != group.shape) + (thing.colour != group.colour), thing.row, thing.column


def faithful(ask: Ask, rng: random.Random, *, shuffled: float = SHUFFLED) -> Ask:
    """``ask`` in one of many ways that keep it: coloured, laid out, reordered, seldom without details."""
    if rng.random() < 0.4:
        ask = coloured(ask, rng)
    layout = rng.random()
    if layout < 0.3 and not (ask.relation and rng.random() < 0.5):
        ask = laid_out(ask, rng)
    elif layout < 0.5:  # one thing sent somewhere
        groups = list(ask.groups)
        k = rng.randrange(len(groups))
        if groups[k].count == 1:
            groups[k] = replace(groups[k], place=rng.choice(tuple(PLACES)))
        ask = Ask(tuple(groups), ask.relation, ask.ground)
    if ask.relation is None and rng.random() < shuffled:
        ask = Ask(tuple(rng.sample(ask.groups, len(ask.groups))), None, ask.ground)
    return bare(ask) if rng.random() < 0.1 else ask


def answer(scene: Scene | None, ask: Ask, rng: random.Random, *, shuffled: float = SHUFFLED) -> str:
    """A prompt for ``ask`` where the image shows ``scene``."""
    kind = rng.random()
    if kind < 0.1 or (scene is not None and missing(scene, ask) is None and rng.random() < 0.45):
        return KEEP
    if kind < 0.18:  # the wide repertoire of the lessons: parts, single things
        return rewrite(ask, rng)
    better = mended(scene, ask, rng) if scene is not None and rng.random() < 0.65 else None
    said = faithful(ask, rng, shuffled=shuffled) if better is None else better
    say, terse = words(rng, 0.02), rng.random() < 0.5 or not readable(phrase(said))
    return phrase(said, say, terse=terse)
