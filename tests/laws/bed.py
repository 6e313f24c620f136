"""What the law tests share: beds, a state at any level, a control that moves samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from promptloop.denoisers.cond import Cond
from promptloop.denoisers.exact import Exact, ExactReward, Gaussian, GaussianMixture, Quadratic
from promptloop.sample import Control, Run, State, Transition, begin
from promptloop.schedules import Level, flow, karras, vp
from promptloop.solvers import CPS, DDIM, LCM, DanceSDE, Denoise, Euler, FlowSDE, Heun, Solver

SOLVERS = [DDIM(), DDIM(1.0), Euler(), Heun(), FlowSDE(), DanceSDE(), CPS(), LCM()]
STOCHASTIC = [DDIM(1.0), FlowSDE(), DanceSDE(), CPS(), LCM()]
GRIDS = {"vp": vp(6), "cosine": vp(6, curve="cosine"), "flow": flow(6, shift=3.0), "karras": karras(6)}


def words(dim: int = 3) -> Gaussian:
    """A Gaussian bed in which four texts mean four means."""
    return Gaussian(0.3, 0.6, dim, prompts={"": 0.0, "up": 1.0, "down": -1.0, "far": 3.0})


def pair(d: int = 1) -> GaussianMixture:
    """TM of the training sheet: weights .3/.7, means -2/1, stds .5/.8; mean 0.1, variance 2.413."""
    means = torch.tensor([-2.0, 1.0])[:, None].expand(2, d)
    return GaussianMixture(means, torch.tensor([0.5, 0.8]), torch.tensor([0.3, 0.7]))


class Iid(Exact):
    """`pair` in every one of d independent dimensions: d samples of a one-dimensional bed in one row."""

    def __init__(self, d: int) -> None:
        self.one, self.latent_shape = pair(), (d,)  # type: ignore[misc]
        self.network = self.one.network

    latent_shape = (1,)

    def embed(self, prompts: Sequence[str]) -> Cond:
        return self.one.embed(prompts)

    def clean(self, x: Tensor, level: Level, cond: Cond) -> Tensor:
        return self.one.clean(x.reshape(-1, 1), level, cond).reshape(x.shape)

    def log_h(self, *_: Any) -> Tensor:
        raise NotImplementedError


def at(
    level: Level,
    x: Tensor,
    *,
    denoiser: Any = None,
    levels: Sequence[Level] | None = None,
    solver: Solver | None = None,
    prompts: Sequence[str] | None = None,
) -> State:
    """A state with these latents at this level, its prompts embedded."""
    denoiser = Gaussian(dim=x.shape[1]) if denoiser is None else denoiser
    run = Run(denoiser, tuple(levels or (level, Level(1.0, 0.0, 0.0))), solver or DDIM(), ())
    prompts = [""] * len(x) if prompts is None else prompts
    state = begin(run, prompts, range(len(x)), x)
    return State(
        run,
        0,
        level,
        x,
        state.seeds,
        state.queries,
        state.prompts,
        denoiser.embed(prompts),
        state.prompts,
        memory=state.memory,
    )


@dataclass(frozen=True)
class Pick(Control):
    """After the steps given, samples go on as `index` says."""

    index: tuple[int, ...]
    after: tuple[int, ...] = (2, 4)

    def select(self, state: State) -> State:
        return state.take(self.index) if state.step in self.after else state


@dataclass(frozen=True)
class Chain(Solver):
    """The exact reverse kernel of a Gaussian bed: no discretisation error."""

    def __call__(self, denoise: Denoise, state: Any, level: Level) -> Transition:
        clean = denoise(state.x, state.level, state.cond)
        mean, std = state.run.denoiser.reverse(state.x, state.level, level, state.cond)
        return Transition(mean, torch.tensor(std), clean)


@dataclass(frozen=True)
class Seen:
    """A reward of latents, asked through the bed's images."""

    exact: ExactReward = Quadratic()
    differentiable: bool = True

    def __call__(self, images: Tensor, queries: Sequence[str]) -> Tensor:
        return self.exact(torch.logit(images[:, 0, 0]))


@dataclass(frozen=True)
class Value:
    """G1's exact soft value, read off noisy latents; times 3 it is log h."""

    bed: Any
    differentiable: bool = True

    def __call__(self, x: Tensor, level: Level, queries: Any) -> Tensor:
        return self.bed.log_h(x, level, self.bed.embed(queries), Quadratic(), 3.0) / 3
