"""Two policies for one trajectory: the first prompt is one's, all later ones are the other's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from torch.nn.functional import pad

from promptloop.policies.contract import Draft, Policy, Request


@final
@dataclass(frozen=True, eq=False)
class First(Policy):
    """Before the first step there is nothing to see and nothing to keep; afterwards there is both.

    Where one small policy cannot learn the two (docs/log.md: learning to write ahead unlearns looking),
    `first` writes the prompt at progress 0, `later` the others.
    """

    first: Policy
    later: Policy

    @property
    def image_size(self) -> int | None:  # type: ignore[override]
        return self.later.image_size

    def write(self, requests: Sequence[Request], seeds: Sequence[int]) -> list[Draft]:
        drafts: dict[int, Draft] = {}
        for policy, rows in self._shares(requests):
            made = policy.write([requests[i] for i in rows], [seeds[i] for i in rows])
            drafts |= dict(zip(rows, made, strict=True))
        return [drafts[i] for i in range(len(requests))]

    def log_prob(self, drafts: Sequence[Draft]) -> tuple[Tensor, Tensor]:
        width = max((len(draft.tokens) for draft in drafts), default=0)
        rows: dict[int, tuple[Tensor, Tensor]] = {}
        for policy, places in self._shares([draft.request for draft in drafts]):
            log_probs, mask = policy.log_prob([drafts[i] for i in places])
            short = (0, width - mask.shape[1])
            rows |= dict(zip(places, zip(pad(log_probs, short), pad(mask, short), strict=True), strict=True))
        if not rows:
            return self.later.log_prob(drafts)
        told = [rows[i] for i in range(len(drafts))]
        return torch.stack([one for one, _ in told]), torch.stack([on for _, on in told])

    def _shares(self, requests: Sequence[Request]) -> list[tuple[Policy, list[int]]]:
        """Each policy with the numbers of the requests that are its own; who has none is left out."""
        begins = [request.progress == 0 for request in requests]
        shares = [
            (policy, [i for i, begin in enumerate(begins) if begin == own])
            for policy, own in ((self.first, True), (self.later, False))
        ]
        return [(policy, rows) for policy, rows in shares if rows]
