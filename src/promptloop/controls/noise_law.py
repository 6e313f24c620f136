"""FIND: the law of the starting noise of one prompt, tuned by policy gradient on a black-box reward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from promptloop.controls.groups import check_number
from promptloop.controls.search import tried
from promptloop.ledger import counting
from promptloop.rewards.contract import Reward
from promptloop.sample import Sample
from promptloop.state import seed_of


def find(
    denoiser: Any,
    prompts: Sequence[str],
    *,
    reward: Reward,
    seeds: Sequence[int],
    iterations: int = 50,
    pairs: int = 2,
    rate: float = 0.01,
    kl_weight: float = 0.001,
    least: float = 0.1,
    **options: Any,
) -> Sample:
    """FIND (Chen et al., 2407.19453): starting noise N(mean, std^2), tuned for each sample's prompt.

    Climbs E[reward] - kl_weight KL(N(mean, std^2) | N(0, 1)) over whole runs, in nats, by Adam on the policy
    gradient of `slopes`: for a reward that is exp-quadratic in the noise the optimum is its exact tilt. No
    std falls below `least`. The sample returned starts from mean + std times its own noise; memory["mean"]
    and ["std"] [B, ...] are the law, for more images of the prompt: `sample(..., noise=mean + std * unit)`;
    ["reward"] [B], ["start"], and ["trace"] [B, iterations], the mean reward of what each iteration drew.
    `options` are those of `sample` (not `noise` and `decode`). iterations=0 is the plain sampler.

    The reward is a black box, and nothing is differentiated. Stochastic steps keep a sample's noise in all
    draws. Costs 1 + 2 * pairs * iterations whole runs and as many rewards.
    """
    check_number("iterations", iterations, 0, "a number of iterations from 0")
    check_number("pairs", pairs, 1, "a number of pairs from 1")
    check_number("kl_weight", kl_weight, 0, "a number from 0")
    if not (rate > 0 and 0 < least < 1):
        raise ValueError(f"rate is {rate}, least {least}; give a number above 0, and one between 0 and 1")
    with counting() as tally:
        own = denoiser.noise(seeds).float()
        mean, std = torch.zeros_like(own), torch.ones_like(own)
        adam, trace = torch.optim.Adam([mean, std], lr=rate, maximize=True), []
        for k in range(iterations):
            unit = _drawn(own, seeds, k, pairs)
            found = [
                tried(denoiser, prompts, reward, seeds, mean + std * one, options).state.memory["reward"]
                for one in torch.cat([unit, -unit])
            ]
            rewards = torch.stack(found).view(2, pairs, -1)
            by_mean, by_std = slopes(rewards, unit, std)
            mean.grad = by_mean - kl_weight * mean
            std.grad = by_std - kl_weight * (std - 1 / std)
            adam.step()
            std.clamp_(min=least)
            trace.append(rewards.mean((0, 1)))
        made = tried(denoiser, prompts, reward, seeds, mean + std * own, options)
    shown = torch.stack(trace, dim=1) if trace else own.new_zeros(len(own), 0)
    return Sample(made.images, made.state.remember(mean=mean, std=std, trace=shown), tally.ledger)


def slopes(rewards: Tensor, unit: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Unbiased gradients [B, ...] of E[reward] in mean and std, from opposite pairs of draws.

    rewards [2, pairs, B] of mean + std unit and mean - std unit, unit [pairs, B, ...]. The gradient of the
    log-density, summed over the latent's numbers and not averaged, is unit / std and (unit^2 - 1) / std. In
    the first the pair's two rewards subtract; in the second their mean stands against the other pairs'
    (of one pair nothing is learned of std).
    """
    pairs = len(unit)
    odd = (rewards[0] - rewards[1]) / 2
    even = rewards.mean(0)
    gain = (even - even.mean(0)) * pairs / max(pairs - 1, 1)  # against the mean of the others
    lone = [1] * (unit.ndim - 2)
    by_mean = (odd.view(*odd.shape, *lone) * unit).mean(0) / std
    by_std = (gain.view(*gain.shape, *lone) * (unit**2 - 1)).mean(0) / std
    return by_mean, by_std


def _drawn(own: Tensor, seeds: Sequence[int], k: int, pairs: int) -> Tensor:
    """Unit noise [pairs, B, ...] of iteration k; that of a sample depends on its seed alone."""
    rows = [
        torch.randn(
            (pairs, *own.shape[1:]),
            generator=torch.Generator().manual_seed(seed_of(int(seed), 0, f"find {k}")),
        )
        for seed in seeds
    ]
    return torch.stack(rows, dim=1).to(own)
