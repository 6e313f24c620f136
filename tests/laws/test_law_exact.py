"""The exact beds G1 and G2 against quadrature and the published closed forms."""

from dataclasses import dataclass

import pytest
import torch
from laws.bed import Chain, pair

from promptloop.denoisers.exact import Gaussian, Linear, LogMixture, Quadratic, ring
from promptloop.sample import Control, State, sample, trajectory
from promptloop.schedules import Level, flow, karras, vp
from promptloop.solvers import DDIM

PLACES = [Level(0.6, 0.8, 0), Level(0.3, 0.7, 0), Level(1.0, 5.0, 0), Level(0.0, 1.0, 0), Level(1.0, 0.05, 0)]
GRID = torch.linspace(-14, 14, 56001, dtype=torch.float64)  # step 0.0005


def normal(x, mean, variance):
    return torch.exp(-0.5 * (x - mean) ** 2 / variance) / (2 * torch.pi * variance) ** 0.5


def prior(bed, x):
    """Density of a one-dimensional bed's data."""
    if isinstance(bed, Gaussian):
        return normal(x, bed.network.mean.item(), bed.std**2)
    parts = zip(bed.log_weights.exp(), bed.network.mean.detach()[:, 0], bed.stds, strict=True)
    return sum(w * normal(x, m.item(), s.item() ** 2) for w, m, s in parts)


@pytest.mark.parametrize("level", PLACES, ids=str)
@pytest.mark.parametrize("bed", [Gaussian(), Gaussian(-1.0, 0.4), pair()], ids=["G1", "narrow", "TM"])
@torch.no_grad()
def test_posterior_and_value_equal_quadrature(bed, level) -> None:
    """Fails when the posterior variance loses its factor alpha, or the mixture its component weights."""
    x, cond = torch.tensor([[-1.3], [0.4], [2.2]]), bed.embed(["", "", ""])
    for row in range(3):
        joint = prior(bed, GRID) * normal(x[row].double(), level.alpha * GRID, level.sigma**2)
        mass = joint / joint.sum()
        mean = (mass * GRID).sum()
        assert bed.clean(x, level, cond)[row].item() == pytest.approx(mean.item(), abs=2e-4)
        for reward, strength in [(Quadratic(), 3.0), (Linear(0.7), 2.0), (two_humps(), 1.0)]:
            value = (mass * torch.exp(strength * reward(GRID[:, None].float()).double())).sum().log()
            assert bed.log_h(x, level, cond, reward, strength)[row].item() == pytest.approx(
                value.item(), abs=2e-3
            )
        if isinstance(bed, Gaussian):
            variance = (mass * (GRID - mean) ** 2).sum()
            assert bed.posterior(x, level, cond)[1] == pytest.approx(variance.item(), rel=1e-3)


def two_humps() -> LogMixture:
    return LogMixture(torch.tensor([[-1.0], [2.0]]), torch.tensor([0.6, 1.1]), torch.tensor([0.5, 2.0]))


@pytest.mark.parametrize(
    "levels", [vp(6), flow(5), karras(6), vp(5, curve="cosine")], ids=["vp", "flow", "ve", "cos"]
)
@pytest.mark.parametrize("bed", [Gaussian(0.3, 0.7), pair()], ids=["G1", "TM"])
@torch.no_grad()
def test_reverse_kernel_is_bayes(bed, levels) -> None:
    """p(x_s | x_t) p(x_t) = p(x_t | x_s) p(x_s) on a grid; fails when `forward` forgets sigma_s."""
    for before, after in zip(levels[:-1], levels[1:-1], strict=False):
        x, cond = torch.tensor([[0.8]]), bed.embed([""])
        reach = 6 * (after.alpha * 2 + after.sigma)
        grid = torch.linspace(-reach, reach, 20001, dtype=torch.float64)
        ratio = before.alpha / after.alpha
        forward = before.sigma**2 - ratio**2 * after.sigma**2
        joint = marginal(bed, grid, after) * normal(0.8, ratio * grid, forward)
        mass = joint / joint.sum()
        if isinstance(bed, Gaussian):
            mean, std = bed.reverse(x, before, after, cond)
            kernel = normal(grid, mean.item(), std**2)
        else:
            log_weights, means, stds = bed.reverse(x, before, after, cond)
            parts = zip(log_weights[0].exp(), means[0, :, 0], stds, strict=True)
            kernel = sum(w * normal(grid, m.item(), s.item() ** 2) for w, m, s in parts)
        assert (kernel / kernel.sum() - mass).abs().sum() < 2e-4


def marginal(bed, x, level):
    """Density of x at a level."""
    if isinstance(bed, Gaussian):
        variance = level.alpha**2 * bed.std**2 + level.sigma**2
        return normal(x, level.alpha * bed.network.mean.item(), variance)
    parts = zip(bed.log_weights.exp(), bed.network.mean[:, 0], bed.stds, strict=True)
    return sum(
        w * normal(x, level.alpha * m.item(), level.alpha**2 * s.item() ** 2 + level.sigma**2)
        for w, m, s in parts
    )


def test_published_numbers_of_g1() -> None:
    """Fails when the tilt forgets its log-determinant: log Z would be -1.084."""
    bed = Gaussian()
    cond = bed.embed([""])
    assert bed.log_z(cond, Quadratic(), 3.0).item() == pytest.approx(-1.77690, abs=1e-5)
    at_noise = bed.log_h(torch.randn(1, 1), Level(0.0, 1.0, 1000.0), cond, Quadratic(), 3.0)
    assert at_noise.item() == pytest.approx(-1.77690, abs=1e-5)
    c, strength = 0.7, 2.0
    expected = strength * c * 0.3 + (strength * c) ** 2 / 2
    assert bed.log_z(cond, Linear(c), strength).item() == pytest.approx(expected, abs=1e-5)


@torch.no_grad()
def test_ring_has_eight_modes_and_its_log_z() -> None:
    """G2; fails when LogMixture.log_tilt forgets the variance of the posterior."""
    bed, reward = ring(first=[0])
    cond = bed.embed(["", "first"])
    side = torch.linspace(-6, 6, 601)
    plane = torch.cartesian_prod(side, side)
    density = (-((plane[:, None] - bed.network.mean) ** 2).sum(-1) / 0.18).exp().sum(1) / (
        8 * 2 * torch.pi * 0.09
    )
    z = (density.double() * reward(plane).double().exp()).sum() * (side[1] - side[0]) ** 2
    assert bed.log_z(cond, reward)[0].item() == pytest.approx(z.log().item(), abs=1e-3)
    made = sample(bed, ["first", ""] * 200, seeds=range(400), levels=flow(30), solver=DDIM(1.0)).state.x
    kept = torch.cdist(made, bed.network.mean).min(1)
    assert (kept.indices[::2] == 0).all(), "a prompt that keeps one component must give it"
    assert len(kept.indices[1::2].unique()) == 8
    assert (kept.values < 1.5).all()


@torch.no_grad()
def test_exact_chain_gives_the_data_and_smc_the_tilted_data() -> None:
    """G1 table, rows 'truth' and 'SMC, exact value': 1.575 / 0.250, log Z -1.777; base 0.3 / 1.

    Fails when take leaves memory behind: stale values then weigh the wrong samples (mean 1.12).
    """
    bed, levels = Gaussian(), vp(20, curve="cosine")
    base = sample(Gaussian(dim=20000), [""], seeds=[0], levels=levels, solver=Chain()).state.x
    assert base.mean().item() == pytest.approx(0.3, abs=0.03) and base.var().item() == pytest.approx(
        1.0, abs=0.04
    )
    run = trajectory(bed, [""] * 1000, seeds=range(1000), levels=levels, solver=Chain(), controls=[Smc()])
    *_, end = run
    weights = end.memory["weight"].softmax(0)[:, None]
    mean = (weights * end.x).sum()
    assert mean.item() == pytest.approx(1.575, abs=0.08)
    assert (weights * (end.x - mean) ** 2).sum().item() == pytest.approx(0.25, abs=0.05)
    log_z = end.memory["log_z"][0] + end.memory["weight"].exp().mean().log()
    assert log_z.item() == pytest.approx(-1.777, abs=0.15)


@dataclass(frozen=True)
class Smc(Control):
    """Particles weighted by h_s / h_t, resampled (systematically) when fewer than half count."""

    def start(self, state: State) -> State:
        zero = torch.zeros(len(state))
        return state.remember(weight=zero, value=zero, log_z=zero)

    def select(self, state: State) -> State:
        bed = state.run.denoiser
        value = bed.log_h(state.x, state.level, state.cond, Quadratic(), 3.0)
        weight = state.memory["weight"] + value - state.memory["value"]
        share = weight.softmax(0)
        if 1 / (share**2).sum() > len(state) / 2:
            return state.remember(weight=weight, value=value)
        spots = (torch.arange(len(state)) + torch.rand((), generator=state.generator(0, "smc"))) / len(state)
        log_z = state.memory["log_z"] + weight.exp().mean().log()
        state = state.remember(weight=torch.zeros_like(weight), value=value, log_z=log_z)
        return state.take(torch.searchsorted(share.cumsum(0), spots).clamp(max=len(state) - 1))


def test_texts_mean_what_the_bed_says() -> None:
    """Fails when an unknown text falls back to a mean in silence."""
    bed = Gaussian(0.3, prompts={"up": 1.0})
    assert bed.clean(torch.zeros(1, 1), Level(0.0, 1.0, 0.0), bed.embed(["up"])).item() == pytest.approx(1.3)
    with pytest.raises(ValueError, match="'down' means nothing"):
        bed.embed(["down"])
    assert bed.decode(torch.zeros(2, 1), size=4).shape == (2, 3, 4, 4)
    assert bed.decode(torch.zeros(2, 1)).shape == (2, 3, 1, 1)
