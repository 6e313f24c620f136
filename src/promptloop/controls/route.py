"""The way of a driver above the loop: its states go on along a run's levels, together and as far as asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from promptloop.controls.groups import final_reward, reward_of_estimate
from promptloop.controls.plan import place
from promptloop.controls.streams import NOISE
from promptloop.denoisers.memory import lowering, told
from promptloop.ledger import Ledger
from promptloop.rewards.contract import Reward
from promptloop.sample import (
    Control,
    Sample,
    State,
    advance,
    decoded,
    default_solver,
    join,
    lightened,
    trajectory,
)
from promptloop.schedules import Level, asked_for
from promptloop.solvers import Solver
from promptloop.state import listed, paired

Turn = Callable[[State, Level], State]


@final
@dataclass(frozen=True)
class Route:
    """What all states of a driver share: the options of `sample`, of which it takes all but noise and decode.

    At most `max_batch` samples are computed at a time, which changes none.
    """

    denoiser: Any
    levels: Sequence[Level]
    solver: Solver
    controls: Sequence[Control]
    max_batch: int | None
    lean: bool
    turn: Turn
    on_step: Callable[[State], None] | None

    @property
    def steps(self) -> int:
        """Steps of a whole run."""
        return len(self.levels) - 1

    def opened(self, prompts: Sequence[str], seeds: Sequence[int], name: str) -> State:
        """The states before the first step; ValueError for controls that make more of them."""
        state = next(
            trajectory(
                self.denoiser,
                prompts,
                levels=self.levels,
                solver=self.solver,
                controls=self.controls,
                seeds=seeds,
            )
        )
        if len(state) != len(prompts):
            raise ValueError(f"a control of this run makes groups of samples, and {name} does so; drop one")
        if NOISE in state.memory:
            raise ValueError(
                f"Streams gives all tries of a sample one noise, so {name} cannot choose; drop it"
            )
        if self.on_step is not None:
            self.on_step(state)
        return state

    def onward(self, state: State, step: int, drawing: str | None = None) -> State:
        """The states at the level of this step.

        `drawing` names who needs a draw on the way: ValueError where all of it is deterministic.
        """
        return join([self._onward(part, step, drawing) for part in self._parts(state)])

    def _onward(self, state: State, step: int, drawing: str | None) -> State:
        begun, drawn = place(state), False
        with told(f"sampling {len(state)} at once", lowering(self.denoiser, len(state))):
            for level in self.levels[begun + 1 : step + 1]:
                state = self.turn(state, level)
                assert state.transition is not None
                drawn = drawn or not state.transition.deterministic
                if self.on_step is not None:
                    self.on_step(state)
        if drawing is not None and not drawn:
            raise ValueError(
                f"{drawing} draws several ways from one point, but steps {begun} to {step} of {self.solver} "
                "are deterministic (eta 0): all are the same; use DDIM(eta=1), FlowSDE(), DanceSDE() or CPS()"
            )
        return state

    def rewards(self, state: State, reward: Reward) -> Tensor:
        """[B] of the finished images, or of the estimates of the last step where there is some way to go."""
        ask = final_reward if place(state) == self.steps else reward_of_estimate
        return torch.cat([ask(part, reward) for part in self._parts(state)])

    def finished(self, state: State) -> Sample:
        """The images of states at the end; the ledger is the driver's to fill in."""
        images = [decoded(self.denoiser, part.x) for part in self._parts(state)]
        return Sample(torch.cat(images), lightened(state) if self.lean else state, Ledger())

    def _parts(self, state: State) -> list[State]:
        if self.max_batch is None or len(state) <= self.max_batch:
            return [state]
        return [state.take(rows) for rows in torch.arange(len(state)).split(self.max_batch)]


def route(
    denoiser: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    steps: int | None = None,
    levels: Sequence[Level] | None = None,
    solver: Solver | None = None,
    controls: Sequence[Control] = (),
    max_batch: int | None = None,
    lean: bool = False,
    turn: Turn | None = None,
    on_step: Callable[[State], None] | None = None,
) -> Route:
    """The route of `sample` with these options. ValueError where it would refuse them, prompts or seeds."""
    paired(prompts, seeds, None)
    if not prompts:
        raise ValueError("there is no prompt; give two lists, prompts and seeds, of one or more")
    solver = default_solver(denoiser) if solver is None else solver
    if max_batch is not None and max_batch < 1:
        raise ValueError(f"max_batch is {max_batch}; it must be at least 1")
    levels = asked_for(denoiser, solver, steps, levels)
    return Route(
        denoiser,
        levels,
        solver,
        listed(controls),
        max_batch,
        lean,
        advance if turn is None else turn,
        on_step,
    )
