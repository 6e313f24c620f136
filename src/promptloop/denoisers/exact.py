"""Denoisers with a closed form: the test bed on which every method is checked against the truth.

Data is a Gaussian or a mixture of isotropic Gaussians in d dimensions, latents are [B, d]. Everything holds
at any level x = alpha clean + sigma noise. A reward knows log E[exp(strength r(X))] for Gaussian X
(`log_tilt`), from which the tilted target's log Z and the optimal value log h_t follow in closed form.
The beds live on the CPU.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from promptloop.denoisers.cond import Cond
from promptloop.denoisers.denoiser import Denoiser
from promptloop.schedules import Level, vp


class Exact(Denoiser):
    """What the exact denoisers share: latents are rows of numbers, an image is their strip of grey pixels."""

    @property
    def text_limit(self) -> int:
        return 77

    def count_tokens(self, text: str) -> int:
        return len(text.split())

    def levels(self, steps: int) -> list[Level]:
        return vp(steps, curve="cosine")

    def decode(self, x: Tensor, size: int | None = None) -> Tensor:
        images = torch.sigmoid(x.float())[:, None, None, :].expand(-1, 3, 1, -1)
        return images if size is None else functional.interpolate(images, (size, size))

    @abstractmethod
    def log_h(
        self, x: Tensor, level: Level, cond: Cond, reward: ExactReward, strength: float = 1.0
    ) -> Tensor:
        """[B] log E[exp(strength r(clean)) | x]: strength times the optimal soft value of x at `level`."""


@final
class Centre(nn.Module):
    """A point, or a row of points, that can be trained."""

    mean: nn.Parameter

    def __init__(self, mean: Tensor) -> None:
        super().__init__()
        self.mean = nn.Parameter(mean)


@final
class Gaussian(Exact):
    """Data N(mean, std^2) in `dim` independent dimensions; network.mean [dim] is trainable.

    `prompts` maps a text to what it adds to the mean; without it every text means the same. Default: the
    bed G1.
    """

    network: Centre

    def __init__(
        self, mean: float = 0.3, std: float = 1.0, dim: int = 1, *, prompts: Mapping[str, float] | None = None
    ) -> None:
        self.network = Centre(torch.full((dim,), float(mean)))
        self.std, self.prompts = std, prompts

    @property
    def latent_shape(self) -> tuple[int, ...]:
        return tuple(self.network.mean.shape)

    def embed(self, prompts: Sequence[str]) -> Cond:
        added = [0.0 if self.prompts is None else _meaning(self.prompts, prompt) for prompt in prompts]
        return Cond({"added": torch.tensor(added)[:, None]})

    def clean(self, x: Tensor, level: Level, cond: Cond) -> Tensor:
        return self.posterior(x, level, cond)[0]

    def mean(self, cond: Cond) -> Tensor:
        """[B, d] mean of the data under each prompt."""
        return self.network.mean + cond.fields["added"]

    def posterior(self, x: Tensor, level: Level, cond: Cond) -> tuple[Tensor, float]:
        """Mean [B, d] and variance (the same in every dimension) of clean given x."""
        gain = level.alpha * self.std**2 / (level.alpha**2 * self.std**2 + level.sigma**2)
        mean = self.mean(cond)
        return mean + gain * (x - level.alpha * mean), self.std**2 * (1 - gain * level.alpha)

    def reverse(self, x: Tensor, level: Level, after: Level, cond: Cond) -> tuple[Tensor, float]:
        """Mean [B, d] and std of the exact reverse kernel p(x at `after` | x at `level`)."""
        ratio = level.alpha / after.alpha
        forward = level.sigma**2 - ratio**2 * after.sigma**2
        marginal = after.alpha**2 * self.std**2 + after.sigma**2
        precision = 1 / marginal + ratio**2 / forward
        mean = (after.alpha * self.mean(cond) / marginal + ratio * x / forward) / precision
        return mean, precision**-0.5

    def log_h(
        self, x: Tensor, level: Level, cond: Cond, reward: ExactReward, strength: float = 1.0
    ) -> Tensor:
        mean, variance = self.posterior(x, level, cond)
        return reward.log_tilt(mean, torch.tensor(variance).to(mean), strength)

    def log_z(self, cond: Cond, reward: ExactReward, strength: float = 1.0) -> Tensor:
        """[B] log E[exp(strength r(clean))] over the data."""
        mean = self.mean(cond)
        return reward.log_tilt(mean, torch.tensor(self.std**2).to(mean), strength)


@final
class GaussianMixture(Exact):
    """Data sum_k weights_k N(means_k, stds_k^2 I); network.mean [K, d] is trainable.

    `prompts` maps a text to the components it keeps (the empty text: all); without it every text keeps all.
    """

    network: Centre

    def __init__(
        self,
        means: Tensor,
        stds: Tensor,
        weights: Tensor,
        *,
        prompts: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        if means.ndim != 2 or stds.shape != weights.shape or len(means) != len(stds):
            shapes = [tuple(value.shape) for value in (means, stds, weights)]
            raise ValueError(f"means, stds and weights have shapes {shapes}; give [K, d], [K] and [K]")
        self.network = Centre(means.clone())
        self.stds, self.log_weights = stds, torch.log(weights / weights.sum())
        self.prompts = None if prompts is None else {"": range(len(means)), **prompts}

    @property
    def latent_shape(self) -> tuple[int, ...]:
        return tuple(self.network.mean.shape[1:])

    def embed(self, prompts: Sequence[str]) -> Cond:
        rows = torch.full((len(prompts), len(self.stds)), -torch.inf)
        for row, prompt in zip(rows, prompts, strict=True):
            keep = [*range(len(row))] if self.prompts is None else [*_meaning(self.prompts, prompt)]
            row[keep] = torch.log_softmax(self.log_weights[keep], 0).to(row)
        return Cond({"log_weights": rows})

    def clean(self, x: Tensor, level: Level, cond: Cond) -> Tensor:
        log_weights, means, _ = self.posterior(x, level, cond)
        return (log_weights.exp()[..., None] * means).sum(1)

    def posterior(self, x: Tensor, level: Level, cond: Cond) -> tuple[Tensor, Tensor, Tensor]:
        """Of clean given x: log-weights [B, K], means [B, K, d] and variances [K] of its components."""
        marginal = level.alpha**2 * self.stds**2 + level.sigma**2
        gap = x[:, None] - level.alpha * self.network.mean
        fit = -(gap**2).sum(-1) / (2 * marginal) - x.shape[1] / 2 * marginal.log()
        log_weights = cond.fields["log_weights"] + fit
        gain = level.alpha * self.stds**2 / marginal
        means = self.network.mean + gain[:, None] * gap
        return log_weights.log_softmax(1), means, self.stds**2 * (1 - gain * level.alpha)

    def reverse(self, x: Tensor, level: Level, after: Level, cond: Cond) -> tuple[Tensor, Tensor, Tensor]:
        """Of x at `after` given x at `level`, exactly: log-weights [B, K], means [B, K, d], stds [K]."""
        ratio = level.alpha / after.alpha
        forward = level.sigma**2 - ratio**2 * after.sigma**2
        marginal = after.alpha**2 * self.stds**2 + after.sigma**2
        precision = 1 / marginal + ratio**2 / forward
        means = after.alpha * self.network.mean / marginal[:, None] + (ratio * x / forward)[:, None]
        return self.posterior(x, level, cond)[0], means / precision[:, None], precision**-0.5

    def log_h(
        self, x: Tensor, level: Level, cond: Cond, reward: ExactReward, strength: float = 1.0
    ) -> Tensor:
        log_weights, means, variances = self.posterior(x, level, cond)
        return (log_weights + reward.log_tilt(means, variances, strength)).logsumexp(1)

    def log_z(self, cond: Cond, reward: ExactReward, strength: float = 1.0) -> Tensor:
        """[B] log E[exp(strength r(clean))] over the data each prompt keeps."""
        tilt = reward.log_tilt(self.network.mean, self.stds**2, strength)
        return (cond.fields["log_weights"] + tilt).logsumexp(1)


# --- rewards with a closed form


class ExactReward(ABC):
    """A reward on clean latents x [..., d] -> [...]."""

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """r(x)."""

    @abstractmethod
    def log_tilt(self, mean: Tensor, variance: Tensor, strength: float) -> Tensor:
        """log E[exp(strength r(X))] for X ~ N(mean, variance I); mean [..., d], variance [...]."""


@final
@dataclass(frozen=True)
class Quadratic(ExactReward):
    """r(x) = -|x - centre|^2 / (2 width). The default is G1's."""

    centre: float = 2.0
    width: float = 1.0

    def __call__(self, x: Tensor) -> Tensor:
        return -((x - self.centre) ** 2).sum(-1) / (2 * self.width)

    def log_tilt(self, mean: Tensor, variance: Tensor, strength: float) -> Tensor:
        spread = self.width + strength * variance
        distance = ((mean - self.centre) ** 2).sum(-1)
        return -mean.shape[-1] / 2 * torch.log(spread / self.width) - strength * distance / (2 * spread)


@final
@dataclass(frozen=True)
class Linear(ExactReward):
    """r(x) = slope sum(x) (G1-lin): the reward of the clean estimate is the value, up to a constant."""

    slope: float = 1.0

    def __call__(self, x: Tensor) -> Tensor:
        return self.slope * x.sum(-1)

    def log_tilt(self, mean: Tensor, variance: Tensor, strength: float) -> Tensor:
        push = strength * self.slope
        return push * mean.sum(-1) + push**2 * variance * mean.shape[-1] / 2


@final
@dataclass(frozen=True)
class LogMixture(ExactReward):
    """r(x) = log sum_j weights_j N(x; means_j, stds_j^2 I), weights as given (G2's); strength 1 only."""

    means: Tensor
    stds: Tensor
    weights: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return self.log_tilt(x, torch.zeros(()), 1.0)

    def log_tilt(self, mean: Tensor, variance: Tensor, strength: float) -> Tensor:
        if strength != 1:
            raise ValueError(f"strength is {strength}; a log-mixture has a closed form at strength 1 only")
        spread = self.stds**2 + variance[..., None]
        distance = ((mean[..., None, :] - self.means) ** 2).sum(-1)
        density = -distance / (2 * spread) - mean.shape[-1] / 2 * torch.log(2 * math.pi * spread)
        return (self.weights.log() + density).logsumexp(-1)


def ring(**prompts: Sequence[int]) -> tuple[GaussianMixture, LogMixture]:
    """G2 (Jain et al. 2506.20701): eight Gaussians on a circle of radius 4, and the reward that ranks them.

    `prompts` name the components a text keeps, e.g. ring(first=[0]).
    """
    angles = torch.arange(8) * math.pi / 4
    means, stds = 4 * torch.stack([angles.cos(), angles.sin()], 1), torch.full((8,), 0.3)
    reward = LogMixture(means, stds, torch.exp(1.5 * torch.arange(1, 9)))
    return GaussianMixture(means, stds, torch.ones(8), prompts=prompts or None), reward


def _meaning(prompts: Mapping[str, Any], prompt: str) -> Any:
    if prompt not in prompts:
        raise ValueError(f"{prompt!r} means nothing to this test bed; it knows {sorted(prompts)}")
    return prompts[prompt]
