"""Solvers: order of convergence, equality with diffusers, marginals, finiteness."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler
from laws.bed import GRIDS, SOLVERS, Iid, at, pair

from promptloop.denoisers.exact import Gaussian
from promptloop.sample import trajectory
from promptloop.schedules import Level, flow, from_scheduler, karras, vp
from promptloop.solvers import CPS, DDIM, LCM, DanceSDE, Euler, FlowSDE, Heun

BED = Gaussian(0.3, 0.5)


def grid(kind: str, steps: int) -> list[Level]:
    if kind == "flow":
        return flow(steps, shift=2.0)
    return vp(steps, curve="cosine") if kind == "cosine" else karras(steps)[:-1]


def exact_end(x: torch.Tensor, start: Level, end: Level) -> torch.Tensor:
    """The probability-flow ODE of a Gaussian bed: the standardised x never changes."""

    def scale(level: Level) -> float:
        return math.sqrt(level.alpha**2 * BED.std**2 + level.sigma**2)

    return end.alpha * 0.3 + (x - start.alpha * 0.3) / scale(start) * scale(end)


@pytest.mark.parametrize("kind", ["flow", "cosine", "karras"])
@pytest.mark.parametrize(
    ("solver", "order"), [(Euler(), 1), (DDIM(), 1), (Heun(), 2)], ids=["euler", "ddim", "heun"]
)
@torch.no_grad()
def test_order_of_convergence(solver, order, kind) -> None:
    """Regression of log error on log steps; fails when Heun keeps the first slope (order 1)."""
    counts, errors = [16, 24, 36, 54], []
    for steps in counts:
        levels = grid(kind, steps)
        first, *_, last = trajectory(BED, [""] * 8, levels=levels, solver=solver, seeds=range(8))
        errors.append((last.x - exact_end(first.x, levels[0], levels[-1])).abs().max().item())
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert slope == pytest.approx(order, abs=0.2), errors
    assert errors[-1] > 1e-6, "rounding, not the method, was measured"


@pytest.mark.parametrize(
    "levels", [vp(7), vp(7, curve="cosine"), flow(7), karras(7)], ids=["vp", "cos", "flow", "ve"]
)
def test_ddim_and_euler_are_one_method(levels) -> None:
    """The same Gaussian written twice; fails when either forgets one of the two coefficients."""
    for before, after in pairwise(levels):
        state = at(before, torch.randn(4, 2) * math.hypot(before.alpha, before.sigma), denoiser=pair(2))
        one, two = (solver(pair(2).clean, state, after) for solver in (DDIM(), Euler()))
        assert torch.allclose(one.mean, two.mean, atol=1e-5) and one.std == two.std == 0


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize(
    "options",
    [
        {"timestep_spacing": "leading", "steps_offset": 1, "set_alpha_to_one": False},
        {"timestep_spacing": "trailing"},
        {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"},
    ],
    ids=str,
)
def test_ddim_equals_diffusers(eta, options) -> None:
    """Mean and std of every step; fails when std uses sigma instead of sigma', or misses eta."""
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, **options
    )
    levels = from_scheduler(scheduler, 10)
    scheduler.set_timesteps(10)
    for (before, after), t in zip(pairwise(levels), scheduler.timesteps, strict=True):
        if eta == 1 and before.alpha == 0:
            continue  # diffusers takes the square root of a rounded 0, which is nan where it is below 0
        x, clean = torch.randn(3, 4), torch.randn(3, 4)
        noise = (x - before.alpha * clean) / before.sigma
        velocity = before.alpha * noise - before.sigma * clean
        output = velocity if options.get("prediction_type") else noise
        zero, one = torch.zeros(3, 4), torch.ones(3, 4)
        mean = scheduler.step(output, t, x, eta=eta, variance_noise=zero).prev_sample
        drawn = scheduler.step(output, t, x, eta=eta, variance_noise=one).prev_sample
        ours = DDIM(eta)(lambda *_, clean=clean: clean, at(before, x), after)
        assert torch.allclose(ours.mean, mean, atol=2e-5)
        assert torch.allclose((ours.mean + ours.std).expand(3, 4), drawn, atol=2e-5)


def test_ddim_with_eta_one_is_the_ancestral_step_where_alpha_is_one() -> None:
    """k-diffusion: sigma_up^2 = s'^2 (s^2 - s'^2) / s^2, down to sqrt(s'^2 - sigma_up^2)."""
    s, after = 3.0, 1.2
    up = math.sqrt(after**2 * (s**2 - after**2) / s**2)
    state = at(Level(1.0, s, 0.0), torch.randn(2, 3))
    step = DDIM(1.0)(lambda *_: torch.zeros(2, 3), state, Level(1.0, after, 0.0))
    assert step.std.item() == pytest.approx(up, rel=1e-6)
    assert torch.allclose(step.mean, state.x / s * math.sqrt(after**2 - up**2))


def test_flow_and_dance_sde_are_the_published_formulas() -> None:
    """Sheet, section 0, at s = 0.8 and at s = 1 (where Flow-SDE takes the sd at sigma_1)."""
    for s, after in [(0.8, 0.65), (1.0, 0.9)]:
        x, clean = torch.randn(2, 3), torch.randn(2, 3)
        noise = (x - (1 - s) * clean) / s
        v, dt = noise - clean, after - s
        state = at(Level(1 - s, s, 0.0), x)
        for solver, sd in [
            (FlowSDE(0.7), 0.7 * math.sqrt(s / (1 - (s if s < 1 else after)))),
            (DanceSDE(0.4), 0.4),
        ]:
            mean = x * (1 + sd**2 / (2 * s) * dt) + v * (1 + sd**2 * (1 - s) / (2 * s)) * dt
            step = solver(lambda *_, clean=clean: clean, state, Level(1 - after, after, 0.0))
            assert torch.allclose(step.mean, mean, atol=1e-6)
            assert step.std.item() == pytest.approx(sd * math.sqrt(-dt), rel=1e-6)


@pytest.mark.parametrize("levels", [flow(240), vp(240, curve="cosine")], ids=["flow", "cosine"])
@pytest.mark.parametrize("solver", [FlowSDE(0.7), FlowSDE(1.2), DanceSDE(0.7), DDIM(1.0)], ids=repr)
@torch.no_grad()
def test_reverse_sdes_keep_the_marginals(solver, levels) -> None:
    """Exact velocity of a mixture (mean 0.1, variance 2.413, 0.225 of the mass below -1.5), 12,000 chains.

    Fails when the sign of the score term is flipped (variance 2.7) or when it is left out (variance below 2).
    """
    bed = Iid(12000)
    for state in trajectory(bed, [""], levels=levels, solver=solver, seeds=[1]):
        alpha, sigma = state.level.alpha, state.level.sigma
        if state.step in (120, 190, 240):
            assert state.x.mean().item() == pytest.approx(alpha * 0.1, abs=0.05)
            assert state.x.var().item() == pytest.approx(alpha**2 * 2.413 + sigma**2, rel=0.05)
    below = 0.3 * torch.distributions.Normal(-2, 0.5).cdf(torch.tensor(-1.5))
    below += 0.7 * torch.distributions.Normal(1, 0.8).cdf(torch.tensor(-1.5))
    assert (state.x < -1.5).float().mean().item() == pytest.approx(below.item(), abs=0.015)


@pytest.mark.parametrize(
    ("eta", "expected"), [(0.0, 1.0), (0.3, 0.70), (0.7, 0.14), (1.0, 0.02), (math.sqrt(2), 0.0)]
)
@torch.no_grad()
def test_flow_sde_forgets_its_start_as_published(eta, expected) -> None:
    """Correlation of start and end on N(0, 1) data; sqrt(2) is memoryless. Fails with sd = eta sqrt(s)."""
    first, *_, last = trajectory(
        Gaussian(0.0, 1.0, 20000), [""], levels=flow(400), solver=FlowSDE(eta), seeds=[2]
    )
    correlation = torch.corrcoef(torch.cat([first.x, last.x]))[0, 1].item()
    assert correlation == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("eta", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("levels", [flow(6, 3.0), vp(6), karras(6)], ids=["flow", "vp", "ve"])
def test_cps_preserves_the_coefficients(levels, eta) -> None:
    """mean = alpha' clean + c noise with c^2 + std^2 = sigma'^2, std = sigma' sin(eta pi / 2).

    Fails when std is sin(eta pi / 2) of the old sigma. (It does not keep marginals, so that is not tested.)
    """
    for before, after in pairwise(levels):
        clean, noise = torch.randn(2, 3), torch.randn(2, 3)
        state = at(before, before.alpha * clean + before.sigma * noise)
        step = CPS(eta)(lambda *_, clean=clean: clean, state, after)
        assert step.std.item() == pytest.approx(after.sigma * math.sin(eta * math.pi / 2), abs=1e-6)
        kept = after.sigma * math.cos(eta * math.pi / 2)
        assert kept**2 + step.std.item() ** 2 == pytest.approx(after.sigma**2, rel=1e-6)
        assert torch.allclose(
            step.mean, after.alpha * clean + kept * noise, atol=2e-4 * max(1.0, after.sigma)
        )


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
@pytest.mark.parametrize("name", [*GRIDS, "one step", "nearly noise", "zero snr"])
@torch.no_grad()
def test_every_solver_is_finite_from_pure_noise_to_the_end(name, solver) -> None:
    """Fails when noise is computed from v / alpha, or Flow-SDE divides by 1 - s at s = 1 (or next to it)."""
    levels = {
        **GRIDS,
        "one step": flow(1),
        "nearly noise": [Level(1e-12, 1.0, 1000.0), *flow(4)[1:]],
        "zero snr": [Level(0.0, 1.0, 999.0), Level(0.5, 0.5, 500.0), Level(1.0, 0.0, 0.0)],
    }[name]
    for state in trajectory(pair(2), [""] * 3, levels=levels, solver=solver, seeds=[1, 2, 3]):
        assert state.x.isfinite().all()
        assert state.transition is None or state.transition.clean.isfinite().all()
    assert state.transition.std == 0 and (state.x.abs() < 6).all()


@pytest.mark.parametrize("steps", [1, 3, 8])
def test_lcm_equals_diffusers(steps) -> None:
    """Mean and fresh noise of every step; fails without the boundary, or with sigma instead of sigma'."""
    scheduler = LCMScheduler(original_inference_steps=100, timestep_scaling=0.01)
    levels = from_scheduler(scheduler, steps)
    scheduler.set_timesteps(steps)
    for (before, after), t in zip(pairwise(levels), scheduler.timesteps, strict=True):
        x, clean = torch.randn(3, 4), torch.randn(3, 4)
        noise = (x - before.alpha * clean) / before.sigma
        made = scheduler.step(noise, t, x, generator=torch.Generator().manual_seed(3))
        fresh = torch.randn(3, 4, generator=torch.Generator().manual_seed(3))
        ours = LCM(timestep_scaling=0.01)(lambda *_, clean=clean: clean, at(before, x), after)
        assert torch.allclose(ours.clean, made.denoised, atol=2e-5)
        assert torch.allclose(ours.mean + ours.std * fresh, made.prev_sample, atol=2e-5)


def test_lcm_with_the_exact_consistency_function_draws_exactly_in_any_number_of_steps() -> None:
    """Gaussian data N(0.7, 0.3^2): the flow's map to the end is known. Fails when std is not sigma'."""
    mean, spread = 0.7, 0.3

    def to_the_end(x, level, cond):
        width = math.hypot(level.alpha * spread, level.sigma)
        return mean + spread / width * (x - level.alpha * mean)

    for levels in (flow(1), flow(4), vp(6)):
        x = torch.randn(40_000, 1) * math.hypot(levels[0].alpha * spread, levels[0].sigma)
        x = x + levels[0].alpha * mean
        for before, after in pairwise(levels):
            step = LCM()(to_the_end, at(before, x), after)
            x = step.mean + step.std * torch.randn_like(x)
        assert x.mean().item() == pytest.approx(mean, abs=0.01)
        assert x.std().item() == pytest.approx(spread, rel=0.02)
