"""A weighted sum of rewards, whose terms are told one by one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, final

import torch
from torch import Tensor

from promptloop.names import one_of
from promptloop.rewards.contract import Reward, answered, checked, scored
from promptloop.rewards.scales import Running, ranks

Norm = Literal["raw", "z", "rank"]
NORMS = ("raw", "z", "rank")


@final
@dataclass(frozen=True, eq=False)
class Gate:
    """Open where `reward`, on its raw scale, is at least `least` and below `below`."""

    reward: Any
    least: float = -math.inf
    below: float = math.inf

    def __post_init__(self) -> None:
        if not self.least < self.below:
            raise ValueError(f"a gate from {self.least} to below {self.below} is never open")
        if self.least == -math.inf and self.below == math.inf:
            raise ValueError("a gate needs a threshold: give least, below or both")

    def opens(self, values: Tensor) -> Tensor:
        """[B] of bool, from the raw values [B]."""
        return (values >= self.least) & (values < self.below)


@final
@dataclass(frozen=True, eq=False)
class Weighted:
    """`terms`: name -> (weight, reward); the sum of weight times reward, where all of the `gates` are open.

    norm: "raw", each term on its own scale; "rank", each as its rank among the images of the same query in
        the call, from -1 to 1, so a query's images must be given together; "z", each less its mean and over
        its deviation, of all images it has been asked about, this call's included. `running` has these
        statistics: `state` and `restore` are for checkpoints, nothing else resets them.
    gates: name -> Gate. Where one is shut, the sum is `shut`; None: 0, which must be said itself where it is
        the middle of the scale (z and rank). Where raw terms can be negative, give less than their least.

    A reward sees no drafts: what their form and length cost is `PromptGRPO`'s.
    """

    terms: Mapping[str, tuple[float, Any]]
    norm: Norm = "raw"
    gates: Mapping[str, Gate] = field(default_factory=dict)
    shut: float | None = None
    running: Running = field(default_factory=Running)

    def __post_init__(self) -> None:
        if not self.terms:
            raise ValueError("a weighted reward needs at least one term")
        one_of(self.norm, NORMS, "normalisation")
        for name, gate in self.gates.items():
            if name in self.terms and gate.reward is not self.terms[name][1]:
                raise ValueError(
                    f"{name!r} is the name of a term and of a gate of another reward; rename one"
                )
        if self.shut is not None and not (self.gates and math.isfinite(self.shut)):
            raise ValueError(
                f"shut is {self.shut}; it is a number, and what a shut gate gives, so give a gate"
            )
        if self.gates and self.norm != "raw" and self.shut is None:
            raise ValueError(
                f"0 is the middle of a sum by {self.norm}, so a shut gate would cost nothing; say what it "
                "gives: shut=-3, or `... else -3`"
            )

    @property
    def differentiable(self) -> bool:
        plain = self.norm == "raw" and not self.gates
        return plain and all(getattr(reward, "differentiable", False) for _, reward in self.terms.values())

    @property
    def stochastic(self) -> bool:
        """An image's value depends on the others' too, or a term is stochastic."""
        return self.norm != "raw" or any(getattr(r, "stochastic", False) for r in self.rewards.values())

    @property
    def compares(self) -> bool:
        """An image's value depends on the others in the call."""
        return self.norm != "raw" or any(getattr(r, "compares", False) for r in self.rewards.values())

    @property
    def rewards(self) -> dict[str, Any]:
        """The rewards of terms and gates, by name: each is asked once."""
        gates = {name: gate.reward for name, gate in self.gates.items()}
        return gates | {name: reward for name, (_, reward) in self.terms.items()}

    @property
    def calls(self) -> int:
        """How many rewards are asked for an image: what the ledger counts."""
        return len(self.rewards)

    def __call__(self, images: Tensor, queries: Sequence[str]) -> Tensor:
        values = {name: answered(r, images, queries).to(images.device) for name, r in self.rewards.items()}
        for name, r in self.rewards.items():
            checked(r, values[name].detach().float().cpu(), queries)  # a gate would take nan for shut
        return self.total(values, queries)

    def total(self, values: Mapping[str, Tensor], queries: Sequence[str]) -> Tensor:
        """[B] from every term's and gate's raw values [B], which the running statistics take in."""
        parts = [
            weight * self._scaled(name, values[name], queries) for name, (weight, _) in self.terms.items()
        ]
        found = sum(parts[1:], parts[0])
        for name, gate in self.gates.items():
            open_ = gate.opens(values[name]).to(found.device)
            found = torch.where(open_, found, torch.full_like(found, self.shut or 0.0))
        return found

    def _scaled(self, name: str, values: Tensor, queries: Sequence[str]) -> Tensor:
        if self.norm == "rank":
            return ranks(values, queries)
        if self.norm == "z":
            self.running.add(name, values)
            return self.running.scaled(name, values)
        return values

    def state(self) -> dict[str, Tensor]:
        """What the sum has learned so far: the running statistics (z), or nothing."""
        return self.running.state() if self.norm == "z" else {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Goes on from a `state` of the same terms; ValueError for one of others, or none."""
        wanted = set(self.terms) if self.norm == "z" else set()
        if wrong := sorted(wanted ^ set(state)):
            raise ValueError(
                f"the running statistics were of {', '.join(sorted(state)) or 'no term'}, and this sum is of "
                f"{', '.join(sorted(self.terms))} by {self.norm}: {', '.join(wrong)} cannot go on"
            )
        if wanted:
            self.running.restore(state)


def scored_by_term(
    reward: Reward, images: Tensor, queries: Sequence[str]
) -> tuple[Tensor, dict[str, Tensor]]:
    """`scored`, and the raw values [B] of every term and gate where the reward is a weighted sum."""
    if not isinstance(reward, Weighted):
        return scored(reward, images, queries), {}
    values = {name: scored(term, images, queries) for name, term in reward.rewards.items()}
    return reward.total(values, queries), values
