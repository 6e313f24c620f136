"""A policy shown no estimate, or another sample's, or none now and then: for training and control arms."""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

from torch import Tensor

from promptloop.policies.contract import LIKELIEST, Draft, Policy, Request


class Shown(Policy):
    """`policy`, asked with other estimates than the samples' own."""

    policy: Policy

    @property
    def image_size(self) -> int | None:  # type: ignore[override]
        return self.policy.image_size

    @abstractmethod
    def estimates(self, requests: Sequence[Request], seeds: Sequence[int]) -> list[Tensor | None]:
        """What is shown in place of the requests' estimates."""

    def write(self, requests: Sequence[Request], seeds: Sequence[int]) -> list[Draft]:
        shown = zip(requests, self.estimates(requests, seeds), strict=True)
        return self.policy.write([replace(request, estimate=estimate) for request, estimate in shown], seeds)

    def log_prob(self, drafts: Sequence[Draft]) -> tuple[Tensor, Tensor]:
        return self.policy.log_prob(drafts)


@final
@dataclass(frozen=True, eq=False)
class Blind(Shown):
    """Never shown an estimate: refinements without looking."""

    policy: Policy

    def estimates(self, requests: Sequence[Request], seeds: Sequence[int]) -> list[Tensor | None]:
        return [None] * len(requests)


@final
@dataclass(frozen=True, eq=False)
class Shuffled(Shown):
    """Shown the estimate of the request before it: as many pixels and words, no feedback.

    It tells feedback from mere work. It depends on the batch by design. ValueError where a request is alone.
    """

    policy: Policy

    def estimates(self, requests: Sequence[Request], seeds: Sequence[int]) -> list[Tensor | None]:
        if len(requests) == 1 and requests[0].estimate is not None:
            raise ValueError("one request alone has nobody else's estimate to be shown; sample two or more")
        return [requests[k - 1].estimate for k in range(len(requests))]


@final
@dataclass(frozen=True, eq=False)
class Sometimes(Shown):
    """Shown no estimate with probability `dropout`, drawn from each request's own seed. For training.

    What is not drawn but the likeliest answer is shown none only where `dropout` is 1.
    """

    policy: Policy
    dropout: float

    def estimates(self, requests: Sequence[Request], seeds: Sequence[int]) -> list[Tensor | None]:
        return [
            None if self._drops(seed) else request.estimate
            for request, seed in zip(requests, seeds, strict=True)
        ]

    def _drops(self, seed: int) -> bool:
        if seed == LIKELIEST:
            return self.dropout == 1
        return random.Random(f"image dropout/{seed}").random() < self.dropout
