"""Guidance: controls that wrap the denoiser. A guide is a function from denoise to denoise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from promptloop.schedules import Level
from promptloop.solvers import Denoise
from promptloop.state import EMBEDDED, Control, State


@final
@dataclass(frozen=True)
class CFG(Control):
    """Classifier-free guidance (Ho & Salimans 2022): negative + scale (prompt - negative), in one batch.

    Combining clean estimates equals combining epsilons, v's or velocities, because the weights sum to 1;
    Qwen-Image alone combines them in another way (`Denoiser.guided`).
    scale = 1 is the plain denoiser, without the second evaluation. negative None is no prompt at all, which
    for some backbones (SDXL) is not the empty one.
    """

    scale: float
    negative: str | None = None

    def __post_init__(self) -> None:
        if not math.isfinite(self.scale):
            raise ValueError(f"the guidance scale is {self.scale}; give a finite number (1 is without)")

    def start(self, state: State) -> State:
        if self.scale == 1:
            return state
        return state.remember(**{self._key: self._embedded(state)})

    def guide(self, denoise: Denoise, state: State) -> Denoise:
        if self.scale == 1:
            return denoise
        negative = state.memory.get(self._key)
        if negative is None:  # rescore: another denoiser, or a run that had no guidance
            negative = self._embedded(state)

        def guided(x: Tensor, level: Level, cond: Any) -> Tensor:
            without, within = denoise(torch.cat([x, x]), level, negative.join([cond])).chunk(2)
            guided_by: Any = state.run.denoiser
            return guided_by.guided(x, level, without, within, self.scale)

        return guided

    def _embedded(self, state: State) -> Any:
        denoiser = state.run.denoiser
        row = denoiser.without() if self.negative is None else denoiser.embed([self.negative])
        return row[[0] * len(state)]

    @property
    def _key(self) -> str:
        return f"{EMBEDDED} negative {self.negative!r}"
