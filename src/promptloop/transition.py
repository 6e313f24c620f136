"""A step as a Gaussian: sampling draws from it, policy gradient scores it, search proposes from it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol, final

import torch
from torch import Tensor


class Movable(Protocol):
    """Anything with one entry per sample that can be picked and joined."""

    def take(self, index: Tensor) -> Any: ...
    def join(self, others: Iterable[Any]) -> Any: ...


@final
@dataclass(frozen=True)
class Transition:
    """The Gaussian a step draws from. std = 0 is a deterministic step.

    mean [B, ...]; std a scalar tensor or [B, 1, ...]; clean [B, ...] the estimate the step was made from;
    carry is what a multistep solver needs at the next step, moved with the samples like everything else.
    """

    mean: Tensor
    std: Tensor
    clean: Tensor
    carry: Movable | None = None

    @property
    def deterministic(self) -> bool:
        """Whether some sample has no density."""
        return not bool((self.std > 0).all())

    def log_prob(self, x: Tensor) -> Tensor:
        """[B] log N(x; mean, std^2) as the mean over all non-batch dimensions, float32, x detached.

        The mean, not the sum: Flow-GRPO, DanceGRPO and DDPO clip that ratio. ValueError where std is 0.
        """
        if self.deterministic:
            raise ValueError("a deterministic step (std 0) has no log-prob; use a stochastic solver")
        std = self.std.float()
        z = (x.detach().float() - self.mean.float()) / std
        each = -0.5 * z**2 - torch.log(std) - 0.5 * math.log(2 * math.pi)
        return each.flatten(1).mean(1)

    def take(self, index: Tensor) -> Transition:
        """Rows `index` (LongTensor)."""
        std = self.std if self.std.ndim == 0 else self.std[index]
        carry = None if self.carry is None else self.carry.take(index)
        return Transition(self.mean[index], std, self.clean[index], carry)

    def join(self, others: Iterable[Transition]) -> Transition:
        """These rows, then the others'."""
        rows = [self, *others]
        shared = all(row.std.ndim == 0 and bool(row.std == self.std) for row in rows)
        std = self.std if shared else torch.cat([_per_sample(row) for row in rows])
        carry = None if self.carry is None else self.carry.join([row.carry for row in rows[1:]])
        mean, clean = torch.cat([row.mean for row in rows]), torch.cat([row.clean for row in rows])
        return Transition(mean, std, clean, carry)


def _per_sample(row: Transition) -> Tensor:
    """std as [B, 1, ...]."""
    return row.std.expand(len(row.mean), *[1] * (row.mean.ndim - 1)) if row.std.ndim == 0 else row.std
