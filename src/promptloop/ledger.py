"""What a run cost: every run counts it, so that methods can be compared at equal cost.

The places where cost arises call `count`; whoever wants to know opens `counting`. `sample` does, always.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields
from typing import final

import torch


@final
@dataclass(frozen=True)
class Ledger:
    """Costs, counted in samples and not in calls: a call for a batch of 8 is 8.

    evaluations: of the denoiser (guidance counts both of its branches). backwards: gradients through it.
    decodes: latents that became images. rewards: images that a reward was asked about. tokens: written by
    the policy. seconds: wall clock.
    """

    evaluations: int = 0
    backwards: int = 0
    decodes: int = 0
    rewards: int = 0
    tokens: int = 0
    seconds: float = 0.0

    def __add__(self, other: Ledger) -> Ledger:
        return Ledger(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(Ledger)))


@final
class Tally:
    """A ledger that is still open; `ledger` is what has been counted up to now."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._began = self._now()
        self._seconds: float | None = None

    @property
    def ledger(self) -> Ledger:
        seconds = self._now() - self._began if self._seconds is None else self._seconds
        return Ledger(**self.counts, seconds=seconds)

    def close(self) -> None:
        """Stops the clock."""
        self._seconds = self._now() - self._began

    @staticmethod
    def _now() -> float:
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return time.perf_counter()


OPEN: ContextVar[tuple[Tally, ...]] = ContextVar("open tallies", default=())


@contextmanager
def counting() -> Iterator[Tally]:
    """Counts what happens inside, in this thread. Tallies nest: an outer one counts all of an inner one."""
    tally = Tally()
    token = OPEN.set((*OPEN.get(), tally))
    try:
        yield tally
    finally:
        OPEN.reset(token)
        tally.close()


@contextmanager
def uncounted() -> Iterator[None]:
    """Nothing inside is counted: for what is counted by whoever asked for it, in whichever thread it runs."""
    token = OPEN.set(())
    try:
        yield
    finally:
        OPEN.reset(token)


def count(**numbers: int) -> None:
    """Adds to all open tallies, e.g. count(evaluations=8)."""
    for tally in OPEN.get():
        tally.counts.update(numbers)
