"""Who writes prompts: a policy answers requests with drafts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

Kept = Literal["same", "empty", "overlong", "unparsable"]
LIKELIEST = -1  # in place of a seed: the likeliest answer, nothing drawn


@dataclass(frozen=True, eq=False)
class Request:
    """What a policy is asked at one refinement step of one sample.

    `query` is what the user wants, `prompt` the prompt in force. `estimate` [3, H, W] in [0, 1] is the
    denoised estimate, None where there is none (the first step, open loop). `progress` in [0, 1] is the part
    of the trajectory already executed. `negative`: what is wanted is a negative prompt, what the picture
    shall not show, and `prompt` is the one in force ("" where there is none).
    """

    query: str
    prompt: str
    estimate: Tensor | None = None
    progress: float = 0.0
    negative: bool = False

    def __post_init__(self) -> None:
        if not 0.0 <= self.progress <= 1.0:
            raise ValueError(f"progress is {self.progress}; it is the part of the trajectory done, in [0, 1]")
        if self.estimate is not None and (self.estimate.dim() != 3 or self.estimate.shape[0] != 3):
            raise ValueError(
                f"estimate has shape {tuple(self.estimate.shape)}; it must be one image [3, H, W]"
            )


def _no_tokens() -> Tensor:
    return torch.zeros(0, dtype=torch.long)


def _no_log_probs() -> Tensor:
    return torch.zeros(0)


@dataclass(frozen=True, eq=False)
class Draft:
    """One answer, with what policy-gradient training needs of it.

    `text` is the prompt in force from here on. `tokens` [T] are the tokens the policy produced, its end token
    included, and `log_probs` [T] their log-probabilities when they were drawn (both empty for a policy
    without tokens). `answer` is the raw answer. `kept` says why `text` is still the request's prompt: "same"
    (the policy chose so), "empty", "overlong" or "unparsable" (the answer was refused); None: it was used.
    """

    request: Request
    text: str
    tokens: Tensor = field(default_factory=_no_tokens)
    log_probs: Tensor = field(default_factory=_no_log_probs)
    answer: str = ""
    kept: Kept | None = None

    @property
    def refused(self) -> bool:
        """Whether the answer was unusable (a policy that chooses to keep its prompt is not refused)."""
        return self.kept not in (None, "same")

    def refuse(self, reason: Kept) -> Draft:
        """The same answer, not used: the request's prompt stays in force."""
        return replace(self, text=self.request.prompt, kept=reason)


class Policy(ABC):
    """Writes prompts. Row i of every answer depends on request i and seed i alone, never on the batch."""

    image_size: int | None = None  # side in pixels at which it wants the estimate; None: as decoded

    @abstractmethod
    def write(self, requests: Sequence[Request], seeds: Sequence[int]) -> list[Draft]:
        """One draft per request, in their order; `seeds[i]` is all the randomness draft i may use.

        Where it is `LIKELIEST`, a policy that draws tokens takes the likeliest instead.
        """

    @abstractmethod
    def log_prob(self, drafts: Sequence[Draft]) -> tuple[Tensor, Tensor]:
        """Log-probabilities [B, T] of the drafts' tokens under the present weights, and their mask [B, T].

        Rows are padded with 0 on the right. Differentiable with respect to the policy's weights.
        """
