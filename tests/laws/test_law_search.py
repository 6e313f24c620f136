"""Searches above the loop on the exact bed: monotone in budget, unit noise, sample i is itself."""

import pytest
import torch
from laws.bed import words
from laws.test_law_candidates import sum_of

from promptloop.controls.guidance import CFG
from promptloop.controls.search import neighbour, zero_order
from promptloop.denoisers.exact import Gaussian, Linear
from promptloop.sample import sample
from promptloop.schedules import vp
from promptloop.solvers import DDIM

PROMPTS, SEEDS = ["up", "down", "far", "up"], [3, 3, 4, 5]


def searched(rounds, solver, prompts=PROMPTS, seeds=SEEDS, **options):
    return zero_order(
        words(),
        prompts,
        reward=sum_of,
        seeds=seeds,
        rounds=rounds,
        levels=vp(5),
        solver=solver,
        controls=[CFG(2.0)],
        **options,
    )


@pytest.mark.parametrize("solver", [DDIM(), DDIM(1.0)], ids=repr)
def test_more_rounds_never_give_a_worse_reward(solver) -> None:
    """Fails when the pivot is not among the tries, or a round's noise depends on the number of rounds."""
    plain = sample(words(), PROMPTS, seeds=SEEDS, levels=vp(5), solver=solver, controls=[CFG(2.0)])
    ends = [searched(rounds, solver) for rounds in range(5)]
    assert torch.equal(ends[0].state.x, plain.state.x) and torch.equal(ends[0].images, plain.images)
    rewards = [end.state.memory["reward"] for end in ends]
    assert all((b >= a).all() for a, b in zip(rewards, rewards[1:], strict=False))
    assert (rewards[4] > rewards[0]).all()
    assert torch.allclose(rewards[4], sum_of(ends[4].images, PROMPTS))
    assert torch.allclose(rewards[4], Linear()(ends[4].state.x), atol=1e-4)
    assert ends[4].ledger.evaluations == (1 + 4 * 2) * 2 * 5 * 4 and ends[4].ledger.rewards == 9 * 4


def test_a_search_does_not_depend_on_the_batch() -> None:
    """Fails when neighbours are drawn from one generator for all."""
    together = searched(3, DDIM(1.0))
    assert torch.equal(searched(3, DDIM(1.0), max_batch=3).state.x, together.state.x)
    for k in range(4):
        alone = searched(3, DDIM(1.0), PROMPTS[k : k + 1], SEEDS[k : k + 1])
        assert torch.equal(alone.state.x[0], together.state.x[k])


def test_neighbours_are_unit_noise() -> None:
    """Correlation 0.958 at spread 0.3. Fails when the sum is not scaled back (standard deviation 1.044)."""
    noise = Gaussian(dim=20000).noise([1])
    near = neighbour(noise, [1], 0.3, "round 0 neighbour 0")
    assert near.std().item() == pytest.approx(1.0, abs=0.02)
    assert torch.corrcoef(torch.cat([noise, near]))[0, 1].item() == pytest.approx(0.958, abs=0.003)
    for wrong in ({"rounds": -1}, {"neighbours": 0}, {"spread": 0.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            zero_order(words(), ["up"], reward=sum_of, seeds=[0], levels=vp(2), **wrong)
