"""A trace's own drafts as the policy: what a server wrote is not promised to be written again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor

from promptloop.policies.contract import Draft, Kept, Policy, Request
from promptloop.state import seed_of


@final
class Retold(Policy):
    """Answers each request with the draft that the trace tells for its query, sample's seed and step."""

    def __init__(self, trace: Mapping[str, Any]) -> None:
        self.told: dict[tuple[str, int], tuple[str, str, Kept | None]] = {}
        for sample in trace["samples"]:
            for draft in sample["image"]["drafts"]:
                key = sample["query"], seed_of(sample["seed"], draft["step"], "draft")
                said = draft["prompt"], draft["answer"], draft["kept"]
                if self.told.setdefault(key, said) != said:  # a query given twice, answered in two ways
                    raise ValueError(
                        f"the trace tells two drafts for one step of {sample['query']!r}, same seed"
                    )

    def write(self, requests: Sequence[Request], seeds: Sequence[int]) -> list[Draft]:
        drafts = []
        for request, seed in zip(requests, seeds, strict=True):
            if (request.query, seed) not in self.told:
                raise ValueError(f"the trace lacks a draft of {request.query!r}: it was changed by hand")
            prompt, answer, kept = self.told[request.query, seed]
            drafts.append(Draft(request, prompt, answer=answer, kept=kept))
        return drafts

    def log_prob(self, drafts: Sequence[Draft]) -> tuple[Tensor, Tensor]:
        """Empty [B, 0]: nothing was drawn."""
        return torch.zeros(len(drafts), 0), torch.zeros(len(drafts), 0, dtype=torch.bool)
