"""The trained reward against the gold over a training, from the lines of its log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

PARTS = 4  # of a training
GOLDS = ("watch/gold", "gold")  # as the hacking watch calls it, and trainings without one


def over_training(lines: Sequence[dict[str, Any]]) -> list[tuple[float, float]]:
    """(reward, gold) in the mean of each quarter of the updates; those at which none was measured are left
    out. ValueError where a quarter has none.
    """
    last = max((line["update"] for line in lines), default=0)
    told = [(line, next((line[g] for g in GOLDS if g in line), None)) for line in lines if "reward" in line]
    quarters: list[list[tuple[float, float]]] = [[] for _ in range(PARTS)]
    for line, gold in told:
        if gold is not None:
            quarters[min(PARTS * (line["update"] - 1) // last, PARTS - 1)].append((line["reward"], gold))
    if not all(quarters):
        raise ValueError("a quarter of the training has no gold; train with --gold")
    return [(sum(r for r, _ in q) / len(q), sum(g for _, g in q) / len(q)) for q in quarters]
