"""DOIT: what its estimate tends to, its invariance, and what it refuses."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from laws.bed import GRIDS, Seen, at, words
from torch import Tensor

from promptloop.controls.doob import DOIT
from promptloop.controls.guidance import CFG
from promptloop.controls.record import Record
from promptloop.denoisers.exact import Gaussian, Linear
from promptloop.sample import rescore, sample
from promptloop.schedules import Level
from promptloop.solvers import DDIM

PROMPTS, SEEDS = ["up", "down", "up", "far", ""], [5, 6, 7, 8, 9]
NOW, NEXT = Level(0.6, 0.8, 0), Level(0.75, math.sqrt(1 - 0.75**2), 0)
GRID = (NOW, NEXT, Level(1.0, 0.0, 0))


@dataclass(frozen=True)
class Black:
    """A reward without gradients: a * slope * x + b."""

    slope: float = 0.6
    shift: float = 0.0

    def __call__(self, images: Tensor, queries: Any) -> Tensor:
        return Seen(Linear(self.slope))(images.detach(), queries) + self.shift


def found(control: DOIT, count: int, x: float = 0.4) -> Tensor:
    state = at(NOW, torch.full((count, 1), x), levels=GRID)
    return control.increment(Gaussian().clean, state, state.x, NOW, state.cond)[1][:, 0]


def test_the_estimate_tends_to_its_closed_form() -> None:
    """r = c x, weights exp(r / tau): g = (d mean / dx) c / (tau alpha'), the noise estimate being held fixed;
    within 4 standard errors of 400 repeats. Fails without the pull-back, or with alpha for alpha'.
    """
    control = DOIT(Black(), scale=1.0, tau=1.0, samples=64, standardise=False)
    got = found(control, 400)
    gain = NOW.alpha  # of a unit Gaussian at alpha^2 + sigma^2 = 1
    kept = NOW.alpha * NEXT.sigma / (NEXT.alpha * NOW.sigma)
    std = NEXT.sigma * math.sqrt(1 - kept**2)
    pull = NEXT.alpha * gain + math.sqrt(NEXT.sigma**2 - std**2) * (1 - NOW.alpha * gain) / NOW.sigma
    wanted, error = pull * 0.6 / NEXT.alpha, got.std().item() / 20
    assert error < 0.05 * wanted
    assert got.mean().item() == pytest.approx(wanted, abs=4 * error + 0.01 * wanted)
    assert found(DOIT(Black(), 0.5, 1.0, 64, standardise=False), 400).tolist() == (got / 2).tolist()


def test_standardised_rewards_have_neither_scale_nor_shift() -> None:
    """Fails when rewards are not divided by their spread."""
    one = found(DOIT(Black(), samples=8), 5)
    assert torch.allclose(one, found(DOIT(Black(1.8, 5.0), samples=8), 5), rtol=1e-3)
    assert torch.equal(found(DOIT(Black(), samples=8, at_once=3), 5), one)
    assert not torch.allclose(one, found(DOIT(Black(-0.6), samples=8), 5), rtol=0.1)


def test_a_black_box_raises_its_reward_and_laws_hold() -> None:
    """A reward that likes large numbers moves samples up; scored again as drawn; alone as in a batch; scale 0
    is bitwise plain. Fails when increments are subtracted, or the spread is taken over the batch.
    """
    options: dict[str, Any] = {"seeds": SEEDS, "levels": GRIDS["flow"], "solver": DDIM(1.0)}
    plain = sample(words(), PROMPTS, controls=[CFG(2.0)], **options).state.x
    controls = [CFG(2.0), DOIT(Black(), window=(0.2, 1.0)), Record()]
    made = sample(words(), PROMPTS, controls=controls, **options).state
    assert bool((made.x.sum(1) > plain.sum(1)).all())
    assert torch.allclose(rescore(words(), made), made.memory["path_log_prob"], atol=1e-4, equal_nan=True)
    split = sample(words(), PROMPTS, controls=controls, max_batch=2, **options).state.x
    assert torch.allclose(split, made.x, atol=1e-5)
    idle = sample(words(), PROMPTS, controls=[CFG(2.0), DOIT(Black(), 0.0)], **options).state.x
    assert torch.equal(idle, plain)


def test_what_cannot_work_is_refused_with_the_reason() -> None:
    """Fails when eta = 0, which simulates nothing, is run in silence."""
    for make, said in [
        (lambda: DOIT(Black(), eta=0.0), "eta is 0"),
        (lambda: DOIT(Black(), samples=3), "samples is 3"),
        (lambda: DOIT(Black(), tau=0.0), "tau is 0"),
    ]:
        with pytest.raises(ValueError, match=said):
            make()
