"""ReNO and CARINOX on the exact beds: gradients through the run, monotone in budget, closed-form optima."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from laws.bed import Pick, Seen, words
from torch import Tensor

from promptloop.controls.guidance import CFG
from promptloop.controls.optimised import (
    Uphill,
    bounded,
    carinox,
    climb,
    norm_density,
    norm_slope,
    reno,
)
from promptloop.denoisers.exact import GaussianMixture, Linear, Quadratic, ring
from promptloop.rewards.composite import Weighted
from promptloop.sample import Control, State, sample
from promptloop.schedules import flow, vp
from promptloop.solvers import CPS, DDIM, LCM, Euler, FlowSDE, Heun

PROMPTS, SEEDS = ["up", "down", "far", "up"], [3, 3, 4, 5]
SUM, BOWL = Seen(Linear()), Seen(Quadratic())
RUN: dict[str, Any] = {"levels": vp(3), "controls": [CFG(2.0)]}


def climbed(iterations: int, prompts: Any = PROMPTS, seeds: Any = SEEDS, **options: Any) -> Any:
    settings = {"reward": BOWL, "solver": DDIM(1.0), **RUN, **options}
    return reno(words(), prompts, seeds=seeds, iterations=iterations, **settings)


# --- the gradient


@pytest.mark.parametrize(
    "solver", [DDIM(), DDIM(1.0), Euler(), Heun(), FlowSDE(), CPS(), LCM()], ids=lambda s: repr(s)
)
def test_the_gradient_is_that_of_the_whole_run(solver: Any) -> None:
    """Central differences of plain runs, on a mixture under guidance; checkpointed the same bit for bit.

    Fails when a step's x is detached, or the noise of a stochastic step is drawn anew.
    """
    means, stds = torch.tensor([[-2.0, 0.0], [1.0, 1.0]]), torch.tensor([0.5, 0.8])
    bed = GaussianMixture(means, stds, torch.tensor([0.3, 0.7]), prompts={"first": [0]})
    noise = torch.randn(3, 2, generator=torch.Generator().manual_seed(1))
    options = {"solver": solver, "levels": flow(4), "controls": [CFG(1.5)]}
    prompts, seeds = ["first", "", "first"], [1, 2, 3]
    values, slopes = climb(bed, prompts, [BOWL, SUM], seeds, noise, False, **options)
    assert slopes.shape == (2, 3, 2) and not slopes.requires_grad
    for k, reward in enumerate([BOWL, SUM]):
        for axis in range(2):
            ends = []
            for h in (-1e-2, 1e-2):
                moved = noise + h * torch.eye(2)[axis]
                images = sample(bed, prompts, seeds=seeds, noise=moved, **options).images
                ends.append(reward(images, prompts))
            found = (ends[1] - ends[0]) / 2e-2
            assert torch.allclose(found, slopes[k, :, axis], rtol=0.05, atol=0.02), (found, slopes[k])
    again = climb(bed, prompts, [BOWL, SUM], seeds, noise, True, max_batch=2, **options)
    assert torch.equal(again[0], values) and torch.equal(again[1], slopes)


@dataclass(frozen=True)
class Fickle(Control):
    """A policy that never says the same twice."""

    calls: list[int]

    def condition(self, state: State) -> State:
        self.calls.append(0)
        return state.say(["up" if len(self.calls) % 3 else "down"] * len(state))


class Deaf(Control):
    """A start that does not listen to the noise."""

    def start(self, state: State) -> State:
        return replace(state, x=torch.ones_like(state.x))


class Steep(Control):
    """A guide whose values are fine and whose gradient is not."""

    def guide(self, denoise: Any, state: State) -> Any:
        def steep(x: Tensor, level: Any, cond: Any) -> Tensor:
            clean = denoise(x, level, cond)
            return torch.where(clean > 1e9, clean.sqrt(), clean)

        return steep


def test_what_cannot_be_climbed_is_refused_with_the_reason() -> None:
    """Fails when a black box gives a zero gradient, or a step made again under other words goes unnoticed."""
    black, named = Seen(Linear(), differentiable=False), Weighted({"one": (1.0, SUM)})
    with pytest.raises(ValueError, match="not differentiable.*zero_order"):
        climbed(1, reward=black)
    with pytest.raises(ValueError, match="not differentiable"):
        climbed(1, reward=Weighted({"one": (1.0, SUM), "two": (1.0, black)}))
    with pytest.raises(ValueError, match="apart.*Weighted"):
        climbed(1, apart=True)
    assert len(climbed(1, reward=named, apart=True).state) == 4
    with pytest.raises(ValueError, match="other samples"):
        climbed(1, controls=[Pick((0, 1), (2,))])
    with pytest.raises(ValueError, match="the run of sample 1.*not finite"):
        climbed(1, controls=[Steep()])
    with pytest.raises(ValueError, match="image does not depend on its starting noise"):
        climbed(1, controls=[Deaf()])
    bed, options = ring(up=[0], down=[1])[0], {"reward": SUM, "seeds": [1], "iterations": 1, "levels": vp(3)}
    with pytest.raises(ValueError, match="other prompts.*checkpointed=False"):
        reno(bed, ["up"], controls=[Fickle([])], **options)
    reno(bed, ["up"], controls=[Fickle([])], checkpointed=False, **options)
    for wrong in ({"rate": 0.0}, {"limit": 0.0}, {"momentum": 1.0}, {"norm_weight": -1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            climbed(1, **wrong)
    for given, name in (({"starts": 0}, "starts"), ({"starts": 2, "kept": 3}, "kept")):
        with pytest.raises(ValueError, match=name):
            carinox(words(), ["up"], reward=named, seeds=[0], iterations=1, **RUN, **given)


# --- the whole search


@pytest.mark.parametrize("solver", [DDIM(), DDIM(1.0)], ids=repr)
def test_more_iterations_never_give_a_worse_reward(solver: Any) -> None:
    """With steps so long that it often falls in between. Fails when the last noise is kept, not the best."""
    plain = sample(words(), PROMPTS, seeds=SEEDS, solver=solver, **RUN)
    long = {"solver": solver, "limit": 1.0, "rate": 4.0 if solver.eta == 0 else 60.0}
    ends = [climbed(n, **long) for n in range(6)]
    assert torch.equal(ends[0].state.x, plain.state.x) and torch.equal(ends[0].images, plain.images)
    rewards = [end.state.memory["reward"] for end in ends]
    assert all((b >= a - 1e-5).all() for a, b in zip(rewards, rewards[1:], strict=False))
    assert (rewards[5] > rewards[0]).all()
    trace = ends[5].state.memory["trace"]
    assert trace.shape == (4, 6) and bool((trace[:, 1:] < trace[:, :-1]).any())
    assert torch.allclose(trace.amax(1), rewards[5], atol=1e-5)
    assert torch.allclose(trace[:, :3], ends[2].state.memory["trace"], atol=1e-5)
    start = ends[5].state.memory["start"]
    again = sample(words(), PROMPTS, seeds=SEEDS, solver=solver, noise=start, **RUN)
    assert torch.equal(again.images, ends[5].images)


def test_a_climb_does_not_depend_on_the_batch_and_counts_what_it_costs() -> None:
    """Fails when the bound is that of the batch's gradient, or a reward's mean is differentiated."""
    together = climbed(3)
    assert torch.equal(climbed(3, max_batch=3).state.x, together.state.x)
    assert torch.equal(climbed(3).state.x, together.state.x)
    for k in range(4):
        alone = climbed(3, PROMPTS[k : k + 1], SEEDS[k : k + 1])
        assert torch.equal(alone.state.x[0], together.state.x[k])
    easy = {"reward": SUM, "rate": 0.1, "momentum": 0.0}  # the last noise is the best: one plain run
    spent, free = (climbed(3, checkpointed=c, **easy).ledger for c in (True, False))
    assert spent.evaluations == (2 * 3 + 1) * 2 * 3 * 4 and free.evaluations == (3 + 1) * 2 * 3 * 4
    assert spent.backwards == free.backwards == 3 * 3 * 4
    assert spent.decodes == free.decodes == spent.rewards == 4 * 4
    two = Weighted({"sum": (1.0, SUM), "bowl": (0.01, BOWL)})
    apart = climbed(3, checkpointed=False, apart=True, **{**easy, "reward": two}).ledger
    assert apart.backwards == 2 * 3 * 3 * 4 and apart.evaluations == free.evaluations


def test_a_linear_reward_on_a_gaussian_ends_at_its_closed_form() -> None:
    """The run is affine, x = a n + b, so the objective is a sum(n) + w ((d - 1) log|n| - |n|^2 / 2):
    the optimum is along (1, ..., 1), |n| the root of a sqrt(d) + w ((d - 1) / |n| - |n|) = 0.

    Fails with d for d - 1, or with the norm's slope of the other sign.
    """
    bed, d, weight = words(8), 8, 0.5
    options = {"levels": vp(3), "solver": DDIM()}
    ends = [
        sample(bed, ["up"], seeds=[0], noise=torch.full((1, d), c), **options).state.x for c in (0.0, 1.0)
    ]
    a = float((ends[1] - ends[0]).mean())
    pull = a * d**0.5 / weight
    wanted = (pull + math.sqrt(pull**2 + 4 * (d - 1))) / 2
    settings = {"iterations": 80, "rate": 0.4, "momentum": 0.0, "limit": 100.0, "norm_weight": weight}
    made = reno(bed, ["up"] * 3, reward=SUM, seeds=[1, 2, 3], **settings, **options)
    start = made.state.memory["start"]
    assert torch.allclose(start, torch.full_like(start, wanted / d**0.5), atol=2e-3)


# --- one step


def test_the_norm_alone_goes_to_the_mode_of_its_law() -> None:
    """|n|^2 = d - 1, from inside and outside. Fails with d for d - 1 (norms of 4, not 3.873, at d = 16)."""
    noise = (
        torch.randn(4, 16, generator=torch.Generator().manual_seed(0)) * torch.tensor([0.2, 1, 2, 5])[:, None]
    )
    point = noise.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(norm_density(point).sum(), point)
    assert torch.allclose(norm_slope(noise), wanted, atol=1e-4)
    speed, uphill = torch.zeros_like(noise), Uphill(rate=10.0, momentum=0.5, limit=10.0)
    for _ in range(200):
        noise, speed = uphill.step(noise, speed, torch.zeros(1, 4, 16))
    assert torch.allclose(noise.norm(dim=1), torch.tensor(15.0).sqrt().expand(4), atol=1e-3)


def test_each_reward_and_the_whole_are_bounded() -> None:
    """Gradients of 1000 and 0.001 along two axes: 0.1 and 0.001. The norm's slope enters once.

    Fails when the sum alone is bounded (the second's part is 1e-7), or the norm's is added to every term.
    """
    slopes = torch.zeros(2, 1, 4)
    slopes[0, 0, 0], slopes[1, 0, 1] = 1e3, 1e-3
    noise, zeros = torch.full((1, 4), 0.9), torch.zeros(1, 4)
    free = Uphill(rate=1.0, momentum=0.0, limit=0.1, norm_weight=0.0)
    moved = free.step(noise, zeros, slopes)[0] - noise
    assert moved[0, 0].item() == pytest.approx(0.1, rel=1e-3)
    assert moved[0, 1].item() == pytest.approx(1e-3, rel=1e-2)
    one = free.step(noise, zeros, slopes.sum(0, keepdim=True))[0] - noise
    assert abs(one[0, 1].item()) < 1e-6
    assert bounded(slopes[0], 0.1).norm().item() == pytest.approx(0.1)
    normed = Uphill(rate=1.0, momentum=0.0, limit=10.0, norm_weight=0.01)
    steps = [normed.step(noise, zeros, torch.zeros(k, 1, 4))[0] for k in (1, 3)]
    assert torch.equal(*steps) and torch.allclose(steps[0], noise + 0.01 * norm_slope(noise))


def test_momentum_is_nesterovs_as_torch_has_it() -> None:
    """Fails when the step is the speed alone (heavy ball)."""
    noise = torch.randn(1, 6, generator=torch.Generator().manual_seed(0))
    parameter = noise.clone().requires_grad_()
    sgd = torch.optim.SGD([parameter], lr=0.5, momentum=0.9, nesterov=True, maximize=True)
    speed, uphill = torch.zeros_like(noise), Uphill(rate=0.5, momentum=0.9, limit=100.0, norm_weight=0.0)
    for k in range(4):
        slope = torch.full((1, 1, 6), float(k + 1))
        parameter.grad = slope[0].clone()
        sgd.step()
        noise, speed = uphill.step(noise, speed, slope)
    assert torch.allclose(noise, parameter, atol=1e-5)


# --- several starting noises


def test_carinox_keeps_the_best_of_its_starts() -> None:
    """One start is ReNO; more never give a worse reward; the noise and seed returned give the image again.

    Selected by the weighted sum: fails where terms are added without their weights (released code).
    """
    both = Weighted({"bowl": (1.0, BOWL), "sum": (-0.2, SUM)})
    options = {"reward": both, "iterations": 2, "rate": 2.0, "limit": 1.0, "solver": DDIM(1.0), **RUN}
    one = reno(words(), PROMPTS, seeds=SEEDS, apart=True, **options)
    ends = [carinox(words(), PROMPTS, seeds=SEEDS, starts=n, **options) for n in (1, 2, 4)]
    assert torch.equal(ends[0].images, one.images)
    rewards = [end.state.memory["reward"] for end in ends]
    assert all((b >= a).all() for a, b in zip(rewards, rewards[1:], strict=False))
    assert bool((rewards[2] > rewards[0]).any()) and ends[2].state.queries == tuple(PROMPTS)
    assert torch.allclose(rewards[2], both(ends[2].images, PROMPTS), atol=1e-5)
    assert torch.allclose(rewards[2], ends[2].state.memory["trace"].amax(1), atol=1e-5)
    seeds, start = ends[2].state.seeds.tolist(), ends[2].state.memory["start"]
    again = sample(words(), PROMPTS, seeds=seeds, noise=start, solver=DDIM(1.0), **RUN)
    assert torch.allclose(again.images, ends[2].images, atol=1e-6)
    alone = carinox(words(), PROMPTS[2:3], seeds=SEEDS[2:3], starts=4, **options)
    assert torch.allclose(alone.images[0], ends[2].images[2], atol=1e-6)
    few = carinox(words(), PROMPTS, seeds=SEEDS, starts=4, kept=1, **options)
    assert few.ledger.backwards == one.ledger.backwards
    plain = carinox(words(), PROMPTS, seeds=SEEDS, starts=4, **{**options, "iterations": 0})
    assert torch.equal(few.state.seeds, plain.state.seeds)
