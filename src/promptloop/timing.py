"""Where the time goes: seconds per phase, and a policy that is timed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import final

import torch
from torch import Tensor

from promptloop.policies.contract import Draft, Policy, Request


@final
class Stopwatch:
    """Seconds per phase; phases do not overlap (the inner one is taken off the outer one)."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._inner = [0.0]

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        begin = self._now()
        self._inner.append(0.0)
        try:
            yield
        finally:
            whole, inner = self._now() - begin, self._inner.pop()
            self._inner[-1] += whole
            self.seconds[phase] = self.seconds.get(phase, 0.0) + whole - inner

    @staticmethod
    def _now() -> float:
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return time.perf_counter()


@final
class TimedPolicy(Policy):
    """Another policy, timed."""

    def __init__(self, policy: Policy, watch: Stopwatch) -> None:
        self.policy, self.watch, self.image_size = policy, watch, policy.image_size

    def write(self, requests: Sequence[Request], seeds: Sequence[int]) -> list[Draft]:
        with self.watch("policy"):
            return self.policy.write(requests, seeds)

    def log_prob(self, drafts: Sequence[Draft]) -> tuple[Tensor, Tensor]:
        return self.policy.log_prob(drafts)
