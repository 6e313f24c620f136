"""Noise levels: x = alpha * clean + sigma * noise, from the noisiest level to the end of sampling.

A schedule is a plain list of `Level`, one longer than the number of steps. Variance-preserving, flow and
variance-exploding grids differ in (alpha, sigma) only, so one step formula serves them all.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

TRAIN_STEPS = 1000

Curve = Literal["scaled_linear", "linear", "cosine"]

EDM = "belongs to networks that were trained with EDM's scaling of input and output, which none here was"
INVERSE = "walks from the image to the noise"
SUPPORTED = (
    "supported are DDIM, DDPM, PNDM, LCM, TCD, Euler, Heun, LMS, KDPM2, DPMSolver, UniPC, DEIS, SASolver and "
    "FlowMatch schedulers"
)
REFUSED = {  # diffusers scheduler -> why our loop cannot run it
    "CMStochasticIterativeScheduler": EDM,
    "EDMDPMSolverMultistepScheduler": EDM,
    "EDMEulerScheduler": EDM,
    "CosineDPMSolverMultistepScheduler": EDM,
    "IPNDMScheduler": "tells the network times from 0 to 1 and no training steps",
    "DPMSolverSDEScheduler": "draws from one Brownian tree for the whole batch, so no sample is itself alone",
    "KDPM2AncestralDiscreteScheduler": "looks below the next level, so its levels do not fall; "
    "EulerAncestralDiscreteScheduler or our DDIM(eta=1) draw as well",
    "DDIMInverseScheduler": INVERSE,
    "RePaintScheduler": "fills the holes of an image that is given",
    "DPMSolverMultistepInverseScheduler": INVERSE,
}


@dataclass(frozen=True)
class Level:
    """One noise level: alpha scales the clean signal, sigma the unit noise, t is what the network is told."""

    alpha: float
    sigma: float
    t: float

    @property
    def share(self) -> float:
        """Noise share in [0, 1]: sigma / (alpha + sigma), the sigma of this level rescaled to a flow."""
        return self.sigma / (self.alpha + self.sigma)


def check(levels: Iterable[Level]) -> tuple[Level, ...]:
    """The levels as a tuple; ValueError unless there are two or more, finite, never noisier than before."""
    grid = tuple(levels)
    if len(grid) < 2:
        raise ValueError(f"levels has {len(grid)} entries; sampling needs at least two (a start and an end)")
    for k, level in enumerate(grid):
        if not isinstance(level, Level):
            raise ValueError(f"levels[{k}] is {level!r}; give Level(alpha, sigma, t)")
        if not all(map(math.isfinite, (level.alpha, level.sigma, level.t))):
            raise ValueError(f"levels[{k}] = {level} is not finite")
        if level.alpha < 0 or level.sigma < 0 or level.alpha + level.sigma == 0:
            raise ValueError(f"levels[{k}] = {level}: alpha and sigma must be >= 0 and not both 0")
        if level.sigma == 0 and k < len(grid) - 1:
            raise ValueError(f"levels[{k}] = {level} has no noise left; only the last level may have sigma 0")
        if k and level.share > grid[k - 1].share + 1e-9:
            raise ValueError(f"levels[{k}] = {level} is noisier than the one before; put the noisiest first")
    if grid[-1].alpha == 0:
        raise ValueError("the last level has alpha 0: sampling would end in pure noise")
    return grid


def asked_for(
    denoiser: Any, solver: Any, steps: int | None, levels: Iterable[Level] | None
) -> Sequence[Level]:
    """The levels given, or the solver's or denoiser's for so many steps; ValueError unless one is given."""
    if (steps is None) == (levels is None):
        raise ValueError("give either steps= or levels=")
    if levels is None:
        levels = solver.levels(steps) or denoiser.levels(steps)
    return check(levels)


def vp(
    steps: int,
    *,
    curve: Curve = "scaled_linear",
    spacing: Literal["trailing", "leading"] = "trailing",
    start: float = 0.00085,
    end: float = 0.012,
) -> list[Level]:
    """Variance-preserving levels (alpha^2 + sigma^2 = 1), steps + 1 of them, ending at (1, 0).

    `scaled_linear` and `linear` are the 1,000-step curves of Stable Diffusion and DDPM, variances from
    `start` to `end`, t the training step; "trailing" begins at the last training step, "leading" (with
    offset 1) where the first Stable Diffusion did. `cosine` is alpha = cos(pi u / 2), u even from 1 (pure
    noise) to 0, t = 1000 u.
    """
    _positive(steps)
    if curve == "cosine":
        shares = [k / steps for k in range(steps - 1, 0, -1)]
        noisy = [Level(math.cos(math.pi * u / 2), math.sin(math.pi * u / 2), TRAIN_STEPS * u) for u in shares]
        return [Level(0.0, 1.0, float(TRAIN_STEPS)), *noisy, Level(1.0, 0.0, 0.0)]
    signal = _signal(curve, start, end)
    if steps > TRAIN_STEPS:
        raise ValueError(f"steps is {steps}; a {curve} curve has {TRAIN_STEPS} training steps")
    if spacing == "trailing":
        times = [round(TRAIN_STEPS * k / steps) - 1 for k in range(steps, 0, -1)]
    elif spacing == "leading":
        times = [min(k * (TRAIN_STEPS // steps) + 1, TRAIN_STEPS - 1) for k in range(steps - 1, -1, -1)]
    else:
        raise ValueError(f"spacing is {spacing!r}; choose 'trailing' or 'leading'")
    return [*(_vp_level(signal[t], t) for t in times), Level(1.0, 0.0, 0.0)]


def flow(steps: int, shift: float = 1.0) -> list[Level]:
    """Rectified-flow levels (alpha = 1 - sigma), sigma even from 1 to 0, then shifted; t = 1000 sigma.

    shift > 1 spends more steps at high noise: sigma -> shift sigma / (1 + (shift - 1) sigma) (SD3, eq. 23).
    """
    _positive(steps)
    if not shift > 0:
        raise ValueError(f"shift is {shift}; it must be > 0 (1 leaves the grid even)")
    even = [k / steps for k in range(steps, -1, -1)]
    return [_flow_level(shift * s / (1 + (shift - 1) * s), TRAIN_STEPS) for s in even]


def karras(
    steps: int, *, sigma_min: float = 0.0292, sigma_max: float = 14.6146, rho: float = 7.0
) -> list[Level]:
    """Variance-exploding levels (alpha = 1), sigma^(1/rho) even (Karras et al. 2022, eq. 5), then sigma 0.

    The defaults span Stable Diffusion's training noise; `t` is the (fractional) training step of that noise.
    """
    _positive(steps)
    if not 0 < sigma_min < sigma_max:
        raise ValueError(f"sigma_min {sigma_min} and sigma_max {sigma_max}: give 0 < sigma_min < sigma_max")
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    sigmas = [(high + k / max(steps - 1, 1) * (low - high)) ** rho for k in range(steps)]
    known = [math.log(math.sqrt((1 - a) / a)) for a in _signal("scaled_linear", 0.00085, 0.012)]
    noisy = [Level(1.0, sigma, _interpolate(math.log(sigma), known)) for sigma in sigmas]
    return [*noisy, Level(1.0, 0.0, 0.0)]


def from_scheduler(scheduler: Any, steps: int | None = None, **options: Any) -> list[Level]:
    """The levels a diffusers scheduler visits, one for each of its timesteps and one for the end.

    `options` go to its `set_timesteps` (mu, sigmas, timesteps ...). The scheduler itself is not changed.
    Two-evaluation schedulers (Heun, PNDM's start) visit a level twice; so does the list. KDPM2 visits one
    in the middle of each step. FlowMatch*: alpha = 1 - sigma. Euler and other k-style: alpha = 1. The others:
    variance preserving. ValueError with the reason for a scheduler in `REFUSED`.
    """
    _usable(scheduler)
    return visited(with_timesteps(scheduler, steps, options))


def visited(timed: Any) -> list[Level]:
    """The levels of a diffusers scheduler whose timesteps are set, as they are; see `from_scheduler`."""
    times = [float(t) for t in timed.timesteps]
    name, sigmas = type(timed).__name__, vars(timed).get("sigmas")
    if sigmas is None and "alphas_cumprod" in vars(timed):
        return _from_signal(timed, times)
    if "sigmas_interpol" in vars(timed):
        sigmas = _with_middles(timed, len(times))
    if sigmas is None or len(sigmas) != len(times) + 1:
        raise ValueError(f"the timesteps of {name} are not one noise level each; {SUPPORTED}")
    pairs = zip((float(s) for s in sigmas), [*times, 0.0], strict=True)
    if is_flow(timed):
        return [Level(1.0 - sigma, sigma, t) for sigma, t in pairs]
    if "_sigma_to_alpha_sigma_t" in dir(timed):  # DPM-Solver, UniPC, DEIS, SA: k-style sigmas, x in VP
        return [Level(1 / math.hypot(1, sigma), sigma / math.hypot(1, sigma), t) for sigma, t in pairs]
    return [Level(1.0, sigma, t) for sigma, t in pairs]


def suits(scheduler: Any, flow: bool | None, who: str) -> None:
    """ValueError where a diffusers scheduler walks other levels than a network was trained on: `flow` says
    whether it is a flow's (None: whatever it is given).
    """
    if scheduler is None or flow is None or is_flow(scheduler) == flow:
        return
    name = type(scheduler).__name__
    if flow:
        raise ValueError(f"{name} does not suit {who}, a flow; give FlowMatchEulerDiscreteScheduler, "
                         "or a scheduler with use_flow_sigmas=True")  # fmt: skip
    raise ValueError(f"{name} walks a flow, which {who} is not; give DDIMScheduler, EulerDiscreteScheduler "
                     "or another without flow sigmas")  # fmt: skip


def _usable(scheduler: Any) -> None:
    name = type(scheduler).__name__
    if name in REFUSED:
        raise ValueError(f"{name} {REFUSED[name]}; {SUPPORTED}")


def _with_middles(timed: Any, count: int) -> list[float]:
    """The sigmas of KDPM2's `count` calls and of its end: whole steps and, between them, their middles."""
    whole, middle = timed.sigmas, timed.sigmas_interpol
    return [float(middle[k] if k % 2 else whole[k]) for k in range(count)] + [float(whole[-1])]


def with_timesteps(scheduler: Any, steps: int | None, options: Mapping[str, Any]) -> Any:
    """A copy of a diffusers scheduler with its timesteps set (without steps where options give the grid).

    An option that is a function is what it gives for this number of steps.
    """
    timed = copy.deepcopy(scheduler)
    if any(map(callable, options.values())):
        if steps is None:
            raise ValueError("give steps, which these options are a function of")
        options = {name: value(steps) if callable(value) else value for name, value in options.items()}
    if options.get("timesteps") is not None or options.get("sigmas") is not None:
        timed.set_timesteps(**options)
    elif steps is None:
        raise ValueError("give steps, or the grid itself as timesteps= or sigmas=")
    else:
        _positive(steps)
        known = scheduler.config.get("original_inference_steps", steps)
        if steps > known:
            raise ValueError(
                f"steps is {steps}, but the backbone was distilled for {known}; give at most {known}"
            )
        timed.set_timesteps(steps, **options)
    return timed


def is_flow(scheduler: Any) -> bool:
    """Whether a diffusers scheduler walks x = (1 - sigma) clean + sigma noise."""
    name = type(scheduler).__name__
    return name.startswith("FlowMatch") or bool(scheduler.config.get("use_flow_sigmas", False))


def _from_signal(scheduler: Any, times: list[float]) -> list[Level]:
    signal = scheduler.alphas_cumprod
    answers = type(scheduler).__name__ == "LCMScheduler"  # its last step ends at its answer, whatever it says
    end = 1.0 if answers else float(vars(scheduler).get("final_alpha_cumprod", 1.0))
    return [*(_vp_level(float(signal[int(t)]), t) for t in times), _vp_level(end, 0.0)]


def _signal(curve: str, start: float, end: float) -> list[float]:
    """Squared alpha of the 1,000 training steps."""
    if curve == "scaled_linear":
        low, high, power = math.sqrt(start), math.sqrt(end), 2
    elif curve == "linear":
        low, high, power = start, end, 1
    else:
        raise ValueError(f"curve is {curve!r}; choose 'scaled_linear', 'linear' or 'cosine'")
    kept, signal = 1.0, []
    for k in range(TRAIN_STEPS):
        kept *= 1 - (low + (high - low) * k / (TRAIN_STEPS - 1)) ** power
        signal.append(kept)
    return signal


def _vp_level(signal: float, t: float) -> Level:
    return Level(math.sqrt(signal), math.sqrt(max(1 - signal, 0.0)), float(t))


def _flow_level(sigma: float, scale: float) -> Level:
    return Level(1.0 - sigma, sigma, scale * sigma)


def _interpolate(value: float, known: list[float]) -> float:
    """Position of value in an increasing list, by linear interpolation, held at the ends."""
    if value <= known[0]:
        return 0.0
    for k in range(1, len(known)):
        if value <= known[k]:
            return k - 1 + (value - known[k - 1]) / (known[k] - known[k - 1])
    return float(len(known) - 1)


def _positive(steps: int) -> None:
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps is {steps!r}; give a whole number >= 1")
