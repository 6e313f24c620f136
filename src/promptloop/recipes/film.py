"""Watching a run without touching it: frames of the estimate, and where the time goes."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from promptloop.policies.contract import Draft, Policy, Request
from promptloop.sample import Control, State
from promptloop.solvers import Denoise


@final
class Stopwatch:
    """Seconds per phase; phases do not overlap (the inner one is taken off the outer one)."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._inner = [0.0]

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        begin = self._now()
        self._inner.append(0.0)
        try:
            yield
        finally:
            whole, inner = self._now() - begin, self._inner.pop()
            self._inner[-1] += whole
            self.seconds[phase] = self.seconds.get(phase, 0.0) + whole - inner

    @staticmethod
    def _now() -> float:
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return time.perf_counter()


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


@final
class TimedPolicy(Policy):
    """Another policy, timed."""

    def __init__(self, policy: Policy, watch: Stopwatch) -> None:
        self.policy, self.watch, self.image_size = policy, watch, policy.image_size

    def write(self, requests: Sequence[Request], seeds: Sequence[int]) -> list[Draft]:
        with self.watch("policy"):
            return self.policy.write(requests, seeds)

    def log_prob(self, drafts: Sequence[Draft]) -> tuple[Tensor, Tensor]:
        return self.policy.log_prob(drafts)
