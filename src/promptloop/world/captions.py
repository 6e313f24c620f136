"""Language: what a text asks for (``Ask``), how it is said (``phrase``), how it is read (``parse``).

Training captions are written as the web writes them (``caption``): each names only part of its scene, in any
order, with vague or missing words; few are dense. Queries and prompts use the same grammar.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from promptloop.world.scene import GROUNDS, PATTERNS, SHAPES, SIZES, Scene, Thing
from promptloop.world.words import (
    COUNTS,
    FILLERS,
    KNOWN,
    MEANING,
    NOUNS,
    NUMBERS,
    PLACES,
    RELATIONS,
    SYNONYMS,
    is_colour,
    nearest,
    plural,
    singular,
)

Say = Callable[[str], str]  # a meaning -> the word chosen for it


@dataclass(frozen=True)
class Group:
    """Some things that are alike. ``None``: not asked for. ``place`` is (column, row) of the 3x3 layout."""

    shape: str | None
    count: int = 1
    colour: str | None = None
    size: str | None = None
    pattern: str | None = None
    outlined: bool | None = None
    place: tuple[int, int] | None = None


@dataclass(frozen=True)
class Ask:
    """What a text asks for: groups, at most one relation (of the first group to the second), a ground."""

    groups: tuple[Group, ...]
    relation: str | None = None
    ground: str | None = None

    def __post_init__(self) -> None:
        if self.relation and (self.relation not in RELATIONS or len(self.groups) < 2):
            raise ValueError(f"relation {self.relation!r} needs two groups and one of {RELATIONS}")


def common(meaning: str) -> str:
    return meaning


def phrase_group(group: Group, say: Say = common, *, terse: bool = False) -> str:
    words = [] if terse and group.count == 1 else [NUMBERS[group.count]]
    words += [say(w) for w in (group.size, group.pattern) if w]
    if group.outlined:
        words.append(say("outlined"))
    if group.colour:
        words.append(say(group.colour))
    shape = say(group.shape) if group.shape else "shape"
    words.append(plural(shape) if group.count > 1 else shape)
    if words[0] == "a" and words[1][0] in "aeio":
        words[0] = "an"
    if group.place is not None:
        words.append(PLACES[group.place] if terse else f"at the {PLACES[group.place]}")
    return " ".join(words)


def phrase(ask: Ask, say: Say = common, *, terse: bool = False) -> str:
    """``ask`` in words. ``terse`` is the tag style: no articles, commas between."""
    return "".join(text for text, _ in pieces(ask, say, terse=terse))


def pieces(ask: Ask, say: Say = common, *, terse: bool = False) -> list[tuple[str, int | None]]:
    """The parts of ``phrase``, each with the index of the group that it names (None: it names no group)."""
    out: list[tuple[str, int | None]] = []
    for index, group in enumerate(ask.groups):
        joint = ", " if terse or len(ask.groups) - bool(ask.relation) > 2 else " and "
        if index == 1 and ask.relation:
            joint = f" {say(ask.relation)} "
        out += [(joint, None)] if index else []
        out.append((phrase_group(group, say, terse=terse), index))
    if ask.ground:
        out.append((f"{', ' if terse else ' on a '}{say(ask.ground)} background", None))
    return out


def phrases(text: str) -> list[str]:
    """``text`` as words, with multi-word synonyms and places put together; unknown words are kept."""
    text = " ".join(re.findall(r"[a-z0-9]+", text.lower()))
    long = sorted((w for w in (*MEANING, *PLACES.values()) if " " in w), key=len, reverse=True)
    for word in long:
        text = re.sub(rf"\b{word}\b", word.replace(" ", "_"), text)
    return [w.replace("_", " ") for w in text.split()]


def parse(text: str) -> Ask:
    """Reads a text of the world's grammar.

    Raises ``ValueError`` when no shape is named in it, or a word of it is not of the world.
    """
    groups: list[Group] = []
    pending: dict = {}
    relation = ground = None
    spoken = phrases(text)
    unknown = next((w for w in spoken if w not in KNOWN), None)
    if unknown:
        shapes = f"the shapes of the world are {', '.join(SHAPES)}"
        near = nearest(unknown)
        raise ValueError(
            f"unknown word {unknown!r} in {text!r}: the nearest known word is {near!r}; {shapes}"
        )
    for word in spoken:
        meaning = MEANING.get(word) or MEANING.get(singular(word), word)
        attribute = attribute_of(meaning)
        if meaning in SHAPES or word in NOUNS:
            groups.append(Group(shape=meaning if meaning in SHAPES else None, **pending))
            pending = {}
        elif word == "background" and ground is None and set(pending) <= {"pattern", "count"}:
            ground, pending = pending.get("pattern"), {}
        elif meaning in RELATIONS and len(groups) == 1 and relation is None and set(pending) <= {"count"}:
            relation = meaning
        elif word in PLACES.values() and groups and set(pending) <= {"count"} and groups[-1].place is None:
            place = next(cell for cell, name in PLACES.items() if name == word)
            groups[-1] = replace(groups[-1], place=place)
        elif word in COUNTS and set(pending) <= {"count"}:
            pending = {"count": COUNTS[word]}
        elif attribute and attribute not in pending:
            pending[attribute] = True if attribute == "outlined" else meaning
        elif word not in FILLERS:
            example = "a large red circle at the left"
            raise ValueError(f"{word!r} has no place in {text!r}: say it like {example!r}")
    if set(pending) - {"count"}:
        said = ", ".join(map(str, pending.values()))
        raise ValueError(f"{text!r} ends without the thing that is meant by {said}")
    if relation and len(groups) < 2:
        raise ValueError(f"{text!r} names one side of {relation!r} only")
    wrong = next((g.pattern for g in groups if g.pattern not in (None, *PATTERNS)), None)
    if wrong or ground not in (None, *GROUNDS):
        known = f"things are {', '.join(PATTERNS)}; backgrounds are {', '.join(GROUNDS)}"
        raise ValueError(f"{wrong or ground!r} does not go with its noun in {text!r}: {known}")
    if not groups:
        raise ValueError(f"no shape of the world ({', '.join(SHAPES)}) is named in {text!r}")
    return Ask(tuple(groups), relation, ground)


def attribute_of(meaning: str) -> str | None:
    """The attribute of a group that a word of this meaning sets; None for any other word."""
    if is_colour(meaning):
        return "colour"
    if meaning in SIZES:
        return "size"
    if meaning == "outlined":
        return "outlined"
    return "pattern" if meaning in PATTERNS or meaning in GROUNDS else None


def group_of(things: list[Thing], keep: Callable[[float], bool]) -> Group:
    """A group naming the attributes that ``things`` share, each only when ``keep(probability)`` says so."""

    def shared(name: str) -> Any:
        values = {getattr(t, name) for t in things}
        return values.pop() if len(values) == 1 else None

    pattern, outlined = shared("pattern"), shared("outlined")
    place = None
    if len(things) == 1 and keep(0.65):
        place = (things[0].column, things[0].row)
        if keep(0.12) and place[1] != 1:
            place = (1, place[1])  # "at the top" said of something at the top left
        elif keep(0.12) and place[0] != 1:
            place = (place[0], 1)
    return Group(
        shape=shared("shape") if keep(0.98) else None,
        count=len(things),
        colour=shared("colour") if keep(0.92) else None,
        size=shared("size") if keep(0.35) else None,
        pattern=pattern if pattern and keep(0.1 if pattern == "plain" else 0.65) else None,
        outlined=True if outlined and keep(0.65) else None,
        place=place,
    )


def related(first: list[Thing], second: list[Thing], rng: random.Random) -> str | None:
    """A relation that holds between two sets of things, by at least a cell."""
    holding = []
    if max(t.column for t in first) < min(t.column for t in second):
        holding.append("left of")
    if min(t.column for t in first) > max(t.column for t in second):
        holding.append("right of")
    if max(t.row for t in first) < min(t.row for t in second):
        holding.append("above")
    if min(t.row for t in first) > max(t.row for t in second):
        holding.append("below")
    return rng.choice(holding) if holding else None


def kind_of(thing: Thing) -> tuple[str, str]:
    return thing.shape, thing.colour


def describe(scene: Scene, rng: random.Random, *, dense: float = 0.35, curated: bool = False) -> Ask:
    """What one web-like caption says of ``scene``: with probability ``dense`` every thing, else only some.

    The web's numbers are loose ("two red circles" of three); those of a ``curated`` caption are true.
    """
    things = list(scene.things)
    rng.shuffle(things)
    if len(things) > 1 and rng.random() > dense:
        things = things[: rng.randint(1, len(things) - 1)]
    together = rng.random() < 0.75  # count alike things together, or list them
    if curated:
        together, kinds = True, {kind_of(t) for t in things}
        things += [t for t in scene.things if kind_of(t) in kinds and not any(t is x for x in things)]
    sets: list[list[Thing]] = []
    for thing in things:
        alike = [s for s in sets if kind_of(s[0]) == kind_of(thing)]
        if together and alike:
            alike[0].append(thing)
        else:
            sets.append([thing])
    groups = [group_of(s, lambda p: rng.random() < p) for s in sets]
    if curated:
        groups = [exact(g, s[0], scene) for g, s in zip(groups, sets, strict=True)]
    relation = related(sets[0], sets[1], rng) if len(sets) > 1 and rng.random() < 0.35 else None
    if relation:
        groups[:2] = [replace(g, place=None) for g in groups[:2]]
    ground = scene.ground if rng.random() < (0.1 if scene.ground == "plain" else 0.45) else None
    return Ask(tuple(groups), relation, ground)


def exact(group: Group, thing: Thing, scene: Scene) -> Group:
    """``group``, which names all that are like ``thing``, named in full where its number were wrong else."""
    met = [t for t in scene.things if group.shape in (None, t.shape) and group.colour in (None, t.colour)]
    if group.count == 1 or len(met) == group.count:
        return group
    return replace(group, shape=thing.shape, colour=thing.colour)


def caption(scene: Scene, rng: random.Random, *, curated: bool = False) -> str:
    """A training caption of ``scene``; one in ten is empty, for classifier-free guidance."""
    if rng.random() < 0.1:
        return ""
    ask = describe(scene, rng, dense=0.5, curated=True) if curated else describe(scene, rng)
    return "".join(text for text, _ in caption_pieces(ask, rng))


def caption_pieces(ask: Ask, rng: random.Random) -> list[tuple[str, int | None]]:
    """The ``pieces`` of one caption that says ``ask``."""

    def say(meaning: str) -> str:  # captions rarely use synonyms
        return rng.choice(SYNONYMS[meaning]) if meaning in SYNONYMS and rng.random() < 0.03 else meaning

    lead = rng.choice(("a picture of ", "a photo of ")) if rng.random() < 0.06 else ""
    return [(lead, None), *pieces(ask, say, terse=rng.random() < 0.35)]
