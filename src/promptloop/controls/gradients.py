"""Guidance by the gradient of a reward: DPS, loss-guided with the variance corrected, universal, Flow-NRG."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, final

import torch
from torch import Tensor

from promptloop.controls.increments import (
    Form,
    Steered,
    Through,
    ascent,
    check_differentiable,
    check_pairs,
    opposites,
    pulled,
)
from promptloop.controls.strength import Strength, check_strength, check_window, strength, within
from promptloop.ledger import count
from promptloop.rewards.contract import Reward
from promptloop.sample import Control, State
from promptloop.schedules import Level
from promptloop.solvers import Denoise


@final
@dataclass(frozen=True)
class RewardGradient(Steered):
    """The score plus scale grad_x reward(decoded estimate) (DPS, Chung et al., arXiv 2209.14687).

    scale is the target's: p(x0) exp(scale reward). The reward of the estimate stands for the value, which
    overshoots (on a Gaussian by 1 + scale v curvature, v the variance of x0 given x): `curvature`, minus the
    reward's second derivative in latents, divides that out, with v that of data of std `data_std`.

    form: "estimate", or "mean" (Steered), which with through "network" costs one more evaluation a step.
    through: "network" differentiates the denoiser and all guides listed before; "noise" holds the noise
        estimate fixed, without a backward pass through the network; its gradient grows as 1 / alpha, so set
        a limit or a window.
    relative: the length is scale times that of the noise estimate instead (in the manner of FreeDoM, arXiv
        2303.09833), whatever the reward's scale; it knows the sign of scale and no target.
    limit: the increment, as noise, has at most `limit` times unit noise's root mean square in each sample.
    window: two fractions of the trajectory. at_once: how many samples are decoded together (None: all).
    twice: run the denoiser a second time for its backward pass, so that its activations and the decoder's
        are never held together.
    ValueError for a reward that is not differentiable.
    """

    reward: Reward
    scale: Strength
    form: Form = "estimate"
    through: Through = "network"
    curvature: float = 0.0
    data_std: float = 1.0
    relative: bool = False
    limit: float | None = None
    window: tuple[float, float] = (0.0, 1.0)
    at_once: int | None = None
    twice: bool = False

    def __post_init__(self) -> None:
        self._check()
        check_differentiable(self.reward)
        if self.through not in ("network", "noise"):
            raise ValueError(f"through is {self.through!r}; choose 'network' or 'noise'")
        if self.curvature < 0 or self.data_std <= 0:
            raise ValueError(f"curvature is {self.curvature}, data_std {self.data_std}; give >= 0 and > 0")
        if self.limit is not None and self.limit <= 0:
            raise ValueError(f"limit is {self.limit}; give a number above 0")

    def increment(
        self, denoise: Denoise, state: State, x: Tensor, level: Level, cond: Any
    ) -> tuple[Tensor, Tensor]:
        scale = strength("scale", self.scale, state)
        spread = 1 + scale * self.curvature * _variance(level, self.data_std)

        def slope(clean: Tensor) -> Tensor:
            return scale / spread * ascent(self.reward, state, clean, at_once=self.at_once)[1]

        clean, g = pulled(denoise, x, level, cond, slope, through=self.through, twice=self.twice)
        length = level.sigma * _rms(g)  # of the increment, as noise
        if self.relative:
            noise = (x - level.alpha * clean.detach()) / level.sigma
            g = g * (abs(scale) * _rms(noise) / length.clamp(min=1e-12))
            length = level.sigma * _rms(g)
        return clean, g if self.limit is None else g * (self.limit / length.clamp(min=self.limit))


@final
@dataclass(frozen=True)
class LossGuidance(Steered):
    """Loss-guided diffusion (Song et al., ICML 2023): the value is averaged over where x0 may be.

    The score plus grad_x log mean_n exp(scale reward(decoded estimate + sqrt(v) noise_n)), v the variance of
    x0 given x for data of std `data_std`: exact for Gaussian data as samples grow, where RewardGradient
    overshoots. Costs `samples` decodes and rewards a step, with backward passes; they come in opposite
    pairs. The other settings are RewardGradient's.
    """

    reward: Reward
    scale: Strength
    samples: int = 4
    data_std: float = 1.0
    form: Form = "estimate"
    through: Through = "network"
    window: tuple[float, float] = (0.0, 1.0)
    at_once: int | None = None
    twice: bool = False

    def __post_init__(self) -> None:
        self._check()
        check_differentiable(self.reward)
        check_pairs(self.samples)
        if self.data_std <= 0:
            raise ValueError(f"data_std is {self.data_std}; give a number above 0")

    def start(self, state: State) -> State:
        return super().start(state).remember(**{"loss seeds": state.seeds})  # copies keep them: rescore

    def increment(
        self, denoise: Denoise, state: State, x: Tensor, level: Level, cond: Any
    ) -> tuple[Tensor, Tensor]:
        scale = strength("scale", self.scale, state)
        around = _variance(level, self.data_std) ** 0.5 * opposites(state, x, self.samples, "loss")

        def slope(clean: Tensor) -> Tensor:
            values, slopes = ascent(self.reward, state, (clean + around).flatten(0, 1), at_once=self.at_once)
            share = (scale * values).reshape(self.samples, -1).softmax(0)
            weights = share.view(*share.shape, *[1] * (clean.ndim - 1))
            return scale * (weights * slopes.reshape(around.shape)).sum(0)

        return pulled(denoise, x, level, cond, slope, through=self.through, twice=self.twice)


class NoisyReward(Protocol):
    """Noisy latents x [B, ...] at a level, and the users' queries, to [B], differentiable in x.

    For a target p(x0) exp(scale reward) it is the soft value log E[exp(scale reward(x0)) | x] / scale.
    """

    def __call__(self, x: Tensor, level: Level, queries: Any) -> Tensor: ...


@final
@dataclass(frozen=True)
class NoisyRewardGradient(Steered):
    """Flow-NRG (VideoAlign, arXiv 2501.13918, eq. 10-11): the score plus scale grad_x reward(x, level).

    For a velocity that is v - scale t / (1 - t) grad, nothing at t = 1. The reward reads noisy latents, so
    neither the decoder nor the denoiser is differentiated, and with the exact value the guide is exact.
    `reward`: a NoisyReward; several are weighted by writing the sum.
    """

    reward: NoisyReward
    scale: Strength
    form: Form = "estimate"
    window: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        self._check()
        check_differentiable(self.reward)

    def increment(
        self, denoise: Denoise, state: State, x: Tensor, level: Level, cond: Any
    ) -> tuple[Tensor, Tensor]:
        queries = [state.queries[i % len(state)] for i in range(len(x))]
        with torch.enable_grad():
            point = x.detach().requires_grad_()
            count(rewards=len(x))
            value = self.reward(point, level, queries)
            if value.shape != (len(x),) or not value.requires_grad:
                raise ValueError(f"the noisy reward gave shape {tuple(value.shape)} for {len(x)} latents; "
                                 "give one number each, differentiable in the latents")  # fmt: skip
            (slope,) = torch.autograd.grad(value.float().sum(), point)
        broken = (~slope.flatten(1).isfinite().all(1)).nonzero()
        if len(broken):
            raise ValueError(f"the noisy reward's gradient at sample {int(broken[0, 0])} is not finite")
        clean = x if self.form == "mean" else denoise(x, level, cond)  # only "estimate" reads it
        return clean, strength("scale", self.scale, state) * slope


@final
@dataclass(frozen=True)
class Ascent(Control):
    """Universal guidance's backward part (arXiv 2302.07121, eq. 7-9): the estimate itself climbs the reward.

    `steps` steps of clean + rate grad reward(decoded clean), the denoiser not differentiated. The forward
    part is RewardGradient, listed before; self-recurrence is controls.recurrence.Recurrence.
    """

    reward: Reward
    rate: Strength
    steps: int = 1
    window: tuple[float, float] = (0.0, 1.0)
    at_once: int | None = None

    def __post_init__(self) -> None:
        check_strength("rate", self.rate)
        check_window(self.window)
        check_differentiable(self.reward)
        if self.steps < 0:
            raise ValueError(f"steps is {self.steps}; give a number of gradient steps from 0")

    def guide(self, denoise: Denoise, state: State) -> Denoise:
        rate = strength("rate", self.rate, state)
        if rate == 0 or not self.steps or not within(self.window, state):
            return denoise

        def climbed(x: Tensor, level: Level, cond: Any) -> Tensor:
            clean = denoise(x, level, cond)
            for _ in range(self.steps):
                clean = clean + rate * ascent(self.reward, state, clean, at_once=self.at_once)[1]
            return clean

        return climbed


def _variance(level: Level, std: float) -> float:
    """Of x0 given x at `level`, for Gaussian data of this std."""
    return std**2 * level.sigma**2 / (level.alpha**2 * std**2 + level.sigma**2)


def _rms(x: Tensor) -> Tensor:
    """Root mean square of each sample, [B, 1, ...]."""
    return x.pow(2).flatten(1).mean(1).sqrt().view(-1, *[1] * (x.ndim - 1))
