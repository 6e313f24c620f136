"""A weighted sum of rewards, whose terms are told one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor

from promptloop.rewards.contract import Reward, scored


@final
@dataclass(frozen=True, eq=False)
class Weighted:
    """`terms`: name -> (weight, reward); the sum of weight times reward, each on its own raw scale.

    A reward sees no drafts: what their form and length cost is `PromptGRPO`'s.
    """

    terms: Mapping[str, tuple[float, Any]]

    def __post_init__(self) -> None:
        if not self.terms:
            raise ValueError("a weighted reward needs at least one term")

    @property
    def differentiable(self) -> bool:
        return all(getattr(reward, "differentiable", False) for _, reward in self.terms.values())

    def __call__(self, images: Tensor, queries: Sequence[str]) -> Tensor:
        return self.total({name: reward(images, queries) for name, (_, reward) in self.terms.items()})

    def total(self, values: Mapping[str, Tensor]) -> Tensor:
        """[B] from every term's raw values [B]."""
        parts = [weight * values[name] for name, (weight, _) in self.terms.items()]
        return sum(parts[1:], parts[0])


def scored_by_term(
    reward: Reward, images: Tensor, queries: Sequence[str]
) -> tuple[Tensor, dict[str, Tensor]]:
    """`scored`, and the raw values [B] of every term where the reward is a weighted sum."""
    if not isinstance(reward, Weighted):
        return scored(reward, images, queries), {}
    values = {name: scored(term, images, queries) for name, (_, term) in reward.terms.items()}
    return reward.total(values), values
