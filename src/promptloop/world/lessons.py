"""What the embedded policy is taught before any reward: the world's language, seeing, many ways to rewrite.

A lesson is a short chat about one image (or none): the first turns may be the policy's own message
(message.py), answered with *some* rewrite, and questions about what is there, what is missing or wrong, where
something is. Rewrites vary in what they keep (all, a part, one object, another order, a place added), so that
samples contain the useful behaviours without preferring any.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from promptloop.policies.contract import Request
from promptloop.policies.message import KEEP, USER, percent
from promptloop.world.captions import Ask, Group, describe, group_of, phrase, phrase_group
from promptloop.world.queries import TASKS, TEST_FORMS, TRAIN_FORMS, random_query
from promptloop.world.scene import COLOURS, PATTERNS, SHAPES, Scene, Thing
from promptloop.world.scripted import coloured, laid_out
from promptloop.world.words import PLACES, SYNONYMS

THERE = "What is there?"
MISSING = "Wanted: {query}\nWhat is missing or wrong?"
WHERE = "Where is the {thing}?"
MEANS = "In plain words: {query}"


@dataclass(frozen=True)
class Lesson:
    """Turns of (what the user says, the answer); the image, if any, belongs to the first turn."""

    turns: tuple[tuple[str, str], ...]
    sees: bool


def full(scene: Scene) -> Ask:
    """Everything there is in ``scene``, thing by thing, left to right and top to bottom."""
    things = sorted(scene.things, key=lambda t: (t.row, t.column))
    groups = tuple(
        Group(
            t.shape,
            1,
            t.colour,
            t.size,
            t.pattern if t.pattern != "plain" else None,
            t.outlined or None,
            (t.column, t.row),
        )
        for t in things
    )
    return Ask(groups, None, scene.ground if scene.ground != "plain" else None)


def fits(thing: Thing, group: Group) -> bool:
    """Whether ``thing`` has every attribute that ``group`` asks for (its place aside)."""
    asked = {"shape": group.shape, "colour": group.colour, "size": group.size, "pattern": group.pattern}
    return all(v is None or getattr(thing, k) == v for k, v in asked.items()) and group.outlined in (
        None,
        thing.outlined,
    )


def missing(scene: Scene, ask: Ask) -> Ask | None:
    """The groups that ``scene`` lacks, or where all are there the relation that does not hold, and the ground
    if it is another one; None when nothing is missing.
    """
    groups = tuple(g for g in ask.groups if sum(fits(t, g) for t in scene.things) < g.count)
    ground = ask.ground if ask.ground not in (None, scene.ground) else None
    if not groups and ask.relation and not related(scene, ask):
        return Ask(ask.groups[:2], ask.relation, ground)
    if not groups and ground is None:
        return None
    return Ask(groups, None, ground)


def related(scene: Scene, ask: Ask) -> bool:
    """Whether all that the first group may mean stands so, to all that the second may, as ``ask`` says."""
    first, second = ([t for t in scene.things if fits(t, group)] for group in ask.groups[:2])
    if ask.relation in ("right of", "below"):
        first, second = second, first
    across = ask.relation in ("left of", "right of")
    return all((a.column < b.column) if across else (a.row < b.row) for a in first for b in second)


def lack(scene: Scene, ask: Ask) -> str:
    """What ``scene`` lacks of ``ask``, in words."""
    lacking = missing(scene, ask)
    if lacking is None:
        return "nothing"
    return phrase(lacking, terse=True) if lacking.groups else f"{lacking.ground} background"


def near_miss(scene: Scene, rng: random.Random) -> Ask:
    """What a user might have wanted of ``scene``: parts of it, some changed, so that something may lack."""
    ask = describe(scene, rng, dense=0.6)
    groups = []
    for group in ask.groups[:3]:
        if rng.random() < 0.45:
            changed = rng.choice(("shape", "colour", "colour", "shape", "pattern", "outlined", "new"))
            if changed == "new":
                group = Group(rng.choice(SHAPES), colour=rng.choice(tuple(COLOURS)))
            elif changed == "outlined":
                group = replace(group, outlined=True)
            else:
                values = {"shape": SHAPES, "colour": tuple(COLOURS), "pattern": PATTERNS[1:]}[changed]
                change: dict[str, Any] = {changed: rng.choice(values)}
                group = replace(group, **change)
        groups.append(replace(group, place=None))
    return Ask(tuple(groups), None, ask.ground)


def words(rng: random.Random, often: float) -> Callable[[str], str]:
    """A ``say`` that uses a synonym with probability ``often``."""
    return lambda meaning: (
        rng.choice(SYNONYMS[meaning]) if meaning in SYNONYMS and rng.random() < often else meaning
    )


def user_says(ask: Ask, rng: random.Random) -> str:
    """``ask`` as a user may put it, in any phrasing: the policy is taught the whole language."""
    form = rng.choice(TRAIN_FORMS + TEST_FORMS)
    return form.format(phrase(ask, words(rng, 0.4), terse=rng.random() < 0.1))


def rewrite(ask: Ask, rng: random.Random) -> str:
    """One of many ways to write ``ask`` as a prompt."""
    if rng.random() < 0.06:
        return KEEP
    groups = list(ask.groups)
    relation, ground = ask.relation, ask.ground
    if rng.random() < 0.4:  # vague things made definite
        groups = list(coloured(ask, rng).groups)
    layout = rng.random()
    if layout < 0.3 and not (relation and rng.random() < 0.5):
        placed = laid_out(Ask(tuple(groups), relation, ground), rng)
        groups, relation = list(placed.groups), placed.relation
    elif layout < 0.6:  # one thing sent somewhere
        k = rng.randrange(len(groups))
        if groups[k].count == 1:
            groups[k] = replace(groups[k], place=rng.choice(tuple(PLACES)))
    kind = rng.choices(("all", "one", "part", "order", "bare"), (0.34, 0.2, 0.1, 0.24, 0.12))[0]
    if kind == "one" and len(groups) > 1:
        groups, relation = [rng.choice(groups)], None
    elif kind == "part" and len(groups) > 1:
        groups, relation = rng.sample(groups, rng.randint(1, len(groups) - 1)), None
    elif kind == "order" and relation is None:
        rng.shuffle(groups)
    elif kind == "bare":
        groups = [replace(g, pattern=None, outlined=None, size=None) for g in groups]
    if ground and rng.random() < (0.25 if kind in ("all", "order") else 0.6):
        ground = None
    elif kind == "one" and ground and rng.random() < 0.3:
        return f"{ground} background"
    return phrase(Ask(tuple(groups), relation, ground), words(rng, 0.06), terse=rng.random() < 0.55)


def any_query(scene: Scene | None, rng: random.Random) -> Ask:
    """A query that has to do with ``scene`` (as when sampling went half right), or any."""
    if scene is None or rng.random() < 0.4:
        return random_query(rng.choice(TASKS), rng, held_out=False).ask
    return near_miss(scene, rng)


def writing_turn(scene: Scene | None, progress: float, rng: random.Random) -> tuple[str, str]:
    """The policy's own message and some rewrite."""
    ask = any_query(scene, rng)
    query = user_says(ask, rng)
    prompt = query if progress == 0 or rng.random() < 0.3 else rewrite(ask, rng)
    prompt = query if prompt == KEEP else prompt
    asked = Request(query, prompt, None, progress)
    return USER.format(query=query, prompt=prompt, percent=percent(asked)), rewrite(ask, rng)


def seeing_turn(scene: Scene, rng: random.Random, kind: str | None = None) -> tuple[str, str]:
    """A question about the image ("there", "missing" or "where"; None: any) and its true answer."""
    kind = kind or rng.choices(("there", "missing", "where"), (0.35, 0.45, 0.2))[0]
    if kind == "there":
        return THERE, phrase(full(scene), terse=True)
    if kind == "missing":
        ask = near_miss(scene, rng)
        return MISSING.format(query=user_says(ask, rng)), lack(scene, ask)
    thing = rng.choice(scene.things)
    group = replace(group_of([thing], lambda p: True), size=None, place=None)
    if rng.random() < 0.3:
        group = replace(group, colour=rng.choice(tuple(COLOURS)))
    found = [t for t in scene.things if fits(t, group)]
    name = phrase_group(group, words(rng, 0.2), terse=True)
    return WHERE.format(thing=name), "nowhere" if not found else " and ".join(
        PLACES[(t.column, t.row)] for t in sorted(found, key=lambda t: (t.row, t.column))
    )


def lesson(scene: Scene | None, progress: float, rng: random.Random) -> Lesson:
    """A lesson about an image of ``scene`` (None: no image) at ``progress`` through a trajectory."""
    if scene is None:
        turns = [writing_turn(None, 0.0 if rng.random() < 0.5 else progress, rng)]
        ask = random_query(rng.choice(TASKS), rng, held_out=False).ask
        turns.append((MEANS.format(query=user_says(ask, rng)), phrase(ask)))
        return Lesson(tuple(turns), sees=False)
    turns = [seeing_turn(scene, rng) for _ in range(3)]
    turns.insert(0 if rng.random() < 0.7 else 1, writing_turn(scene, progress, rng))
    return Lesson(tuple(turns), sees=True)
