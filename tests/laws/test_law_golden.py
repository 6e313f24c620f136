"""Golden noise on the exact bed: the gap of guidance in closed form, and the control at the start."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from laws.bed import GRIDS, words
from laws.test_law_candidates import sum_of
from torch import Tensor

from promptloop.controls import CFG, BestOf, GoldenNoise
from promptloop.controls.golden import renoised
from promptloop.denoisers.cond import Cond
from promptloop.denoisers.exact import Gaussian
from promptloop.sample import sample
from promptloop.schedules import vp
from promptloop.solvers import DDIM, Euler

PROMPTS, SEEDS = ["up", "down", "far", "up"], [3, 3, 4, 5]


class Texted(Gaussian):
    """`words`, whose prompts have a field "text", as a real text encoder's have."""

    def embed(self, prompts: Sequence[str]) -> Cond:
        added = super().embed(prompts).fields["added"]
        return Cond({"added": added, "text": added[..., None].expand(-1, 2, 3)})


def bed() -> Texted:
    return Texted(0.3, 0.6, 3, prompts={"": 0.0, "up": 1.0, "down": -1.0, "far": 3.0})


def network(noise: Tensor, text: Tensor) -> Tensor:
    """Depends on noise and text; what it says of a row would change with the batch's mean."""
    return noise.flip(-1) - noise.mean() + text.mean((1, 2))[:, None]


def unasked(noise: Tensor, text: Tensor) -> Tensor:
    raise AssertionError("strength 0 asks no network")


@pytest.mark.parametrize("grid", GRIDS)
def test_a_step_and_its_inversion_leave_the_gap_of_guidance(grid: str) -> None:
    """noise + (a' b / b' - a)(c - c') in x's scale, c guided and c' not. Fails when the way back is guided,
    reads the first level's estimate, or the result is not unit noise again (karras: 14 times that).
    """
    one, (first, second), scale = words(), GRIDS[grid][:2], 5.0
    noise, cond = one.noise(SEEDS), one.embed(PROMPTS)
    unit = DDIM().noise_scale(GRIDS[grid])
    x = noise * unit
    within, without = (one.clean(x, first, one.embed(said)) for said in (PROMPTS, [""] * 4))
    c = without + scale * (within - without)
    y = second.alpha * c + second.sigma * (x - first.alpha * c) / first.sigma
    gap = (second.alpha * first.sigma / second.sigma - first.alpha) * (c - one.clean(y, second, cond))
    made = renoised(one, PROMPTS, seeds=SEEDS, levels=GRIDS[grid], scale=scale)
    assert torch.allclose(made, (x + gap) / unit, atol=1e-5)
    assert float((made - noise).abs().max()) > 0.01
    assert torch.allclose(
        made[2:3], renoised(one, ["far"], seeds=[4], levels=GRIDS[grid], scale=scale), atol=1e-6
    )


def test_equal_guidances_give_the_noise_back_as_steps_grow() -> None:
    """The error is of the second order in the step. Fails when the two guidances are not the same."""
    one, noise = words(), words().noise(SEEDS)
    for scale in (1.0, 3.0):
        errors = [
            float((renoised(one, PROMPTS, seeds=SEEDS, levels=vp(n), scale=scale, back=scale) - noise).norm())
            for n in (10, 20, 40, 80)
        ]
        assert all(b < a / 2.5 for a, b in zip(errors, errors[1:], strict=False)), errors
    with pytest.raises(ValueError, match="give steps of 2 or more"):
        renoised(one, PROMPTS, seeds=SEEDS, levels=vp(1))


@pytest.mark.parametrize("grid", ["vp", "karras"])
def test_the_control_starts_from_the_networks_noise(grid: str) -> None:
    """strength 0 is the plain sampler bitwise; 1 the run from the network's noise, each sample by itself.

    Fails when the network is given the batch (its mean moves), x in place of unit noise, or another prompt.
    """
    options: dict[str, Any] = {"seeds": SEEDS, "levels": GRIDS[grid], "solver": Euler()}
    plain = sample(bed(), PROMPTS, controls=[CFG(2.0)], **options)
    none = sample(bed(), PROMPTS, controls=[GoldenNoise(unasked, 0.0), CFG(2.0)], **options)
    assert torch.equal(none.state.x, plain.state.x) and torch.equal(none.images, plain.images)
    noise, text = bed().noise(SEEDS), bed().embed(PROMPTS).fields["text"]
    golden = torch.cat([network(noise[k : k + 1], text[k : k + 1]) for k in range(4)])
    for strength in (0.5, 1.0):
        control = GoldenNoise(network, strength)
        made = sample(bed(), PROMPTS, controls=[CFG(2.0), control], **options)
        start = noise + strength * (golden - noise)
        told = sample(bed(), PROMPTS, controls=[CFG(2.0)], noise=start, **options)
        assert torch.allclose(made.state.x, told.state.x, atol=1e-5)
        assert made.ledger.evaluations == plain.ledger.evaluations
        parts = sample(bed(), PROMPTS, controls=[CFG(2.0), control], max_batch=3, **options)
        assert torch.equal(parts.state.x, made.state.x)


def test_the_noises_of_a_group_are_all_replaced() -> None:
    """Listed after BestOf; and what it cannot read is refused. Fails when copies keep their own noise."""
    options: dict[str, Any] = {"seeds": [3], "levels": vp(4), "solver": DDIM()}
    zero = GoldenNoise(lambda noise, text: 0 * noise)
    one = sample(bed(), ["up"], controls=[BestOf(sum_of, 3, kept=3), zero], **options).state.x
    assert torch.equal(one[0], one[1]) and torch.equal(one[0], one[2])
    with pytest.raises(ValueError, match="Gaussian has none of the name 'text'"):
        sample(words(), ["up"], controls=[zero], **options)
    with pytest.raises(ValueError, match="strength is nan"):
        GoldenNoise(network, float("nan"))
