"""Drafts drawn by another engine than the one that trains: how far the two disagree, and what is done.

The two compute the same network with other kernels, so the drafts come from q where the gradient wants p.
Truncated importance weights min(p/q, cap), one a token, put that right up to the cap: Ionides, "Truncated
Importance Sampling", 2008; for language models Yao et al., "Your Efficient RL Framework Secretly Brings You
Off-Policy RL Training", 2025.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from promptloop.policies.contract import Draft


def gaps(drafts: Sequence[Draft], ours: Tensor) -> list[Tensor]:
    """Our log-probs [B, T] minus those at which the drafts were drawn, a row [its length] for each draft."""
    return [row[: len(d.tokens)] - d.log_probs.to(row) for row, d in zip(ours, drafts, strict=True)]


@final
@dataclass(frozen=True)
class Mismatch:
    """`cap` bounds the weights. Where |log p - log q| is more than `limit` in the mean, nothing is trained:
    then the two do not compute the same distribution.
    """

    cap: float = 2.0
    limit: float = 0.1

    def __post_init__(self) -> None:
        if not self.cap >= 1:
            raise ValueError(f"mismatch_cap is {self.cap}; give 1 or more (2 is usual)")
        if not self.limit > 0:
            raise ValueError(f"mismatch_limit is {self.limit}; give a positive number of nats a token")

    def weights(self, gap: Tensor) -> Tensor:
        """min(p/q, cap) of log p - log q, in its shape."""
        return gap.exp().clamp(max=self.cap)

    def measured(self, rows: Sequence[Tensor]) -> dict[str, float]:
        """What a run's log says of all tokens' log p - log q.

        mean and max are those of |log p - log q|; "effective" is the effective share of the tokens,
        (sum w)^2 / (n sum w^2) of the weights before truncation, 1 where the two agree; "truncated" the
        share of weights that the cap cut. ValueError where the mean is over the limit.
        """
        told = torch.cat([row.cpu().double() for row in rows]) if rows else torch.zeros(0)
        if not len(told):
            return {"mismatch/mean": 0.0, "mismatch/max": 0.0, "mismatch/effective": 1.0,
                    "mismatch/truncated": 0.0}  # fmt: skip
        mean = float(told.abs().mean())
        if not mean <= self.limit:
            raise ValueError(
                f"the server's log-probs are off the policy's by {mean:.3g} a token in the mean "
                f"(mismatch_limit {self.limit:g}), and nothing is trained on them: start vLLM on the "
                "policy's own base with --logprobs-mode processed_logprobs and the policy's --dtype, or "
                "raise --mismatch-limit"
            )
        ratio = told.exp()
        return {
            "mismatch/mean": mean,
            "mismatch/max": float(told.abs().max()),
            "mismatch/effective": float(ratio.sum().square() / (len(ratio) * ratio.square().sum())),
            "mismatch/truncated": float((ratio > self.cap).double().mean()),
        }
