"""Policy gradient: group advantages and the clipped surrogate, for tokens and latents alike.

GRPO (arXiv 2402.03300) as PromptLoop uses it (arXiv 2510.00430): one advantage for every
action of an episode. The functions take log-probabilities and advantages and do not know whether tokens or
latents made them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

SUMMED = ("tokens", "kl", "ratio", "clipped", "surprise")  # the metrics of `policy_gradient`
SMALL = 1e-6  # of a group's largest reward, or of 1: rewards less apart are equal but for float32's rounding


# --- advantages


def group_advantages(
    rewards: Tensor,
    group: int,
    *,
    baseline: Literal["mean", "leave-one-out"] = "mean",
    scale: Literal["group", "batch", "none"] = "group",
    deviation: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Advantages [E] of E rewards, `group` neighbours at a time, and a mask [E] of the groups that count.

    (r - baseline) / scale. "mean" is the group's mean; "leave-one-out" that of the others (RLOO, arXiv
    2402.14740). Scale "group" is the group's standard deviation, with n - 1 as TRL has it; "batch" that
    of the whole batch (`deviation`, where these are a process's part of it); "none" is 1 (Dr. GRPO, arXiv
    2503.20783). Groups of equal rewards get 0 and are masked out. Computed in float64 on the CPU, whatever
    the rewards' size, and given back in float32. ValueError: rewards that are not finite, or do not divide
    into groups of two or more.
    """
    if group < 2 or len(rewards) % group:
        raise ValueError(
            f"{len(rewards)} rewards do not divide into groups of {group}; groups need two or more"
        )
    if not bool(rewards.isfinite().all()):
        raise ValueError(
            f"reward {int((~rewards.isfinite()).nonzero()[0, 0])} is not finite; nothing is trained"
        )
    rows = rewards.detach().to("cpu", torch.float64).view(-1, group)  # MPS has no float64
    centred = rows - rows.mean(1, keepdim=True)
    if baseline == "leave-one-out":
        centred = centred * group / (group - 1)
    apart = rows.amax(1, keepdim=True) - rows.amin(1, keepdim=True)
    telling = (apart > SMALL * rows.abs().amax(1, keepdim=True).clamp(min=1)).expand_as(rows)
    if scale == "group":
        centred = centred / (rows.std(1, keepdim=True) + 1e-4)
    elif scale == "batch":
        centred = centred / ((float(rows.std()) if deviation is None else deviation) + 1e-4)
    advantages = (centred * telling).flatten().to(rewards.device, torch.float32)
    return advantages, telling.flatten().to(rewards.device)


# --- the surrogate


@final
@dataclass(frozen=True)
class Surrogate:
    """The settings of `policy_gradient`.

    `clip` is epsilon; `clip_high` the upper one where it differs (DAPO, arXiv 2503.14476). `kl_weight`
    times a k3 estimate is added: of KL[policy || reference], or, where no reference is given, of
    KL[old || policy], the direction that PromptLoop prints. `per` says what every action is divided by:
    "token" the number of actions in the whole batch (DAPO's and PromptLoop's token level), "draft" the
    draft's own length, then the number of drafts (GRPO), "constant" drafts times `longest` (Dr. GRPO), so
    that long drafts weigh neither less nor more for each token.
    """

    clip: float = 0.2
    clip_high: float | None = None
    kl_weight: float = 0.0
    per: Literal["token", "draft", "constant"] = "token"
    longest: int = 48

    def __post_init__(self) -> None:
        if not 0 < self.clip < 1 or (self.clip_high is not None and not self.clip_high > 0):
            raise ValueError(
                f"clip is {self.clip}, {self.clip_high}; give 0 < clip < 1 and a positive clip_high"
            )
        if not 0 <= self.kl_weight < math.inf:
            raise ValueError(f"kl_weight is {self.kl_weight}; it must be at least 0")
        if self.per not in ("token", "draft", "constant"):
            raise ValueError(f"per is {self.per!r}; choose 'token', 'draft' or 'constant'")


def policy_gradient(
    log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    settings: Surrogate,
    *,
    old: Tensor | None = None,
    reference: Tensor | None = None,
    correction: Tensor | None = None,
    tokens: int | None = None,
    drafts: int | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss to minimise, and metrics summed over the actions (divide by `metrics["tokens"]`).

    log_probs, mask [B, T], advantages [B]. old [B, T]: the log-probs at the time of drawing; None says that
    the weights have not moved since, and the ratio is 1 with the gradient of log_probs (no second forward
    pass). reference [B, T]: None stands for old. correction [B, T]: the importance weights of actions that
    another policy drew than `old` (objectives/mismatch.py); the KL term is not weighed. tokens, drafts: the
    whole batch's numbers of actions and of rows, where this is one part of it; the losses of the parts then
    add up to the batch's loss.
    """
    on = mask.to(log_probs.dtype)
    before = log_probs.detach() if old is None else old.detach()
    ratio = (log_probs - torch.where(on > 0, before, log_probs.detach())).exp()
    high = settings.clip if settings.clip_high is None else settings.clip_high
    gain = advantages[:, None] * ratio
    clipped = advantages[:, None] * ratio.clamp(1 - settings.clip, 1 + high)
    each = -torch.minimum(gain, clipped)
    if correction is not None:
        each = each * correction.detach()
    if reference is None:
        kl = k3(torch.where(on > 0, before, log_probs.detach()), log_probs) * on
    else:
        kl = k3(log_probs, torch.where(on > 0, reference.detach(), log_probs.detach())) * on
    if settings.kl_weight:
        each = each + settings.kl_weight * kl
    loss = ((each * on) * weights(on, settings, tokens, drafts)).sum()
    with torch.no_grad():
        metrics = {
            "tokens": on.sum(),
            "kl": kl.sum(),
            "ratio": (ratio * on).sum(),
            "clipped": ((clipped < gain) * on).sum(),
            "surprise": -(log_probs * on).sum(),
        }
    return loss, metrics


def k3(log_probs: Tensor, reference: Tensor) -> Tensor:
    """The k3 estimate of KL[policy || reference] for actions drawn from the first: never negative."""
    gap = reference - log_probs
    return gap.exp() - gap - 1


def weights(on: Tensor, settings: Surrogate, tokens: int | None, drafts: int | None) -> Tensor:
    """What each action [B, T] is weighed with; the weights of a batch's actions sum to 1 (not for
    "constant").
    """
    rows = len(on) if drafts is None else drafts
    if settings.per == "draft":
        return on / on.sum(1, keepdim=True).clamp(min=1) / rows
    if settings.per == "constant":
        return on / (rows * settings.longest)
    return on / (on.sum() if tokens is None else tokens)
