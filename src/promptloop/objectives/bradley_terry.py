"""Learning a reward from pairs: Bradley and Terry's model, in which the better image of two is chosen with
probability sigmoid(its reward less the other's).

So ImageReward (arXiv 2304.05977), PickScore (arXiv 2305.01569) and IterComp's composition-aware rewards
(arXiv 2410.07171) were trained. What is trained here is a reward of two towers: pictures and texts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from promptloop.objectives.contract import Batch, Objective, Share
from promptloop.rewards.towers import TwoTowers


def bradley_terry(margin: Tensor) -> Tensor:
    """-log sigmoid(margin) [B], of the chosen image's reward less the rejected one's; ln 2 where equal."""
    return -F.logsigmoid(margin)


@final
@dataclass(frozen=True)
class Choice:
    """What was asked for, and the names of the image that was chosen and of the one that was not."""

    prompt: str
    chosen: str
    rejected: str


@final
@dataclass(frozen=True)
class Pairs:
    """Some choices by their numbers; `whole` of them make the batch."""

    rows: tuple[int, ...]
    whole: int


@final
@dataclass(frozen=True, eq=False)
class BradleyTerry(Objective):
    """`batch` choices an update, drawn with replacement, `pairs_per_part` of them at once.

    seen: an image's name to what the network sees of it, [3, side, side] (`TwoTowers.pixels`). scale: what
    the margin of rewards is multiplied by (100 for a bare cosine, as CLIP's temperature is after its
    training; 1 where it is inside the reward).
    """

    summed = ("tokens", "margin", "right")

    reward: TwoTowers
    choices: Sequence[Choice]
    seen: Callable[[str], Tensor]
    scale: float = 1.0
    batch: int = 64
    pairs_per_part: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.choices:
            raise ValueError("there is no pair to learn from")
        check(self.scale, self.batch, self.pairs_per_part)

    def check(self, share: Share) -> None:
        """The margins are finite, and the network says the same of the same pairs twice (no dropout)."""
        part = self.collect(0, share).parts[0]
        with torch.no_grad():
            first, second = self.margins(part.rows), self.margins(part.rows)
        if not bool(first.isfinite().all()) or not torch.allclose(first, second, rtol=1e-3, atol=1e-4):
            raise ValueError("the reward is not finite, or not the same twice; put it in eval mode")

    def collect(self, update: int, share: Share) -> Batch:
        rng = torch.Generator().manual_seed(self.seed * 1_000_003 + update)
        rows = torch.randint(len(self.choices), (self.batch,), generator=rng).tolist()
        size = self.pairs_per_part
        parts = [Pairs(tuple(rows[k : k + size]), self.batch) for k in range(0, self.batch, size)]
        return Batch(tuple(share.of_rows(parts)[1]))

    def loss(self, part: Pairs) -> tuple[Tensor, dict[str, Tensor]]:
        margin = self.margins(part.rows)
        told = margin.detach()
        return bradley_terry(margin).sum() / part.whole, {
            "tokens": torch.tensor(float(len(part.rows))),
            "margin": told.sum(),
            "right": (0.5 + 0.5 * told.sign()).sum(),
        }

    def margins(self, rows: Sequence[int]) -> Tensor:
        """[len(rows)]: scale times the chosen image's reward less the rejected one's."""
        some = [self.choices[k] for k in rows]
        names = [choice.chosen for choice in some] + [choice.rejected for choice in some]
        ids = self.reward.ids([choice.prompt for choice in some])
        pixels = torch.stack([self.seen(name) for name in names]).to(ids.device)
        chosen, rejected = self.reward.scores(pixels, torch.cat([ids, ids])).chunk(2)
        return self.scale * (chosen - rejected)


def check(scale: float, batch: int, pairs_per_part: int) -> None:
    """ValueError for settings that cannot train."""
    if not scale > 0:
        raise ValueError(f"scale is {scale}; it must be positive")
    if batch < 1 or pairs_per_part < 1 or batch % pairs_per_part:
        raise ValueError(f"batches of {batch} pairs do not divide into parts of {pairs_per_part}; give "
                         "another pairs_per_part")  # fmt: skip
