"""What makes the terms of a sum comparable: ranks among the images of a query, or deviations from what a
term has been so far.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor


def ranks(values: Tensor, queries: Sequence[str]) -> Tensor:
    """[B] in [-1, 1]: of the other images of the same query, the part that is below less the part above.

    The best of a query's images is 1, the worst -1, equals are equal, a query's ranks sum to 0; an image that
    is alone has 0. Any increasing change of the values leaves them as they are.
    """
    rows: dict[str, list[int]] = {}
    for row, query in enumerate(queries):
        rows.setdefault(query, []).append(row)
    found = torch.zeros(len(values), dtype=torch.float64, device=values.device)
    for own in rows.values():
        mine = values[own].double()
        against = torch.sign(mine[:, None] - mine[None, :]).sum(1)
        found[own] = against / max(len(own) - 1, 1)
    return found.to(values.dtype)


@final
class Running:
    """Count, mean and sum of squared deviations of every term, over all values there have been (float64).

    A batch is added as a whole (Chan, Golub and LeVeque, 1983), so the order of batches does not matter but
    for the last digits. Nothing resets it but a `restore`.
    """

    def __init__(self) -> None:
        self._kept: dict[str, tuple[float, float, float]] = {}

    def add(self, term: str, values: Tensor) -> None:
        """Takes a term's raw values [B] in."""
        if not len(values):
            return
        own = values.detach().double().cpu()
        more, mean = float(len(own)), float(own.mean())
        squares = float(((own - mean) ** 2).sum())
        count, was, before = self._kept.get(term, (0.0, 0.0, 0.0))
        total, step = count + more, mean - was
        self._kept[term] = (
            total,
            was + step * more / total,
            before + squares + step**2 * count * more / total,
        )

    def scaled(self, term: str, values: Tensor) -> Tensor:
        """(value - mean) / deviation, of all so far; 0 where they have all been one value."""
        count, mean, squares = self._kept[term]
        deviation = math.sqrt(squares / count)
        if deviation <= 1e-12 * max(abs(mean), 1e-300):  # what rounding leaves of a constant
            return torch.zeros_like(values)
        return ((values.double() - mean) / deviation).to(values.dtype)

    def state(self) -> dict[str, Tensor]:
        """Term -> [3] (count, mean, squares), float64; for a checkpoint."""
        return {term: torch.tensor(kept, dtype=torch.float64) for term, kept in self._kept.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Goes on from a `state`; ValueError for what is none."""
        for term, kept in state.items():
            if kept.shape != (3,) or not bool(kept.isfinite().all()) or float(kept[0]) < 1:
                raise ValueError(f"the running statistics of {term!r} are damaged: {kept.tolist()}")
        self._kept = {term: tuple(kept.double().tolist()) for term, kept in state.items()}
