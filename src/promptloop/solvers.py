"""Solvers: one step from a state to the next level, returned as a Gaussian.

Every step is written with two unknowns, the clean estimate and the noise estimate,
    x = alpha clean + sigma noise,    noise = (x - alpha clean) / sigma,
which is finite from pure noise (alpha = 0) on, for VP, flow and variance-exploding levels alike.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, final

import torch
from torch import Tensor

from promptloop.history import History
from promptloop.schedules import Level, from_scheduler, suits, with_timesteps
from promptloop.transition import Transition

HISTORY = {"model_outputs", "ets", "derivatives", "dt", "sample"}  # where diffusers' schedulers keep theirs
Denoise = Callable[[Tensor, Level, Any], Tensor]  # (x, level, cond) -> clean


class Point(Protocol):
    """What a solver reads of a State."""

    @property
    def x(self) -> Tensor: ...
    @property
    def level(self) -> Level: ...
    @property
    def cond(self) -> Any: ...
    @property
    def seeds(self) -> Tensor: ...
    @property
    def run(self) -> Any: ...
    @property
    def step(self) -> int: ...
    @property
    def transition(self) -> Transition | None: ...
    def generator(self, i: int, purpose: str) -> torch.Generator: ...


class Solver(ABC):
    """(denoise, state, next level) -> Transition. Settings are frozen; nothing is kept between calls."""

    @abstractmethod
    def __call__(self, denoise: Denoise, state: Point, level: Level) -> Transition:
        """The step from state.level to `level`."""

    @property
    def without_density(self) -> str:
        """Why a step has no log-prob, for a path in which none has one."""
        return f"every step of {self} was deterministic"

    def noise_scale(self, levels: Sequence[Level]) -> float:
        """Scale of x where sampling starts, for unit noise."""
        return math.hypot(levels[0].alpha, levels[0].sigma)

    def levels(self, steps: int) -> list[Level] | None:
        """The levels this solver insists on; None: the denoiser's own."""
        return None


# --- deterministic, or with the DDIM family's noise


@final
@dataclass(frozen=True)
class DDIM(Solver):
    """Song et al. 2021, eq. 12 and 16, for any (alpha, sigma). eta = 0 deterministic, 1 ancestral (DDPM).

    std = eta sigma' sqrt(1 - (alpha sigma' / (alpha' sigma))^2); at alpha = 1, k-diffusion's ancestral step.
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        _inside("eta", self.eta, 0.0, 1.0)

    def __call__(self, denoise: Denoise, state: Point, level: Level) -> Transition:
        clean, noise = estimates(denoise, state)
        kept = state.level.alpha * level.sigma / (level.alpha * state.level.sigma)
        std = self.eta * level.sigma * math.sqrt(max(1 - kept**2, 0.0))
        mean = level.alpha * clean + math.sqrt(max(level.sigma**2 - std**2, 0.0)) * noise
        return Transition(mean, torch.tensor(std), clean)


@final
@dataclass(frozen=True)
class Euler(Solver):
    """dx = clean dalpha + noise dsigma, first order; on flow levels x + (sigma' - sigma) v."""

    def __call__(self, denoise: Denoise, state: Point, level: Level) -> Transition:
        clean, noise = estimates(denoise, state)
        return Transition(_euler(state, level, clean, noise), torch.tensor(0.0), clean)


@final
@dataclass(frozen=True)
class Heun(Solver):
    """Euler, then the average of the slopes at both ends (Karras et al. 2022, alg. 1): order 2, two calls.

    Where no noise is left at the end of the step its slope is undefined and the step stays Euler's, one call.
    """

    def __call__(self, denoise: Denoise, state: Point, level: Level) -> Transition:
        clean, noise = estimates(denoise, state)
        x = _euler(state, level, clean, noise)
        if level.sigma > 0:
            corrected = denoise(x, level, state.cond)
            there = (x - level.alpha * corrected) / level.sigma
            x = _euler(state, level, (clean + corrected) / 2, (noise + there) / 2)
            clean = corrected
        return Transition(x, torch.tensor(0.0), clean)


def estimates(denoise: Denoise, state: Point) -> tuple[Tensor, Tensor]:
    """Clean and noise estimate at the state, each [B, ...]; alpha clean + sigma noise is x again."""
    clean = denoise(state.x, state.level, state.cond)
    return clean, (state.x - state.level.alpha * clean) / state.level.sigma


def _euler(state: Point, level: Level, clean: Tensor, noise: Tensor) -> Tensor:
    return state.x + (level.alpha - state.level.alpha) * clean + (level.sigma - state.level.sigma) * noise


# --- stochastic flow steps (policy gradient draws from these)


@final
@dataclass(frozen=True)
class FlowSDE(Solver):
    """Flow-GRPO's reverse SDE (2505.05470, eq. 9): sd = eta sqrt(s / (1 - s)). Keeps the flow's marginals.

    eta = sqrt(2) is memoryless: the image is independent of the starting noise.
    At s = 1 the sd uses the next level's s, as the authors do. Other levels are rescaled to a flow and back.
    """

    eta: float = 0.7

    def __post_init__(self) -> None:
        _inside("eta", self.eta, 0.0, math.inf)

    def __call__(self, denoise: Denoise, state: Point, level: Level) -> Transition:
        s = state.level.share
        kept = 1 - s if s < 1 - 1e-6 else 1 - level.share
        return _sde(denoise, state, level, self.eta * math.sqrt(s / kept))


@final
@dataclass(frozen=True)
class DanceSDE(Solver):
    """DanceGRPO's reverse SDE (2505.07818): the same drift with a constant sd = eta."""

    eta: float = 0.3

    def __post_init__(self) -> None:
        _inside("eta", self.eta, 0.0, math.inf)

    def __call__(self, denoise: Denoise, state: Point, level: Level) -> Transition:
        return _sde(denoise, state, level, self.eta)


@final
@dataclass(frozen=True)
class CPS(Solver):
    """Coefficients-preserving sampling (Flow-CPS): sigma' splits into sin (fresh) and cos (estimated) noise.

    mean = alpha' clean + sigma' cos(eta pi / 2) noise, std = sigma' sin(eta pi / 2): the noise level is
    sigma' exactly after every step. It does not keep the marginals as the number of steps grows at fixed
    eta.
    """

    eta: float = 0.7

    def __post_init__(self) -> None:
        _inside("eta", self.eta, 0.0, 1.0)

    def __call__(self, denoise: Denoise, state: Point, level: Level) -> Transition:
        clean, noise = estimates(denoise, state)
        angle = self.eta * math.pi / 2
        mean = level.alpha * clean + level.sigma * math.cos(angle) * noise
        return Transition(mean, torch.tensor(level.sigma * math.sin(angle)), clean)


@final
@dataclass(frozen=True)
class LCM(Solver):
    """Multistep consistency sampling (Song et al. 2023, alg. 1; Luo et al., arXiv 2310.04378, alg. 3).

    mean = alpha' clean, std = sigma': all noise of the next level is fresh, and what one step settled is open
    again to the next. For backbones distilled to answer with a whole picture at every level. With
    LCMScheduler's boundary (its sigma_data and timestep_scaling), which matters below t = 10 only.
    """

    sigma_data: float = 0.5
    timestep_scaling: float = 10.0

    def __call__(self, denoise: Denoise, state: Point, level: Level) -> Transition:
        skipped = self.sigma_data**2 / ((self.timestep_scaling * state.level.t) ** 2 + self.sigma_data**2)
        answered = denoise(state.x, state.level, state.cond)
        clean = math.sqrt(1 - skipped) * answered + skipped * state.x
        return Transition(level.alpha * clean, torch.tensor(float(level.sigma)), clean)


def _sde(denoise: Denoise, state: Point, level: Level, sd: float) -> Transition:
    """Euler-Maruyama on dx = [v + sd^2/(2s) (x + (1-s) v)] dt + sd dw, in the flow x / (alpha + sigma).

    The last step, to no noise at all, ends at the clean estimate: noise drawn there would stay in the image.
    """
    clean, noise = estimates(denoise, state)
    if level.sigma == 0:
        return Transition(level.alpha * clean, torch.tensor(0.0), clean)
    s, dt = state.level.share, level.share - state.level.share
    x, v = state.x / (state.level.alpha + state.level.sigma), noise - clean
    mean = x * (1 + sd**2 / (2 * s) * dt) + v * (1 + sd**2 * (1 - s) / (2 * s)) * dt
    back = level.alpha + level.sigma
    return Transition(mean * back, torch.tensor(sd * math.sqrt(max(-dt, 0.0)) * back), clean)


# --- any diffusers scheduler


@final
@dataclass(frozen=True)
class Scheduler(Solver):
    """Any diffusers scheduler as a solver with std 0: what its `step` returns is the mean.

    `options` go to `set_timesteps`. The levels must be schedules.from_scheduler(scheduler, steps,
    **options); `sample` with steps= does that. The scheduler given is never changed: a run has its copy,
    which travels in the Transition, so a multistep history follows its samples. Stochastic ones draw from
    the samples' generators.
    """

    scheduler: Any
    options: Mapping[str, Any] = field(default_factory=dict)

    def levels(self, steps: int) -> list[Level]:
        return from_scheduler(self.scheduler, steps, **self.options)

    @property
    def without_density(self) -> str:
        name = type(self.scheduler).__name__
        if HISTORY & vars(with_timesteps(self.scheduler, 10, self.options)).keys():
            return f"{name} is stateful: its step depends on earlier answers, which one step has not"
        return f"{name} is wrapped: it tells where its step ended, not the Gaussian that it came from"

    def noise_scale(self, levels: Sequence[Level]) -> float:
        known = hasattr(self.scheduler, "init_noise_sigma")
        return float(self._timed(levels).init_noise_sigma) if known else 1.0

    def __call__(self, denoise: Denoise, state: Point, level: Level) -> Transition:
        last = state.transition
        if state.step == 0:
            suits(self.scheduler, state.run.denoiser.flow, f"a {type(state.run.denoiser).__name__}")
            history = History(self._timed(state.run.levels), 0, state.x.shape)
        elif last is not None and isinstance(last.carry, History):
            history = last.carry.fork()
        else:
            raise ValueError("no scheduler history here; start a diffusers scheduler at the first level")
        clean = denoise(state.x, state.level, state.cond)
        return Transition(history.advance(state, clean), torch.tensor(0.0), clean, history)

    def _timed(self, levels: Sequence[Level]) -> Any:
        """A copy whose timesteps are the levels'. PNDM visits one level twice, or nine more with its
        Runge-Kutta start, Heun and KDPM2 all but the first.
        """
        given = [level.t for level in levels[:-1]]
        for steps in (len(given), len(given) - 1, (len(given) + 1) // 2, len(given) - 9):
            if steps >= 1:
                timed = with_timesteps(self.scheduler, steps, self.options)
                if torch.equal(torch.tensor(given), timed.timesteps.float().cpu()):
                    return timed
        name = type(self.scheduler).__name__
        raise ValueError(f"these levels are not {name}'s; use schedules.from_scheduler(scheduler, steps)")


def _inside(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name} is {value}; give a number from {low:g} to {high:g}")


def default_solver(denoiser: Any) -> Solver:
    """What the denoiser's own scheduler stands for: DDIM, Euler, LCM, or that scheduler, wrapped."""
    scheduler = denoiser.scheduler
    name = type(scheduler).__name__
    if scheduler is None:
        return DDIM()
    changes_clean = scheduler.config.get("clip_sample", False) or scheduler.config.get("thresholding", False)
    if name == "DDIMScheduler" and not changes_clean:
        return DDIM()
    if name == "FlowMatchEulerDiscreteScheduler" and not scheduler.config.get("stochastic_sampling", False):
        return Euler()
    if name == "LCMScheduler" and not changes_clean:
        return LCM(sigma_data=0.5, timestep_scaling=scheduler.config.timestep_scaling)
    return Scheduler(scheduler, denoiser.scheduler_options)
