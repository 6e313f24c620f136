"""UniCoDe on the exact bed: its ends are the plain sampler and best of N, a push is as long as it says."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from laws.bed import at, words
from laws.test_law_candidates import sum_of
from laws.test_law_particles import flat, hill, run

from promptloop.controls import FK, BestOf, UniCoDe
from promptloop.denoisers.exact import Gaussian, Linear
from promptloop.sample import sample
from promptloop.schedules import Level, vp
from promptloop.solvers import DDIM, Euler

WORDS = {"prompts": ["up", "down", "up"], "solver": DDIM(1.0), "levels": vp(6)}


def bare(images, queries):
    """Any reward: says nothing of gradients."""
    return sum_of(images, queries)


def climbing(images, queries):
    """The same, and says so."""
    return sum_of(images, queries)


climbing.differentiable = True


def test_its_ends_are_the_plain_sampler_and_best_of_n_bitwise() -> None:
    """Fails when the streams are chosen from before the last step though the block is not over, or one stream
    is given another seed.
    """
    plain = run(UniCoDe(bare, 1, scale=0.0), bed=words(), **WORDS)
    for idle in (UniCoDe(bare, 4, strength=0.0, scale=0.0), UniCoDe(hill, 1, window=(0.9, 0.95))):
        assert torch.equal(run(idle, bed=words(), **WORDS).x, plain.x)
    bon = run(BestOf(bare, 4), bed=words(), **WORDS)
    one_block = run(UniCoDe(bare, 4, block=6, scale=0.0, apart=True), bed=words(), **WORDS)
    assert torch.equal(one_block.x, bon.x) and torch.equal(one_block.memory["reward"], bon.memory["reward"])
    own = sample(words(), ["up", "down", "up"], seeds=range(3), levels=vp(6), solver=DDIM(1.0)).state
    assert torch.equal(own.x, plain.x)


def test_equal_rewards_keep_the_law() -> None:
    """Uniform draws at every step: N(0.3, 1) stays; 300 samples, 4 standard errors. Fails when streams of one
    noise draw the same noise on the way: they are then one.
    """
    end = run(UniCoDe(flat, 4, block=1, strength=5.0, scale=0.0), count=300)
    assert end.x.mean().item() == pytest.approx(0.3, abs=0.23)
    assert end.x.var().item() == pytest.approx(1.0, abs=0.33)
    seen = []

    def watched(images, queries):
        seen.append(torch.logit(images[:, 0, 0, 0]))
        return flat(images, queries)

    run(UniCoDe(watched, 4, block=6, scale=0.0), count=1)
    assert seen[-1].std() > 0.05, "streams of one noise part by what is drawn on the way"


def test_more_choices_find_more_reward() -> None:
    """A linear reward, whose estimate is its value: choosing at every step beats choosing at the end, and
    drawing by softmax lies between none and the best. Fails when the lowest is kept, or all but one choice
    is ignored.
    """
    options = {"count": 150, "solver": DDIM(1.0), "levels": vp(8, curve="cosine")}
    found = {}
    for name, control in {
        "none": UniCoDe(sum_of, 1, scale=0.0),
        "end": UniCoDe(sum_of, 4, block=8, scale=0.0),
        "soft": UniCoDe(sum_of, 4, block=1, strength=1.0, scale=0.0),
        "each": UniCoDe(sum_of, 4, block=1, scale=0.0),
        "both": UniCoDe(climbing, 4, block=1, scale=0.1),
    }.items():
        found[name] = Linear()(run(control, **options).x).mean().item()
    assert found["none"] + 0.3 < found["end"] < found["each"] - 0.3
    assert found["none"] + 0.3 < found["soft"] < found["each"] < found["both"] - 0.15, found


@pytest.mark.parametrize("level", [Level(0.6, 0.8, 0), Level(0.3, 0.7, 0), Level(1.0, 5.0, 0)], ids=str)
def test_a_push_is_as_long_as_a_part_of_the_noise_and_goes_up(level: Level) -> None:
    """Each sample's by itself, whatever the reward's scale. Fails when norms are taken over the batch (the
    released code's), or the estimate is what is moved.
    """
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)) * 2
    state = at(level, x, denoiser=Gaussian(dim=3))
    noise = x - level.alpha * Gaussian(dim=3).clean(x, level, state.cond)
    moved = UniCoDe(hill, 1, scale=0.2)._pushed(state) - x
    assert torch.allclose(moved.norm(dim=1), 0.2 * noise.norm(dim=1), rtol=1e-4)
    clean = Gaussian(dim=3).clean(x, level, state.cond)
    assert bool(((2 - clean) * moved).sum(1).gt(0).all())
    one = replace(state, x=x[2:3], queries=("",), prompts=("",), seeds=state.seeds[2:3],
                  cond=state.cond[[0]], memory={})  # fmt: skip
    assert torch.allclose(UniCoDe(hill, 1, scale=0.2)._pushed(one)[0] - x[2], moved[2], atol=1e-5)


def test_costs_samples_alone_and_what_is_refused() -> None:
    """Fails when streams are compared with those of another sample, or a push is reported as a sampler's."""
    control = UniCoDe(hill, 3, block=2, strength=4.0, scale=0.1, every=3, window=(0.2, 1.0))
    whole = run(control, bed=words(), **WORDS)
    done = sample(words(), ["up"], seeds=[1], levels=vp(6), solver=DDIM(1.0), controls=[control])
    assert done.ledger.evaluations == 3 * (6 + 2 + 1) and done.ledger.rewards == 3 * (2 + 1 + 1)
    alone = run(control, bed=words(), prompts=["down"], solver=DDIM(1.0), levels=vp(6), seeds=[1])
    assert torch.allclose(alone.x[0], whole.x[1], atol=1e-4)
    pushed = [UniCoDe(hill, 1), FK(hill, 2, every=1)]
    with pytest.raises(ValueError, match="without telling"):
        sample(words(), ["up"], seeds=[0], levels=vp(6), solver=DDIM(1.0), controls=pushed, decode=False)
    with pytest.raises(ValueError, match="deterministic"):
        run(UniCoDe(hill, 2), bed=words(), **{**WORDS, "solver": Euler()})
    with pytest.raises(ValueError, match="scale=0 \\(CoDe\\)"):
        UniCoDe(bare)
    for wrong in ({"streams": 0}, {"block": 0}, {"every": 0}, {"strength": -1}, {"scale": math.inf}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            UniCoDe(hill, **wrong)
