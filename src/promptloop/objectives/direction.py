"""D2-Align's first stage (arXiv 2512.24146): one direction in a CLIP reward's text space, learned from what
the frozen generator draws. The second stage is any of this library's, with the corrected reward.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from promptloop.objectives.contract import Batch, Objective, Share
from promptloop.rewards.directional import Directional


@final
@dataclass(frozen=True)
class Drawn:
    """Images by their numbers; `whole` of them make the batch."""

    rows: tuple[int, ...]
    whole: int


@final
@dataclass(frozen=True, eq=False)
class Direction(Objective):
    """The mean of minus the corrected reward over N images and what was asked for, `batch` of them an update.

    seen, said: pictures and texts [N, D] as the reward's two towers have them; towers and generator are
    frozen, so these are made once. Only `corrected.direction` is trained.
    """

    summed = ("tokens", "corrected", "length")

    corrected: Directional
    seen: Tensor
    said: Tensor
    batch: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if self.seen.shape != self.said.shape or not len(self.seen):
            raise ValueError(f"pictures are {tuple(self.seen.shape)}, texts {tuple(self.said.shape)}; give "
                             "one text for each picture, one at least")  # fmt: skip
        if self.batch < 1:
            raise ValueError(f"batch is {self.batch}; it must be at least 1")

    def check(self, share: Share) -> None:
        if not bool(self.corrected.compared(self.seen, self.said).isfinite().all()):
            raise ValueError("the reward is not finite on the images that the direction is learned from")

    def collect(self, update: int, share: Share) -> Batch:
        rng = torch.Generator().manual_seed(self.seed * 1_000_003 + update)
        rows = torch.randint(len(self.seen), (self.batch,), generator=rng).tolist()
        if share.of > 1:
            raise ValueError("a direction is learned in one process; start it without torchrun and the like")
        return Batch((Drawn(tuple(rows), self.batch),))

    def loss(self, part: Drawn) -> tuple[Tensor, dict[str, Tensor]]:
        rows = list(part.rows)
        values = self.corrected.compared(self.seen[rows], self.said[rows])
        count = torch.tensor(float(len(rows)))
        return -values.sum() / part.whole, {
            "tokens": count,
            "corrected": values.detach().sum(),
            "length": self.corrected.direction.detach().norm().cpu() * count,
        }
