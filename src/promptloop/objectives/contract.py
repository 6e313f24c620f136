"""What the training loop asks of an objective: collect a batch, part it, and say its loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

from torch import Tensor


@final
@dataclass(frozen=True, eq=False)
class Batch:
    """What one `collect` gives: parts whose losses add up to the batch's, metrics, what is shown of it."""

    parts: tuple[Any, ...]
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    shown: Any = None  # for sample sheets and the hacking watch


@final
@dataclass(frozen=True)
class Share:
    """Which part of the work is this process's: `rank` of `of`."""

    rank: int = 0
    of: int = 1

    def of_rows(self, rows: Sequence[Any]) -> tuple[int, Sequence[Any]]:
        """(place of the first, rows) of this process; ValueError where they do not divide."""
        if len(rows) % self.of:
            raise ValueError(f"{len(rows)} groups do not divide among {self.of} processes; change queries")
        size = len(rows) // self.of
        return self.rank * size, rows[self.rank * size : (self.rank + 1) * size]


class Objective(ABC):
    """Collect, then loss. Everything random is a function of the objective's seed and the update's number.

    `summed` names the metrics of `loss`: a process without a part to train on still takes part in their sums.
    """

    summed: tuple[str, ...] = ()

    @abstractmethod
    def check(self, share: Share) -> None:
        """Refuses to train (ValueError) where the first update could not be right."""

    @abstractmethod
    def collect(self, update: int, share: Share) -> Batch:
        """The batch of this update, this process's share of it."""

    def touched(self) -> Tensor:
        """A differentiable number that every trained weight moves; asked for where the network is sharded."""
        raise ValueError(f"{type(self).__name__} does not train a sharded network")

    def memory(self) -> dict[str, Tensor]:
        """What a checkpoint must hold of the objective itself: what it has learned beside the weights."""
        return {}

    def remember(self, kept: Mapping[str, Tensor]) -> None:
        """Puts a `memory` back; ValueError where it does not fit."""
        if kept:
            raise ValueError(f"the checkpoint holds {', '.join(kept)}, which {type(self).__name__} has not")

    @abstractmethod
    def loss(self, part: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The part's loss, and metrics that are summed over the parts."""
