"""Grades from the embedded world's oracle, where it can give them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from promptloop.recipes.shot import Pixels, Score
from promptloop.world.captions import parse
from promptloop.world.oracle import grade


def unscored(query: str, embedded: bool) -> str | None:
    """Why the oracle cannot grade images for this query; None where it can."""
    if not embedded:
        return "the oracle grades images of the embedded backbones only"
    try:
        parse(query)
    except ValueError as error:
        return str(error)
    return None


def score(images: Sequence[Pixels], queries: Sequence[str]) -> list[Score]:
    """One grade per image; all queries must be of the world's grammar."""
    grades = grade(np.stack(images), [parse(query) for query in queries])
    rows = zip(grades.soft.tolist(), grades.strict.tolist(), grades.reasons, strict=True)
    return [
        Score(round(soft, 4), bool(strict), tuple((clause.text, round(clause.score, 4)) for clause in row))
        for soft, strict, row in rows
    ]
