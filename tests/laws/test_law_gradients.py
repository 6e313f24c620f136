"""Score increments: their sign in every parameterisation, and what each guide reaches on G1."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from laws.bed import Chain, Seen, Value, at
from torch import Tensor

from promptloop.controls.gradients import LossGuidance, NoisyRewardGradient, RewardGradient
from promptloop.controls.increments import toward
from promptloop.denoisers.exact import Gaussian, Quadratic
from promptloop.sample import sample
from promptloop.schedules import Level, flow, vp
from promptloop.solvers import DDIM, Euler

PLACES = [
    Level(0.6, 0.8, 0),
    Level(0.3, 0.7, 0),
    Level(1.0, 5.0, 0),
    Level(1.0, 0.05, 0),
    Level(0.05, 0.99, 0),
]
STRENGTH, MANY = 3.0, 20000  # independent dimensions: errors .0035 of a mean, .0025 of a variance of .25
COSINE = vp(40, curve="cosine")
PROMPTS, SEEDS = ["up", "down", "up", "far", ""], [5, 6, 7, 8, 9]


def slope(bed: Gaussian, x: Tensor, level: Level) -> Tensor:
    """grad log h in closed form: -s (m - mu) k / (tau2 + s v)."""
    mean, v = bed.posterior(x, level, bed.embed([""] * len(x)))
    gain = level.alpha / (level.alpha**2 + level.sigma**2)
    return -STRENGTH * (mean - 2) * gain / (1 + STRENGTH * v)


def increment(control: Any, level: Level, x: Tensor) -> Tensor:
    state = at(level, x)
    return control.increment(Gaussian(dim=x.shape[1]).clean, state, x, level, state.cond)[1].detach()


# --- the sign


@pytest.mark.parametrize("level", PLACES, ids=str)
@torch.no_grad()
def test_an_increment_is_the_tilt_in_every_parameterisation(level: Level) -> None:
    """The tilted G1, N(1.575, .25), has its own clean, noise, v and velocity: increments have to give them.

    Fails with the other sign, or sigma / alpha in the place of sigma^2 / alpha.
    """
    bed, tilted, x = Gaussian(), Gaussian(1.575, 0.5), torch.linspace(-3, 3, 7)[:, None]
    cond, g = bed.embed([""] * 7), slope(bed, x, level)
    a, s = level.alpha, level.sigma
    base, wanted, got = bed.clean(x, level, cond), tilted.clean(x, level, cond), None
    got = toward(base, level, g)
    assert torch.allclose(got, wanted, atol=1e-3, rtol=1e-4)
    h = (a**2 + s**2) ** 0.5
    said = {  # of a clean estimate: what a network of each kind would say, and what g adds to that
        "noise": (lambda clean: (x - a * clean) / s, -s),
        "v": (lambda clean: (a * (x - a * clean) / s - s * clean) / h, -s / a * h),
        "velocity": (lambda clean: (x - a * clean) / s - clean, -s / a * (a + s)),
    }
    for name, (of, factor) in said.items():
        assert torch.allclose(of(base) + factor * g, of(wanted), atol=1e-3, rtol=1e-4), name
        assert torch.allclose(of(got), of(base) + factor * g, atol=1e-3, rtol=1e-4), name


@torch.no_grad()
def test_moving_the_mean_and_the_estimate_agree_to_first_order() -> None:
    """At the middle of the trajectory, the shift of the mean through the estimate over std^2 g tends to 1.

    Fails when the mean is moved by std g, or the estimate by -sigma^2 / alpha g.
    """
    gaps = []
    for steps in (20, 40, 80):
        levels = vp(steps, curve="cosine")
        before, after = levels[steps // 2 : steps // 2 + 2]
        state = at(before, torch.tensor([[0.4], [1.0]]))
        guide = NoisyRewardGradient(Value(Gaussian()), STRENGTH)
        plain = DDIM(1.0)(Gaussian().clean, state, after)
        moved = DDIM(1.0)(guide.guide(Gaussian().clean, state), state, after)
        by = moved.mean - plain.mean
        gaps.append(float((by / (plain.std**2 * slope(Gaussian(), state.x, before)) - 1).abs().max()))
    assert gaps[2] < 0.07 and all(0.4 < b / a < 0.6 for a, b in pairwise(gaps)), gaps


# --- how far from the exact guidance


@pytest.mark.parametrize("level", PLACES, ids=str)
def test_dps_overshoots_by_the_jensen_factor_and_the_curvature_takes_it_out(level: Level) -> None:
    """Ratio to the exact increment: 1 + 3 v, at every level, and 1 with curvature 1.

    Fails when rewards are averaged over the batch (a factor 1 / 3), or v is that of unit alpha.
    """
    x = torch.tensor([[-1.0], [0.4], [2.2]])
    exact, v = slope(Gaussian(), x, level), Gaussian().posterior(x, level, Gaussian().embed([""] * 3))[1]
    plain = increment(RewardGradient(Seen(), STRENGTH), level, x)
    assert torch.allclose(plain, (1 + STRENGTH * v) * exact, rtol=2e-3, atol=1e-4)
    fixed = increment(RewardGradient(Seen(), STRENGTH, curvature=1.0), level, x)
    assert torch.allclose(fixed, exact, rtol=2e-3, atol=1e-4)
    for other in (RewardGradient(Seen(), STRENGTH, at_once=2), RewardGradient(Seen(), STRENGTH, twice=True)):
        assert torch.allclose(increment(other, level, x), plain, rtol=1e-5)
    gain = level.alpha / (level.alpha**2 + level.sigma**2)
    frozen = increment(RewardGradient(Seen(), STRENGTH, through="noise"), level, x)
    assert torch.allclose(frozen * level.alpha * gain, plain, rtol=1e-4, atol=1e-5)
    short = increment(RewardGradient(Seen(), STRENGTH, limit=0.1), level, x)
    assert float((level.sigma * short).abs().max()) <= 0.1001
    noise = (x - level.alpha * Gaussian().clean(x, level, Gaussian().embed([""] * 3))) / level.sigma
    relative = increment(RewardGradient(Seen(), 0.5, relative=True), level, x).detach()
    assert torch.allclose((level.sigma * relative).abs(), 0.5 * noise.abs(), rtol=1e-4)
    assert torch.equal(relative.sign(), plain.sign())


@pytest.mark.parametrize("level", PLACES[:3], ids=str)
def test_loss_guidance_tends_to_the_exact_increment(level: Level) -> None:
    """4,096 draws: within 5 of its standard errors, found from 24 seeds with 64 draws; 2 draws overshoot less
    than none. Fails when v is left out (the ratio is then 1 + 3 v), or the draws' rewards are not weighed.
    """
    x = torch.full((24, 1), 0.4)
    exact = slope(Gaussian(), x[:1], level).item()
    few = increment(LossGuidance(Seen(), STRENGTH, samples=64), level, x)
    error = few.std().item() * (64 / 4096) ** 0.5
    got = increment(LossGuidance(Seen(), STRENGTH, samples=4096), level, x[:1]).item()
    assert abs(got - exact) < 5 * error + 1e-3 * abs(exact)
    assert error < 0.1 * abs(exact)


@pytest.mark.parametrize(
    ("guide", "mean", "variance"),
    [
        (RewardGradient(Seen(), STRENGTH, form="mean"), 1.913, 0.174),
        (RewardGradient(Seen(), STRENGTH, form="mean", curvature=1.0), 1.551, 0.265),
        (NoisyRewardGradient(Value(Gaussian(dim=MANY)), STRENGTH, form="mean"), 1.551, 0.265),
    ],
    ids=["DPS", "curvature", "exact"],
)
def test_g1_rows_of_guidance_alone(guide: Any, mean: float, variance: float) -> None:
    """The sheet's table (T = 40, exact kernels). Fails when the mean moves by std g or the other way."""
    x = sample(Gaussian(dim=MANY), [""], seeds=[0], levels=COSINE, solver=Chain(), controls=[guide]).state.x
    assert x.mean().item() == pytest.approx(mean, abs=0.02)
    assert x.var().item() == pytest.approx(variance, abs=0.015)


def test_a_guided_flow_transports_to_the_tilted_data() -> None:
    """Flow-NRG with the exact value: N(1.575, .25); a Gaussian's flow is affine, so three points tell it all.

    Fails when the increment is added to the velocity instead of taken from it: mean and std go the other way.
    """
    guide = NoisyRewardGradient(Value(Gaussian()), STRENGTH)
    noise = torch.tensor([[0.0], [1.0], [-1.0]])
    x = sample(Gaussian(), [""] * 3, seeds=[0, 1, 2], levels=flow(800), solver=Euler(), noise=noise,
               controls=[guide]).state.x[:, 0]  # fmt: skip
    assert x[0].item() == pytest.approx(1.575, abs=0.01)
    assert (x[1] - x[0]).item() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("curvature", [1.0, 0.0], ids=["exact", "DPS"])
def test_the_reported_weight_makes_the_mean_form_exact(curvature: float) -> None:
    """p / q times exp(3 r) weighs samples to N(1.575, .25) and to log Z -1.777, within 4 standard errors.

    Fails when log q - log p is reported: log Z is then off by more than 1.
    """
    guide = RewardGradient(Seen(), STRENGTH, form="mean", curvature=curvature)
    count = 800
    end = sample(Gaussian(), [""] * count, seeds=range(count), levels=vp(20, curve="cosine"), solver=Chain(),
                 controls=[guide], decode=False).state  # fmt: skip
    log_weight = end.memory["log_weight"] + STRENGTH * Quadratic()(end.x)
    weights = log_weight.double().exp()
    z, spread = weights.mean(), weights.std() / count**0.5
    assert abs(z.log().item() + 1.7769) < 4 * (spread / z).item() < 0.6
    share = weights / weights.sum()
    mean = (share * end.x[:, 0]).sum()
    error = ((share * (end.x[:, 0] - mean)) ** 2).sum().sqrt()
    assert abs(mean.item() - 1.575) < 4 * error.item()
    assert abs((share * (end.x[:, 0] - mean) ** 2).sum().item() - 0.25) < 0.06
