"""User queries in natural language: GenEval's six tasks and fine details, with a held-out split.

Held out means both: the composition (which shapes and colours meet, by a stable hash) and the phrasing
(sentence forms and synonyms that training queries never use).
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

from promptloop.world.captions import Ask, Group, phrase
from promptloop.world.scene import COLOURS, GROUNDS, PATTERNS, SHAPES, SIZES
from promptloop.world.words import RELATIONS, SYNONYMS

TASKS = (
    "single object",
    "two objects",
    "counting",
    "colours",
    "position",
    "colour attribution",
    "fine details",
)
TRAIN_FORMS = ("{}", "{}", "a photo of {}", "a picture of {}", "draw {}", "show me {}")
TEST_FORMS = ("{}", "an image with {}", "please make {}", "i want to see {}", "{} please")
SALT = 44  # chosen so that every task has compositions on both sides


@dataclass(frozen=True)
class Query:
    """A user's words, the task they belong to and what they ask for."""

    text: str
    task: str
    ask: Ask


def is_held_out(ask: Ask) -> bool:
    """About one composition in four is kept for testing. Order and phrasing do not matter."""
    alone = ask.groups[0].size or "" if len(ask.groups) == 1 else ""
    key = "|".join(sorted(f"{g.count}{alone}{g.colour or ''}{g.shape}" for g in ask.groups))
    return zlib.crc32(f"{SALT}{key}".encode()) % 4 == 0


def random_ask(task: str, rng: random.Random) -> Ask:
    """What one query of ``task`` asks for."""
    colours, shapes = list(COLOURS), list(SHAPES)
    if task == "single object":
        return Ask((Group(rng.choice(shapes), size=rng.choice((None, *SIZES))),))
    if task == "two objects":
        return Ask(tuple(Group(s) for s in rng.sample(shapes, 2)))
    if task == "counting":
        return counting_ask(rng)
    if task == "colours":
        return Ask((Group(rng.choice(shapes), colour=rng.choice(colours)),))
    if task == "position":
        pair = rng.sample(shapes, 2)
        hues = rng.sample(colours, 2) if rng.random() < 0.5 else (None, None)
        count = rng.choice((1, 1, 2))
        groups = [Group(pair[0], count, hues[0]), Group(pair[1], 1, hues[1])]
        if rng.random() < 0.5:  # and a third, anywhere
            others = [s for s in shapes if s not in pair]
            groups.append(Group(rng.choice(others), colour=rng.choice([c for c in colours if c not in hues])))
        return Ask(tuple(groups), relation=rng.choice(RELATIONS))
    if task == "colour attribution":
        count = rng.choice((2, 3, 3, 4))
        return Ask(tuple(Group(rng.choice(shapes), colour=c) for c in rng.sample(colours, count)))
    if task == "fine details":
        return fine_ask(rng)
    raise ValueError(f"unknown task {task!r}; known tasks: {', '.join(TASKS)}")


def counting_ask(rng: random.Random) -> Ask:
    """Two to four of a kind, or two kinds of at most four things in all."""
    first, second = rng.sample(list(SHAPES), 2)
    hues = rng.sample(list(COLOURS), 2)
    kinds = [Group(first, rng.choice((2, 3, 4)), rng.choice((None, hues[0])))]
    left = 4 - kinds[0].count
    if left and rng.random() < 0.7:
        kinds.append(Group(second, rng.randint(1, left), rng.choice((None, hues[1]))))
    return Ask(tuple(kinds))


def fine_ask(rng: random.Random) -> Ask:
    """One to three things with surface details, often a ground."""
    groups = []
    for colour in rng.sample(list(COLOURS), rng.choice((1, 2, 2, 3))):
        pattern = rng.choice((None, *PATTERNS[1:]))
        outlined = True if rng.random() < (0.3 if pattern else 0.8) else None
        groups.append(Group(rng.choice(SHAPES), colour=colour, pattern=pattern, outlined=outlined))
    ground = rng.choice((None, *GROUNDS[1:])) if len(groups) > 1 else rng.choice(GROUNDS[1:])
    return Ask(tuple(groups), ground=ground)


def random_query(task: str, rng: random.Random, *, held_out: bool) -> Query:
    """A query of ``task`` from one side of the split."""
    ask = random_ask(task, rng)
    while is_held_out(ask) != held_out:
        ask = random_ask(task, rng)
    only = 2 if held_out else 1  # the last synonym of each meaning is for testing

    def say(meaning: str) -> str:
        return (
            rng.choice(SYNONYMS[meaning][:only]) if meaning in SYNONYMS and rng.random() < 0.45 else meaning
        )

    form = rng.choice(TEST_FORMS if held_out else TRAIN_FORMS)
    return Query(form.format(phrase(ask, say)), task, ask)


def queries(count: int, seed: int, *, held_out: bool) -> list[Query]:
    """``count`` queries in turn over the tasks; query ``i`` depends on ``(seed, i)`` alone."""
    side = "test" if held_out else "train"
    return [
        random_query(TASKS[i % len(TASKS)], random.Random(f"{seed}/{side}/{i}"), held_out=held_out)
        for i in range(count)
    ]


def training_texts(stream: str, rows: Iterable[int]) -> list[str]:
    """Texts of the training side, in turn over the tasks; row ``i`` depends on ``(stream, i)`` alone."""
    return [
        random_query(TASKS[i % len(TASKS)], random.Random(f"{stream}/{i}"), held_out=False).text for i in rows
    ]


def held_out(count: int, seed: int = 0) -> list[str]:
    """Texts of held-out queries."""
    return [q.text for q in queries(count, seed, held_out=True)]
