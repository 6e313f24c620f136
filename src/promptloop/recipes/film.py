"""Watching a run without touching it: frames of the estimate, and the time of the denoiser."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from promptloop.sample import Control, State
from promptloop.solvers import Denoise
from promptloop.timing import Stopwatch


@final
@dataclass(frozen=True, eq=False)
class Film(Control):
    """Keeps the decoded estimate after each of `steps` as memory["frames"], uint8 [B, k, 3, H, W].

    Step 0 is the initial noise, brought to unit size and decoded.
    """

    steps: tuple[int, ...]
    watch: Stopwatch

    def start(self, state: State) -> State:
        level = state.level
        return self._keep(state, state.x / math.hypot(level.alpha, level.sigma)) if 0 in self.steps else state

    def select(self, state: State) -> State:
        if state.step not in self.steps:
            return state
        assert state.transition is not None
        return self._keep(state, state.transition.clean)

    def _keep(self, state: State, clean: Tensor) -> State:
        with self.watch("decode"):
            images = (state.run.denoiser.decode(clean).clamp(0, 1) * 255).round().byte().cpu()[:, None]
        earlier = [state.memory["frames"]] if "frames" in state.memory else []
        return state.remember(frames=torch.cat([*earlier, images], dim=1))


@final
@dataclass(frozen=True, eq=False)
class Clock(Control):
    """Times what the controls before it make of the denoiser."""

    watch: Stopwatch

    def guide(self, denoise: Denoise, state: State) -> Denoise:
        def timed(x: Tensor, level: object, cond: object) -> Tensor:
            with self.watch("denoise"):
                return denoise(x, level, cond)  # type: ignore[arg-type]

        return timed
