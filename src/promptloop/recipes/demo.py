"""The demo: six held-out queries of the embedded world, refined and alone, graded by its oracle."""

from __future__ import annotations

from pathlib import Path

from promptloop.recipes.generate import Generated, generate
from promptloop.recipes.progress import Progress
from promptloop.world.queries import held_out

QUERIES = 6


def demo(
    *,
    out: str | Path,
    backbone: str = "mini-turbo",
    policy: str = "mini-policy",
    seed: int = 0,
    n: int = 4,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Generated:
    """`n` samples of each query, each also from the query alone; the queries are the same for every seed."""
    return generate(
        held_out(QUERIES, 0),
        backbone=backbone,
        policy=policy,
        seed=seed,
        n=n,
        compare=policy != "none",
        out=out,
        overwrite=overwrite,
        progress=progress,
    )
