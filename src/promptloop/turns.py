"""Policy and denoiser on one device: who waits does so in the CPU's memory, where that is asked for."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import final

import torch
from torch import Tensor, nn

from promptloop.policies.contract import Draft, Policy, Request

POLICY, DENOISER = "policy", "denoiser"


@final
class Turns:
    """`modules` of each side; the sides in `waiting` leave `device` while it is the other's turn.

    The policy has the first turn. Moving changes no number: weights are copied there and back.
    """

    def __init__(
        self,
        modules: dict[str, Sequence[nn.Module]] | None = None,
        waiting: Collection[str] = (),
        device: str | torch.device = "cpu",
    ) -> None:
        self.modules, self.waiting, self.device = modules or {}, frozenset(waiting), torch.device(device)
        self.turn = ""
        self._give(POLICY)

    @contextmanager
    def __call__(self, side: str) -> Iterator[None]:
        """Inside, it is `side`'s turn; afterwards whose it was before."""
        before = self.turn
        self._give(side)
        try:
            yield
        finally:
            self._give(before)

    def _give(self, side: str) -> None:
        if side == self.turn:
            return
        for other in self.waiting - {side}:  # room is made before it is needed
            self._move(other, torch.device("cpu"))
        if side in self.waiting:
            self._move(side, self.device)
        self.turn = side

    def _move(self, side: str, device: torch.device) -> None:
        for module in self.modules.get(side, ()):
            module.to(device)


@final
class InTurn(Policy):
    """Another policy, whose turn it is while it writes."""

    def __init__(self, policy: Policy, turns: Turns) -> None:
        self.policy, self.turns, self.image_size = policy, turns, policy.image_size

    def write(self, requests: Sequence[Request], seeds: Sequence[int]) -> list[Draft]:
        with self.turns(POLICY):
            return self.policy.write(requests, seeds)

    def log_prob(self, drafts: Sequence[Draft]) -> tuple[Tensor, Tensor]:
        return self.policy.log_prob(drafts)
