"""Means and paired differences with bootstrap intervals over queries and seeds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

DRAWS = 4000


@final
@dataclass(frozen=True)
class Interval:
    """A mean and the central 95% of its bootstrap distribution."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} ({self.low:.3f} to {self.high:.3f})"


def interval(scores: Tensor, *, seed: int = 0) -> Interval:
    """Of scores [S, Q]: seeds (a training and its noise) by queries, both drawn anew with replacement.

    Queries are drawn for all seeds alike, so what is hard stays hard. One seed: queries alone are drawn.
    ValueError where a score is not finite.
    """
    if scores.ndim != 2 or not scores.numel():
        raise ValueError(f"scores are of shape {tuple(scores.shape)}; give seeds by queries [S, Q]")
    if not bool(scores.isfinite().all()):
        raise ValueError("a score is not finite; nothing can be said of their mean")
    rng = torch.Generator().manual_seed(seed)
    values = scores.double()
    s, q = values.shape
    queries = torch.randint(q, (DRAWS, q), generator=rng)
    seeds = torch.randint(s, (DRAWS, s), generator=rng)
    counts = torch.zeros(DRAWS, s, dtype=torch.double).scatter_add_(1, seeds, torch.ones_like(seeds).double())
    weights = torch.zeros(DRAWS, q, dtype=torch.double).scatter_add_(
        1, queries, torch.ones_like(queries).double()
    )
    means = ((counts @ values) * weights).sum(1) / (s * q)
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.double)).tolist()
    return Interval(values.mean().item(), low, high)


def difference(first: Tensor, second: Tensor, *, seed: int = 0) -> Interval:
    """`first` - `second`, paired: the same query and the same seed's noise in both [S, Q]."""
    if first.shape != second.shape:
        raise ValueError(f"scores of shape {tuple(first.shape)} and {tuple(second.shape)} are not pairs")
    return interval(first - second, seed=seed)
