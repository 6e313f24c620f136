"""Schedules: their definitions, their agreement with diffusers, and clear errors."""

import math

import diffusers
import pytest
import torch
from laws.bed import pair, words

from promptloop.sample import sample, trajectory
from promptloop.schedules import Level, check, flow, from_scheduler, karras, vp
from promptloop.solvers import CPS, DDIM, FlowSDE

END = Level(1.0, 0.0, 0.0)


@pytest.mark.parametrize(
    "levels",
    [
        vp(9),
        vp(9, spacing="leading"),
        vp(9, curve="linear"),
        vp(9, curve="cosine"),
        flow(9),
        flow(9, 3.0),
        karras(9),
        flow(1),
        vp(1),
        karras(1),
    ],
)
def test_every_schedule_is_a_valid_one(levels) -> None:
    """Fails when a schedule forgets the final (1, 0)."""
    assert check(levels) == tuple(levels) and levels[-1] == END
    ratios = [level.share for level in levels]
    assert ratios == sorted(ratios, reverse=True)


def test_schedules_are_their_definitions() -> None:
    """Fails when flow() shifts the wrong way (sigma 0.25 at the middle instead of 0.75)."""
    assert all(math.hypot(level.alpha, level.sigma) == pytest.approx(1) for level in vp(9))
    assert [level.sigma for level in flow(2, shift=3.0)] == pytest.approx([1, 0.75, 0])
    assert all(level.alpha == 1 - level.sigma and level.t == 1000 * level.sigma for level in flow(5))
    assert [round(level.sigma, 4) for level in karras(3)] == [14.6146, 1.2745, 0.0292, 0.0]
    assert vp(4, curve="cosine")[2].alpha == pytest.approx(math.cos(math.pi / 4))


def test_vp_and_karras_agree_with_diffusers() -> None:
    """Fails when the training curve is off by one step."""
    options = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    for spacing, more in [("trailing", {}), ("leading", {"steps_offset": 1})]:
        theirs = from_scheduler(diffusers.DDIMScheduler(**options, timestep_spacing=spacing, **more), 10)
        for ours, level in zip(vp(10, spacing=spacing), theirs, strict=True):
            assert (ours.alpha, ours.sigma, ours.t) == pytest.approx(
                (level.alpha, level.sigma, level.t), abs=1e-5
            )
    theirs = from_scheduler(diffusers.EulerDiscreteScheduler(**options, use_karras_sigmas=True), 10)
    for ours, level in zip(karras(10), theirs, strict=True):
        assert (ours.alpha, ours.sigma) == pytest.approx((level.alpha, level.sigma), abs=2e-3)
        assert ours.t == pytest.approx(level.t, abs=0.6)


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ([], "at least two"),
        ([Level(0.0, 1.0, 1.0)], "at least two"),
        ([END, Level(0.0, 1.0, 1.0)], "no noise left"),
        ([Level(0.5, 0.5, 1.0), Level(0.1, 0.9, 1.0), END], "noisier than the one before"),
        ([Level(math.nan, 1.0, 1.0), END], "not finite"),
        ([Level(0.0, -1.0, 1.0), END], "must be >= 0"),
        ([Level(0.0, 0.0, 1.0), END], "not both 0"),
        ([Level(0.0, 1.0, 1.0), Level(0.0, 0.5, 1.0)], "pure noise"),
        ([(0.0, 1.0, 1.0), END], "give Level"),
    ],
)
def test_a_bad_level_list_says_what_is_wrong(levels, message) -> None:
    """Fails when trajectory stops checking its levels."""
    with pytest.raises(ValueError, match=message):
        next(trajectory(words(), ["up"], levels=levels, solver=DDIM(), seeds=[1]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: vp(0), "whole number"),
        (lambda: flow(2.5), "whole number"),
        (lambda: flow(3, shift=0), "shift is 0"),
        (lambda: vp(3, curve="quadratic"), "curve is 'quadratic'"),
        (lambda: vp(3, spacing="even"), "spacing is 'even'"),
        (lambda: vp(2000), "1000 training steps"),
        (lambda: karras(3, sigma_min=2, sigma_max=1), "sigma_min 2"),
        (lambda: DDIM(1.5), "eta is 1.5"),
        (lambda: CPS(-0.1), "eta is -0.1"),
        (lambda: FlowSDE(-1), "eta is -1"),
        (lambda: FlowSDE(math.nan), "eta is nan"),
        (lambda: sample(words(), ["up"], seeds=[1]), "steps= or levels="),
        (lambda: sample(words(), ["up"], seeds=[1], steps=3, levels=flow(3)), "steps= or levels="),
        (lambda: sample(words(), ["up"], seeds=[1, 2], steps=3), "2 seeds"),
        (lambda: sample(words(), ["up"], seeds=[-1], steps=3), "whole numbers"),
        (lambda: sample(words(), ["up"], seeds=[2**63], steps=3), "whole numbers"),
        (lambda: sample(words(), "up", seeds=[1, 2], steps=3), "'up'"),
        (lambda: sample(words(), [], seeds=[], steps=3), "0 prompts"),
        (lambda: sample(words(), ["up"], seeds=[1], steps=3, max_batch=0), "max_batch is 0"),
        (lambda: sample(words(), ["up"], seeds=[1], steps=3, noise=torch.zeros(2, 3)), "noise of shape"),
        (lambda: sample(words(), [3], seeds=[1], steps=3), "list of strings"),
        (lambda: from_scheduler(diffusers.DDIMScheduler()), "give steps"),
    ],
)
def test_bad_settings_name_the_value_and_the_fix(call, message) -> None:
    """Fails when a setting out of range is accepted in silence."""
    with pytest.raises(ValueError, match=message):
        call()


def test_given_noise_replaces_the_seeds_noise() -> None:
    """Fails when the noise given is not scaled to the first level (karras starts at sigma 14.6)."""
    noise = pair(2).noise([9])
    one = sample(pair(2), [""], seeds=[9], levels=karras(4), solver=DDIM()).state.x
    assert torch.equal(
        one, sample(pair(2), [""], seeds=[3], levels=karras(4), solver=DDIM(), noise=noise).state.x
    )
    first = next(trajectory(pair(2), [""], levels=karras(4), solver=DDIM(), seeds=[9]))
    assert torch.allclose(first.x, noise * math.hypot(1, 14.6146))
