"""A run as plain JSON: what trace.json holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from promptloop.denoisers.denoiser import Denoiser
from promptloop.ledger import Ledger
from promptloop.recipes import trace
from promptloop.recipes.job import Job
from promptloop.recipes.parts import Part
from promptloop.recipes.shot import Shot
from promptloop.sample import Level
from promptloop.solvers import Solver
from promptloop.timing import Stopwatch


def describe(
    job: Job,
    backbone: Part,
    policy: Part | None,
    shots: Sequence[Shot],
    why: dict[str, str | None],
    steps: Sequence[int],
    watch: Stopwatch,
    solver: Solver,
    ledger: Ledger,
) -> dict[str, Any]:
    """The run as plain JSON; `ledger` is what the images cost, those of the query alone left out."""
    denoiser: Denoiser = backbone.value
    levels, own = levels_of(job, denoiser, solver), solver.levels(job.steps) is None
    cost = {name: number for name, number in asdict(ledger).items() if name != "seconds"}
    return {
        "format": trace.FORMAT,
        "job": job.as_dict(),
        "environment": trace.environment(denoiser.device),
        "backbone": {
            **backbone.as_dict(),
            "solver": repr(solver) if own else type(getattr(solver, "scheduler", solver)).__name__,
            "levels": [[level.alpha, level.sigma, level.t] for level in levels],
        },
        "policy": policy and policy.as_dict(),
        "refinement_steps": list(steps) if policy else [],
        "cut_queries": cut_queries(job, denoiser),
        "cost": cost,
        "seconds": {phase: round(seconds, 3) for phase, seconds in watch.seconds.items()},
        "samples": [trace.sample_entry(shot, why[shot.query]) for shot in shots],
    }


def levels_of(job: Job, denoiser: Denoiser, solver: Solver) -> Sequence[Level]:
    """The noise levels the job visits."""
    return solver.levels(job.steps) or denoiser.levels(job.steps)


def cut_queries(job: Job, denoiser: Denoiser) -> dict[str, tuple[int, int]]:
    """(tokens, limit) of each query that is longer than the text encoder reads."""
    counts = {query: (denoiser.count_tokens(query), denoiser.text_limit) for query in job.queries}
    return {query: (tokens, limit) for query, (tokens, limit) in counts.items() if tokens > limit}
