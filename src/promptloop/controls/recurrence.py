"""Self-recurrence: a step is taken several times, with fresh noise between, so that guidance can settle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from promptloop.controls.strength import check_window, within
from promptloop.sample import State, advance, renoise
from promptloop.schedules import Level
from promptloop.solvers import Scheduler


@final
@dataclass(frozen=True)
class Recurrence:
    """How to go from one level to the next: `sample(..., turn=Recurrence(3))`, or `trajectory`'s.

    Each step that begins inside `window` (two fractions of the trajectory) is taken `times` times, and in
    between the state is taken back by the forward process: universal guidance's self-recurrence (arXiv
    2302.07121, alg. 1), FreeDoM's time travel (arXiv 2303.09833) with the window (0.3, 0.7). It leaves an
    exact sampler's law as it is. times = 1 is the plain loop, bitwise. state.step counts what was executed.
    ValueError for a diffusers scheduler, whose history cannot go back; Record refuses it too.
    """

    times: int = 2
    window: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        check_window(self.window)
        if self.times < 1:
            raise ValueError(f"times is {self.times}; give a number of turns from 1")

    def __call__(self, state: State, level: Level) -> State:
        """The state at `level`."""
        before, again = state.level, self.times - 1 if within(self.window, state) else 0
        if again and isinstance(state.run.solver, Scheduler):
            raise ValueError("a diffusers scheduler's history cannot go back; give a solver of ours")
        for _ in range(again):
            state = renoise(advance(state, level), before)
        return advance(state, level)
