"""Prompts with marks: words that weigh more or less, or are there in a part of the trajectory only.

    (words)  (words:1.3)        weigh 1.1, 1.3
    [words]                     weigh 1 / 1.1
    [words:0-0.5:1.25]          in the first half of the steps, weighing 1.25 (PAE, arXiv 2404.04095)
    [new:0.4]                   from 40 % of the steps on
    [old::0.4]                  until then
    [old:new:0.4]               first the one, then the other
    \\( \\) \\[ \\] \\: \\\\           the characters themselves

All but the third are the prompt editing and emphasis of AUTOMATIC1111's stable-diffusion-webui. Marks stand
inside each other: weights multiply, parts of the trajectory intersect.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import final

MORE = 1.1
NUMBER = re.compile(r"\d+\.?\d*|\.\d+")
RANGE = re.compile(r"(\d+\.?\d*|\.\d+)-(\d+\.?\d*|\.\d+)")
CLOSES = {"(": ")", "[": "]"}


@final
@dataclass(frozen=True)
class Piece:
    """Characters of a prompt with their weight, there from `start` to `end`, fractions of the trajectory."""

    text: str
    weight: float = 1.0
    start: float = 0.0
    end: float = 1.0

    def here(self, step: int, steps: int) -> bool:
        """Whether it is there in a step: those from its start on, before its end."""
        start, end = (math.ceil(round(part * steps, 6)) for part in (self.start, self.end))
        return start <= step < end


@lru_cache(maxsize=4096)
def parsed(prompt: str) -> tuple[Piece, ...]:
    """The pieces of a prompt in order; ValueError, quoting it, for marks that cannot be read."""
    try:
        return tuple(_pieces(prompt))
    except ValueError as error:
        raise ValueError(f"prompt {prompt!r}: {error}") from None


def at_step(pieces: Sequence[Piece], step: int, steps: int) -> tuple[str, tuple[float, ...]]:
    """The text in force in a step, its spaces tidied, and the weight of each of its characters."""
    if len(pieces) == 1 and pieces[0] == Piece(pieces[0].text):  # no marks: as it is written
        return pieces[0].text, (1.0,) * len(pieces[0].text)
    letters = [(char, piece.weight) for piece in pieces if piece.here(step, steps) for char in piece.text]
    kept: list[tuple[str, float]] = []
    for char, weight in letters:
        if not char.isspace():
            kept.append((char, weight))
        elif kept and kept[-1][0] != " ":
            kept.append((" ", weight))
    kept = kept[:-1] if kept and kept[-1][0] == " " else kept
    return "".join(char for char, _ in kept), tuple(weight for _, weight in kept)


def _pieces(text: str) -> list[Piece]:
    pieces: list[Piece] = []
    plain, i = "", 0
    while i < len(text):
        char = text[i]
        if char in ")]":
            raise ValueError(f"{char!r} closes nothing; write \\{char} for the character itself")
        if char not in CLOSES:
            taken = text[i : i + 2] if char == "\\" and i + 1 < len(text) else char
            plain, i = plain + taken[-1], i + len(taken)
            continue
        end = _closing(text, i)
        pieces += [Piece(plain)] if plain else []
        pieces += (_weighed if char == "(" else _timed)(_parts(text[i + 1 : end]))
        plain, i = "", end + 1
    return [*pieces, Piece(plain)] if plain else pieces


def _closing(text: str, start: int) -> int:
    """Where the bracket at `start` is closed."""
    waiting: list[str] = []
    i = start
    while i < len(text):
        if text[i] == "\\":
            i += 1
        elif text[i] in CLOSES:
            waiting.append(CLOSES[text[i]])
        elif text[i] in ")]":
            if text[i] != waiting.pop():
                break
            if not waiting:
                return i
        i += 1
    raise ValueError(f"{text[start:]!r} is not closed; write \\{text[start]} for the character itself")


def _parts(body: str) -> list[str]:
    """What stands between the colons of a bracket, those inside other brackets left alone."""
    parts, depth, i = [""], 0, 0
    while i < len(body):
        taken = body[i : i + 2] if body[i] == "\\" else body[i]
        depth += (taken in CLOSES) - (taken in (")", "]"))
        if taken == ":" and not depth:
            parts.append("")
        else:
            parts[-1] += taken
        i += len(taken)
    return parts


def _weighed(parts: list[str]) -> list[Piece]:
    if len(parts) > 2:
        raise ValueError(f"({':'.join(parts)}) has more than one colon; write (words:1.3)")
    return _times(_pieces(parts[0]), MORE if len(parts) == 1 else _number(parts[1]))


def _timed(parts: list[str]) -> list[Piece]:
    if len(parts) == 1:
        return _times(_pieces(parts[0]), 1 / MORE)
    if len(parts) == 3 and (found := RANGE.fullmatch(parts[1].strip())):
        start, end = (_fraction(number) for number in found.groups())
        if start >= end:
            raise ValueError(f"the range {parts[1]} is empty; give two fractions in order, as 0-0.5")
        return _within(_times(_pieces(parts[0]), _number(parts[2])), start, end)
    if len(parts) > 3:
        raise ValueError(f"[{':'.join(parts)}] has too many colons; write [old:new:0.4] or [words:0-0.5:1.2]")
    when, old, new = _fraction(parts[-1]), parts[0] if len(parts) == 3 else "", parts[-2]
    return [*_within(_pieces(old), 0.0, when), *_within(_pieces(new), when, 1.0)]


def _times(pieces: list[Piece], weight: float) -> list[Piece]:
    return [replace(piece, weight=piece.weight * weight) for piece in pieces]


def _within(pieces: list[Piece], start: float, end: float) -> list[Piece]:
    return [replace(p, start=max(p.start, start), end=min(p.end, end)) for p in pieces]


def _number(text: str) -> float:
    if not NUMBER.fullmatch(text.strip()):
        raise ValueError(f"{text!r} is no weight; give a number from 0, as (words:1.3)")
    return float(text)


def _fraction(text: str) -> float:
    if not NUMBER.fullmatch(text.strip()) or float(text) > 1:
        raise ValueError(f"{text!r} is no part of the trajectory; give a fraction from 0 to 1, not a step")
    return float(text)
