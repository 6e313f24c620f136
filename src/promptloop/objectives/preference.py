"""Preference objectives over pairs of finished latents: Diffusion-DPO, for the weights of the denoiser.

Wallace et al., arXiv 2311.12908. No reward, no sampling and no guidance while training: a pair is noised, and
the network is asked to denoise the winner better than its reference does, and the loser worse.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, final

import torch
import torch.nn.functional as F
from torch import Tensor

from promptloop.objectives.contract import Batch, Objective, Share
from promptloop.parameters import reference
from promptloop.schedules import Level

LEVELS = 500  # of the backbone's own grid, among which a pair's is drawn


def diffusion_dpo(winner: Tensor, loser: Tensor, dpo_beta: float) -> Tensor:
    """-log sigmoid(-dpo_beta / 2 (winner - loser)) [B], of ell(theta) - ell(reference) [B] of each side.

    ln 2 where the network is its reference (arXiv 2311.12908, equation 14, T omega absorbed in dpo_beta).
    """
    return -F.logsigmoid(-0.5 * dpo_beta * (winner - loser))


def squared_error(denoiser: Any, clean: Tensor, noise: Tensor, level: Level, cond: Any, of: str) -> Tensor:
    """ell [B]: mean over dimensions of the squared error of "epsilon" or "velocity" (noise - clean)."""
    x = level.alpha * clean + level.sigma * noise
    off = (denoiser.clean(x, level, cond) - clean).flatten(1).pow(2).mean(1)
    scale = level.alpha if of == "epsilon" else level.alpha + level.sigma
    return off * (scale / level.sigma) ** 2


def check(dpo_beta: float, batch: int, pairs_per_level: int, error: str) -> None:
    """ValueError for settings that cannot train."""
    if not dpo_beta > 0:
        raise ValueError(f"dpo_beta is {dpo_beta}; it must be positive")
    if batch < 1 or pairs_per_level < 1 or batch % pairs_per_level:
        raise ValueError(f"batches of {batch} pairs do not divide into parts of {pairs_per_level}")
    if error not in ("epsilon", "velocity"):
        raise ValueError(f"error is {error!r}; choose 'epsilon' or 'velocity'")


@final
@dataclass(frozen=True, eq=False)
class Pairs:
    """P pairs of clean latents [P, ...] made for the same prompt, the preferred one in `winners`."""

    prompts: tuple[str, ...]
    winners: Tensor
    losers: Tensor

    def __post_init__(self) -> None:
        if not len(self.prompts) == len(self.winners) == len(self.losers) or not self.prompts:
            raise ValueError(
                f"{len(self.prompts)} prompts, {len(self.winners)} winners and {len(self.losers)} losers; "
                "give as many of each, one at least"
            )


@final
@dataclass(frozen=True)
class Noised:
    """Pairs by their numbers, all at one level, each with noise of its own; `whole` pairs make the batch."""

    rows: tuple[int, ...]
    level: Level
    seeds: tuple[int, ...]
    whole: int


@final
@dataclass(frozen=True, eq=False)
class DiffusionDPO(Objective):
    """`batch` pairs an update, drawn with replacement, `pairs_per_level` of them at one level each.

    The same level and the same noise for both of a pair and for network and reference. `denoiser.network` has
    a LoRA; without it, it is the reference.
    """

    summed = ("tokens", "margin", "right")

    denoiser: Any
    pairs: Pairs
    dpo_beta: float = 2000.0
    batch: int = 32
    pairs_per_level: int = 8
    error: Literal["epsilon", "velocity"] = "epsilon"
    seed: int = 0

    def __post_init__(self) -> None:
        check(self.dpo_beta, self.batch, self.pairs_per_level, self.error)

    def check(self, share: Share) -> None:
        """The errors are finite, and the reference says the same of the same pairs twice (no dropout)."""
        part = self.collect(0, share).parts[0]
        with torch.no_grad(), reference(self.denoiser.network):
            first, second = self._errors(part), self._errors(part)
        if not bool(first.isfinite().all()) or not torch.allclose(first, second, rtol=1e-3):
            raise ValueError(
                "the network's errors are not finite, or not the same twice; put it in eval mode"
            )

    def collect(self, update: int, share: Share) -> Batch:
        rng = torch.Generator().manual_seed(self.seed * 1_000_003 + update)
        rows = torch.randint(len(self.pairs.prompts), (self.batch,), generator=rng).tolist()
        levels = self.denoiser.levels(LEVELS)[:-1]
        drawn = torch.randint(len(levels), (self.batch,), generator=rng).tolist()
        seeds = torch.randint(2**62, (self.batch,), generator=rng).tolist()
        size = self.pairs_per_level
        parts = [
            Noised(tuple(rows[k : k + size]), levels[drawn[k]], tuple(seeds[k : k + size]), self.batch)
            for k in range(0, self.batch, size)
        ]
        return Batch(tuple(share.of_rows(parts)[1]))

    def loss(self, part: Noised) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad(), reference(self.denoiser.network):
            before = self._errors(part)
        winner, loser = (self._errors(part) - before).chunk(2)
        margin = (loser - winner).detach()
        return diffusion_dpo(winner, loser, self.dpo_beta).sum() / part.whole, {
            "tokens": torch.tensor(float(len(part.rows))),
            "margin": self.dpo_beta / 2 * margin.sum(),
            "right": (0.5 + 0.5 * margin.sign()).sum(),
        }

    def _errors(self, part: Noised) -> Tensor:
        """ell [2B], of the winners and then of the losers."""
        rows = torch.tensor(part.rows)
        clean = torch.cat([self.pairs.winners[rows], self.pairs.losers[rows]])
        drawn = [torch.randn(clean.shape[1:], generator=torch.Generator().manual_seed(s)) for s in part.seeds]
        noise = torch.stack([*drawn, *drawn])  # the same for winner and loser
        with torch.no_grad():
            cond = self.denoiser.embed([self.pairs.prompts[k] for k in part.rows] * 2)
        device = self.denoiser.device
        return squared_error(self.denoiser, clean.to(device), noise.to(device), part.level, cond, self.error)
