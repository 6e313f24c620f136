"""Rows of a study: what an arm scores on held-out queries, kept in a file with all that it depends on."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from promptloop.bench.arms import Found
from promptloop.recipes import parts
from promptloop.recipes.rewards import reward_named
from promptloop.world import weights
from promptloop.world.queries import queries

REWARDS = ("oracle", "oracle-strict", "preference")
JUDGES = ("mini-judge", "mini-vlm", "mini-unet")  # who scores: the learned reward, its eyes, its ears
Run = Callable[[int, Sequence[str], dict[str, Any]], Found]  # of the run's number, the queries, the rewards


def kept(
    file: Path,
    settings: Mapping[str, Any],
    measure: Callable[[], dict[str, Any]],
    newer: Callable[[dict[str, Any]], dict[str, Any]] = dict,
) -> dict[str, Any]:
    """The row in `file`, or measured now and written there, whole or not at all.

    `newer` gives what an earlier version wrote as settings the fields it did not know. ValueError where the
    file's settings are others.
    """
    if file.exists():
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if newer(found["settings"]) == settings:
            return found
        raise ValueError(
            f"{file} was measured with other settings or weights; give another --out, or remove it"
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    made = {"settings": settings, **measure()}
    part = file.with_suffix(".part")
    part.write_text(json.dumps(made), encoding="utf-8")
    part.replace(file)
    return made


def noise_of(k: int) -> int:
    """The seed of the first query's noise in run k; the next query has one more."""
    return 1_000_000 * (k + 1)


def over_seeds(count: int, seeds: int, run: Run) -> tuple[dict[str, Any], list[Tensor]]:
    """{"scores": {reward: [S][Q]}, "cost": means} of `count` held-out queries in `seeds` runs, and the
    images [Q, 3, H, W] of each run.
    """
    asked = [q.text for q in queries(count, 2, held_out=True)]
    rewards = {name: reward_named(name) for name in REWARDS}
    made = [run(k, asked, rewards) for k in range(seeds)]
    scores = {name: [[round(v, 4) for v in one.scores[name].tolist()] for one in made] for name in REWARDS}
    cost = {key: sum(one.cost[key] for one in made) / len(made) for key in made[0].cost}
    return {"scores": scores, "cost": cost}, [one.images.float().cpu() for one in made]


def digests(used: Sequence[tuple[str, str]]) -> list[str]:
    """The first digits of the sha256 of these (name, "backbone" or "policy"), and of who scores. ValueError
    where one is missing.
    """
    found = [parts.digest(parts.locate(name, role)[0], role)[:16] for name, role in used]
    return found + [parts.folder_digest(weights(name))[:16] for name in JUDGES]
