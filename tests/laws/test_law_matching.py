"""Doob's matching on G1: the network fitted to samples and rewards has the gradient of the closed form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from laws.bed import Chain, Seen, Value, words
from torch import Tensor

from promptloop.controls import DoobMatching
from promptloop.controls.gradients import NoisyRewardGradient
from promptloop.controls.matching import LogH, matched
from promptloop.denoisers.exact import Gaussian, Linear
from promptloop.sample import sample
from promptloop.schedules import Level, vp
from promptloop.solvers import DDIM, Euler

STRENGTH, COSINE = 3.0, vp(20, curve="cosine")


@pytest.fixture(scope="module")
def fitted() -> LogH:
    return matched(Gaussian(), Seen(), [""] * 2000, seeds=range(2000), levels=vp(40, curve="cosine"),
                   solver=Euler(), strength=STRENGTH, rounds=1000)  # fmt: skip


def slopes(h: LogH, level: Level, x: Tensor, said: Tensor) -> Tensor:
    point = x.clone().requires_grad_()
    return torch.autograd.grad(h.at(point, level, said).sum(), point)[0]


@pytest.mark.parametrize("step", [4, 10, 15])
def test_the_gradient_is_that_of_the_closed_form(fitted: LogH, step: int) -> None:
    """Where the tilted law is, within 15 % (measured 4 to 11). Fails when base samples are drawn for log h
    too (the slope is then 0), or the level that the network is told is another one than that of the noise.
    """
    level = COSINE[step]
    spread = (0.25 * level.alpha**2 + level.sigma**2) ** 0.5
    noise = torch.randn(1000, 1, generator=torch.Generator().manual_seed(0))
    x = 1.575 * level.alpha + spread * noise
    mean, v = Gaussian().posterior(x, level, Gaussian().embed([""] * 1000))
    gain = level.alpha / (level.alpha**2 + level.sigma**2)
    exact = (-STRENGTH * (mean - 2) * gain / (1 + STRENGTH * v)).detach()
    got = slopes(fitted, level, x, torch.zeros(1000, 0))
    assert float((got - exact).pow(2).mean().sqrt() / exact.pow(2).mean().sqrt()) < 0.15


@pytest.mark.parametrize("form", ["mean", "estimate"])
def test_guided_samples_follow_the_tilted_law(fitted: LogH, form: Any) -> None:
    """The same noise under the exact gradient ends in the same places: N(1.575, 0.25) but for the error of 20
    steps. Fails with the other sign, or when grad h is taken for grad log h.
    """
    solver = Chain() if form == "mean" else Euler()
    guides = DoobMatching(fitted, form=form), NoisyRewardGradient(Value(Gaussian()), STRENGTH, form=form)
    got, exact = (
        sample(Gaussian(), [""] * 500, seeds=range(500), levels=COSINE, solver=solver, decode=False,
               controls=[guide]).state.x
        for guide in guides
    )  # fmt: skip
    assert exact.mean().item() == pytest.approx(1.55, abs=0.1)
    assert got.mean().item() == pytest.approx(exact.mean().item(), abs=0.08)
    assert got.var().item() == pytest.approx(exact.var().item(), abs=0.06)
    assert float((got - exact).abs().mean()) < 0.12


def test_scale_zero_is_plain_a_folder_brings_it_back_and_samples_stand_alone(
    fitted: LogH, tmp_path: Path
) -> None:
    """Fails when the increment is made of the batch, or weights are written without the settings."""
    options: dict[str, Any] = {"levels": COSINE, "solver": DDIM(1.0)}
    seeds = [4, 5, 6]
    plain = sample(Gaussian(), [""] * 3, seeds=seeds, **options).state.x
    for idle in (DoobMatching(fitted, 0.0), DoobMatching(fitted, window=(0.99, 1.0))):
        assert torch.equal(
            sample(Gaussian(), [""] * 3, seeds=seeds, controls=[idle], **options).state.x, plain
        )
    fitted.save(tmp_path / "h")
    guide = DoobMatching(LogH.load(tmp_path / "h"), limit=0.5)
    whole = sample(Gaussian(), [""] * 3, seeds=seeds, controls=[guide], **options).state.x
    alone = sample(Gaussian(), [""], seeds=[5], controls=[guide], **options).state.x
    assert torch.allclose(alone[0], whole[1], atol=1e-5) and not torch.equal(whole, plain)
    with pytest.raises(ValueError, match=r"latents \[1\]"):
        sample(words(), ["up"], seeds=[0], controls=[guide], **options)
    with pytest.raises(ValueError, match="holds no log h"):
        LogH.load(tmp_path)
    with pytest.raises(ValueError, match="all the weight"):
        matched(Gaussian(), Seen(), [""] * 4, seeds=range(4), levels=COSINE, solver=Chain(), strength=1e4)


def test_each_prompt_has_a_log_h_of_its_own() -> None:
    """A linear reward that "down" turns round: grad log h is strength slope gain, up or down. Fails when
    what is said is given to other samples' rows, or the weights of prompts are mixed.
    """

    class Turned:
        def __call__(self, images: Tensor, queries: Any) -> Tensor:
            signs = torch.tensor([-1.0 if query == "down" else 1.0 for query in queries])
            return signs * Seen(Linear())(images, queries)

    bed, prompts = words(1), ["up", "down"] * 400
    h = matched(bed, Turned(), prompts, seeds=range(800), levels=vp(8, curve="cosine"), solver=Chain(),
                strength=1.0, rounds=300)  # fmt: skip
    level = vp(8, curve="cosine")[4]
    gain = level.alpha * 0.36 / (level.alpha**2 * 0.36 + level.sigma**2)
    said = torch.tensor([[1.0], [-1.0]])
    x = level.alpha * (0.3 + said) + 0.0
    got = slopes(h, level, x, said)[:, 0]
    assert got.tolist() == pytest.approx([gain, -gain], abs=0.3 * gain)
