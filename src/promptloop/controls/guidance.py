"""Guidance: controls that wrap the denoiser. A guide is a function from denoise to denoise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from promptloop.schedules import Level
from promptloop.solvers import Denoise
from promptloop.state import Control, State


@final
@dataclass(frozen=True)
class CFG(Control):
    """Classifier-free guidance (Ho & Salimans 2022): negative + scale (prompt - negative), in one batch.

    Combining clean estimates equals combining epsilons, v's or velocities, because the weights sum to 1.
    scale = 1 is the plain denoiser, without the second evaluation.
    """

    scale: float
    negative: str = ""

    def __post_init__(self) -> None:
        if not math.isfinite(self.scale):
            raise ValueError(f"the guidance scale is {self.scale}; give a finite number (1 is without)")

    def start(self, state: State) -> State:
        if self.scale == 1:
            return state
        row = state.run.denoiser.embed([self.negative])
        return state.remember(**{self._key: row[[0] * len(state)]})

    def guide(self, denoise: Denoise, state: State) -> Denoise:
        if self.scale == 1:
            return denoise
        negative = state.memory[self._key]

        def guided(x: Tensor, level: Level, cond: Any) -> Tensor:
            without, within = denoise(torch.cat([x, x]), level, negative.join([cond])).chunk(2)
            return without + self.scale * (within - without)

        return guided

    @property
    def _key(self) -> str:
        return f"negative {self.negative!r}"
