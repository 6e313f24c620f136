"""Searches above the loop: they run it again and again, and keep what the reward likes best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from promptloop.controls.groups import check_number
from promptloop.ledger import counting
from promptloop.rewards.contract import Reward, scored
from promptloop.sample import Sample, join, sample
from promptloop.state import seed_of


def zero_order(
    denoiser: Any,
    prompts: Sequence[str],
    *,
    reward: Reward,
    seeds: Sequence[int],
    rounds: int = 4,
    neighbours: int = 2,
    spread: float = 0.3,
    **options: Any,
) -> Sample:
    """Zero-order search over the starting noise (Ma et al., 2501.09732): hill climbing without gradients.

    Each round draws, for every sample, `neighbours` noises (n + spread u) / sqrt(1 + spread^2) around the
    best noise n so far, samples them, and keeps the image of highest reward, the one it had among them: the
    reward never falls, and the first rounds do not depend on how many follow. `options` are those of
    `sample` (not `noise` and `decode`). memory["reward"] [B] has the rewards. rounds=0 is the plain sampler.

    A search. Stochastic steps keep their noise; the reward is a black box. Costs 1 + rounds * neighbours
    whole runs and as many rewards. ValueError for settings that make no search, and where the solver forgets
    the starting noise, as DDIM(eta=1) does from pure noise.
    """
    check_number("rounds", rounds, 0, "a number of rounds from 0")
    check_number("neighbours", neighbours, 1, "a number of neighbours from 1")
    if not spread > 0:
        raise ValueError(f"spread is {spread}; give a positive number, e.g. 0.3")
    with counting() as tally:
        best = tried(denoiser, prompts, reward, seeds, denoiser.noise(seeds).float(), options)
        for k in range(rounds):
            around = best.state.memory["start"]
            tries = [best]
            for j in range(neighbours):
                noise = neighbour(around, seeds, spread, f"round {k} neighbour {j}")
                tries.append(tried(denoiser, prompts, reward, seeds, noise, options))
            check_differ(tries)
            best = ranked(tries)
    return replace(best, ledger=tally.ledger)


def evolutionary(
    denoiser: Any,
    prompts: Sequence[str],
    *,
    reward: Reward,
    seeds: Sequence[int],
    population: int = 8,
    generations: int = 3,
    elites: int = 3,
    mutation: float = 0.3,
    crossover: float = 0.5,
    **options: Any,
) -> Sample:
    """A genetic algorithm over starting noises (Jajal et al., 2506.00299, "GA").

    Every sample has a population: its own noise, and others. In each generation the `elites` of highest
    reward stay, and the rest are replaced by children of two parents, each the better of two drawn from the
    population. A child has each number from its second parent with probability `crossover`, then
    (n + mutation u) / sqrt(1 + mutation^2): unit noise stays unit noise. The best image of all is the
    sample. `options`, stochastic steps and memory are those of `zero_order`. The first generations do not
    depend on how many follow, and the reward never falls.

    A search; the reward is a black box. Costs population + generations * (population - elites) whole runs
    and as many rewards. population=1 with generations=0 is the plain sampler. ValueError as in `zero_order`.
    """
    check_number("population", population, 1, "a number of noises from 1")
    check_number("generations", generations, 0, "a number of generations from 0")
    check_number("mutation", mutation, 0, "a spread from 0, e.g. 0.1")
    if generations and not 1 <= elites < population:
        raise ValueError(f"elites is {elites} of {population}; give a number from 1 to {population - 1}")
    if not 0 <= crossover <= 1:
        raise ValueError(f"crossover is {crossover}; give a probability from 0 to 1")
    with counting() as tally:
        people = []
        for k in range(population):
            own = [seed_of(int(seed), 0, f"noise {k}") if k else int(seed) for seed in seeds]
            people.append(tried(denoiser, prompts, reward, seeds, denoiser.noise(own).float(), options))
        check_differ(people)
        for generation in range(generations):
            children = []
            for k in range(elites, population):
                noise = child(people, seeds, mutation, crossover, f"generation {generation} child {k}")
                children.append(tried(denoiser, prompts, reward, seeds, noise, options))
            people = [*(ranked(people, rank) for rank in range(elites)), *children]
        best = ranked(people)
    return replace(best, ledger=tally.ledger)


def check_differ(tries: Sequence[Sample]) -> None:
    """ValueError where all starting noises gave the same images."""
    first = tries[0].state
    if len(tries) > 1 and all(torch.equal(one.state.x, first.x) for one in tries[1:]):
        raise ValueError(
            f"{first.run.solver} forgets the starting noise on these levels, so there is nothing to search; "
            "use a deterministic solver, or search over paths or a tree"
        )


def child(
    people: Sequence[Sample], seeds: Sequence[int], mutation: float, crossover: float, purpose: str
) -> Tensor:
    """Noise [B, ...] of a child of two of the people; row i is a function of row i, seeds[i], the purpose."""
    rewards = torch.stack([one.state.memory["reward"] for one in people]).cpu()
    rows = []
    for i, seed in enumerate(seeds):
        generator = torch.Generator().manual_seed(seed_of(int(seed), 0, f"{purpose} parents"))
        drawn = torch.randint(len(people), (2, 2), generator=generator)
        mother, father = (int(pair[rewards[pair, i].argmax()]) for pair in drawn)
        rows.append(crossed(_start(people[mother], i), _start(people[father], i), crossover, generator))
    return neighbour(torch.stack(rows), seeds, mutation, purpose)


def crossed(mother: Tensor, father: Tensor, crossover: float, generator: torch.Generator) -> Tensor:
    """Each number from the father with probability `crossover`, else from the mother; all of one shape."""
    swap = torch.rand(mother.shape, generator=generator) < crossover
    return torch.where(swap.to(mother.device), father, mother)


def _start(one: Sample, i: int) -> Tensor:
    return one.state.memory["start"][i]


def neighbour(noise: Tensor, seeds: Sequence[int], spread: float, purpose: str) -> Tensor:
    """Unit noise near `noise` [B, ...]: their correlation is 1 / sqrt(1 + spread^2). Row i is a function of
    noise[i], seeds[i] and the purpose.
    """
    rows = [
        torch.randn(noise.shape[1:], generator=torch.Generator().manual_seed(seed_of(int(seed), 0, purpose)))
        for seed in seeds
    ]
    return (noise + spread * torch.stack(rows).to(noise)) / (1 + spread**2) ** 0.5


def tried(
    denoiser: Any, prompts: Sequence[str], reward: Reward, seeds: Sequence[int], noise: Tensor, options: Any
) -> Sample:
    """The run from `noise` [B, ...], with its rewards [B] and the noise in memory["reward"] and ["start"]."""
    made = sample(denoiser, prompts, seeds=seeds, noise=noise, **options)
    assert made.images is not None
    found = scored(reward, made.images, prompts).to(made.state.x.device)
    if len(found) != len(made.state):
        raise ValueError("a control of this run returns other samples than it was given; search without it")
    return replace(made, state=made.state.remember(reward=found, start=noise))


def ranked(tries: Sequence[Sample], rank: int = 0) -> Sample:
    """Of every sample the try of this rank by reward, 0 the highest; of equals the first."""
    rewards = torch.stack([one.state.memory["reward"] for one in tries])
    size = rewards.shape[1]
    order = rewards.argsort(dim=0, descending=True, stable=True)
    rows = order[rank] * size + torch.arange(size, device=rewards.device)
    images = torch.cat([one.images for one in tries if one.images is not None])
    return Sample(
        images[rows.to(images.device)], join([one.state for one in tries]).take(rows), tries[0].ledger
    )
