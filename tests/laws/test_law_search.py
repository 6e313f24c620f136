"""Searches above the loop on the exact bed: monotone in budget, unit noise, sample i is itself."""

from dataclasses import replace

import pytest
import torch
from laws.bed import Seen, words
from laws.test_law_candidates import sum_of

from promptloop.controls.guidance import CFG
from promptloop.controls.search import child, crossed, evolutionary, neighbour, zero_order
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


# --- the genetic algorithm


def evolved(generations, solver=DDIM(), prompts=PROMPTS, seeds=SEEDS, **options):  # noqa: B008
    common = {"reward": sum_of, "levels": vp(5), "controls": [CFG(2.0)], "population": 5, "elites": 2}
    return evolutionary(
        words(), prompts, seeds=seeds, generations=generations, solver=solver, **common | options
    )


@pytest.mark.parametrize("solver", [DDIM(), DDIM(1.0)], ids=repr)
def test_more_generations_never_give_a_worse_reward(solver) -> None:
    """Fails when the elites are not in the next population, or a child knows how many generations follow."""
    plain = sample(words(), PROMPTS, seeds=SEEDS, levels=vp(5), solver=solver, controls=[CFG(2.0)])
    alone = evolved(0, solver, population=1)
    assert torch.equal(alone.state.x, plain.state.x) and torch.equal(alone.images, plain.images)
    ends = [evolved(generations, solver) for generations in range(5)]
    rewards = [alone.state.memory["reward"], *(end.state.memory["reward"] for end in ends)]
    assert all((b >= a).all() for a, b in zip(rewards, rewards[1:], strict=False))
    assert (rewards[5] > rewards[1]).any() and rewards[5].sum() > rewards[1].sum()
    assert torch.allclose(rewards[5], Linear()(ends[4].state.x), atol=1e-4)
    assert ends[4].ledger.evaluations == (5 + 4 * 3) * 2 * 5 * 4 and ends[4].ledger.rewards == 17 * 4


def test_a_population_does_not_depend_on_the_batch() -> None:
    """Fails when parents are drawn, or compared, over the whole batch."""
    together = evolved(3, DDIM(1.0))
    assert torch.equal(evolved(3, DDIM(1.0), max_batch=3).state.x, together.state.x)
    for k in range(4):
        alone = evolved(3, DDIM(1.0), PROMPTS[k : k + 1], SEEDS[k : k + 1])
        assert torch.equal(alone.state.x[0], together.state.x[k])


def test_children_are_unit_noise() -> None:
    """After 40 generations, blind, with mutation 0.3: standard deviation 1 (not 2.1, as where mutation adds).

    A child of two parents has half its numbers from each. Fails when mutation is not scaled back, or a child
    is the mean of its parents (0.71).
    """
    bed, blind = Gaussian(dim=20000), lambda images, queries: torch.ones(len(images))
    options = {"levels": vp(2), "solver": DDIM(), "population": 4, "elites": 1}
    people = [evolutionary(bed, [""], reward=blind, seeds=[k], generations=0, **options) for k in range(4)]
    for generation in range(40):
        noise = child(people, [9], 0.3, 0.5, f"generation {generation} child 0")
        state = people[0].state.remember(start=noise, reward=torch.ones(1))
        people = [*people[1:], replace(people[0], state=state)]
    assert people[-1].state.memory["start"].std().item() == pytest.approx(1.0, abs=0.02)
    mother, father = bed.noise([1, 2])
    mixed = crossed(mother, father, 0.5, torch.Generator().manual_seed(0))
    assert ((mixed == mother) | (mixed == father)).all()
    assert (mixed == father).float().mean().item() == pytest.approx(0.5, abs=0.02)
    assert mixed.std().item() == pytest.approx(1.0, abs=0.02)


def test_a_population_climbs_a_sphere() -> None:
    """Reward -|x - 2|^2 / 2 in 8 dimensions, 100 samples: mean -7.0, of as many noises at random -7.6.

    Fails when the worse of two parents is taken, or the elites are the worst.
    """
    bed, many = Gaussian(dim=8), 100
    options = {"levels": vp(6, curve="cosine"), "solver": DDIM(), "reward": Seen()}
    found = evolutionary(bed, [""] * many, seeds=range(many), **options).state.memory["reward"].mean()
    plain = {"population": 23, "generations": 0}
    random = (
        evolutionary(bed, [""] * many, seeds=range(many), **plain, **options).state.memory["reward"].mean()
    )
    assert found > random + 0.3, (found, random)


def test_searches_among_noises_refuse_what_makes_no_search() -> None:
    """DDIM(1) from pure noise forgets it: all tries would be one image."""
    for wrong in (
        {"population": 0},
        {"generations": -1},
        {"elites": 0},
        {"elites": 5},
        {"mutation": -0.1},
        {"crossover": 1.1},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            evolved(**{"generations": 1} | wrong)
    memoryless = {"levels": vp(5, curve="cosine"), "solver": DDIM(1.0), "reward": sum_of, "seeds": [0]}
    for search in (evolutionary, zero_order):
        with pytest.raises(ValueError, match="forgets the starting noise"):
            search(words(), ["up"], **memoryless)
