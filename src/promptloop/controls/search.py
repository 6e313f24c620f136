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

    A search. Works with every solver (stochastic steps keep their noise); the reward is a black box. Costs
    1 + rounds * neighbours whole runs and as many rewards. ValueError for settings that make no search.
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
            best = best_of(tries)
    return replace(best, ledger=tally.ledger)


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


def best_of(tries: Sequence[Sample]) -> Sample:
    """Of every sample the try of highest reward; of equals the first."""
    rewards = torch.stack([one.state.memory["reward"] for one in tries])
    size = rewards.shape[1]
    rows = rewards.argmax(0) * size + torch.arange(size, device=rewards.device)
    images = torch.cat([one.images for one in tries if one.images is not None])
    return Sample(
        images[rows.to(images.device)], join([one.state for one in tries]).take(rows), tries[0].ledger
    )
