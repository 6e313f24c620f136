"""What denoisers on variance-preserving latents share: the scale they are fed at, and what they predict."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from promptloop.denoisers.cond import Cond
from promptloop.denoisers.latent import LatentDenoiser
from promptloop.schedules import Level

PREDICTIONS = ("epsilon", "v_prediction", "sample")


class VPDenoiser(LatentDenoiser):
    """A pipeline whose network knows x with alpha^2 + sigma^2 = 1. What it predicts is the scheduler's
    `prediction_type`.

    ValueError for a prediction type not in `PREDICTIONS`.
    """

    flow = False

    def __init__(self, pipe: Any, network: nn.Module, **settings: Any) -> None:
        super().__init__(pipe, network, **settings)
        self.prediction = kind = pipe.scheduler.config.get("prediction_type", "epsilon")
        if kind not in PREDICTIONS:
            raise ValueError(f"the scheduler's prediction_type is {kind!r}; known: {', '.join(PREDICTIONS)}")

    @abstractmethod
    def _predicted(self, fed: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """What the network says of latents [B, C, h, w] in its own dtype."""

    def clean(self, x: Tensor, level: Level, cond: Cond) -> Tensor:
        """Clean estimate [B, C, h, w], float32. ValueError at pure noise for a network that predicts noise.

        v = alpha noise - sigma clean (Salimans and Ho 2022, appendix D) where alpha^2 + sigma^2 = 1.
        """
        scale = math.hypot(level.alpha, level.sigma)
        dtype = self.dtype
        fed = x / scale
        t = torch.full((len(x),), level.t, device=x.device)
        told = Cond({name: value.to(dtype) for name, value in cond.fields.items()})
        out = self._predicted(fed.to(dtype), t, told).float()
        if self.prediction == "sample":
            return out
        if self.prediction == "v_prediction":
            return (level.alpha * fed - level.sigma * out) / scale
        if level.alpha == 0:
            raise ValueError(f"{level} is pure noise; a network that predicts noise has no estimate there")
        return (x - level.sigma * out) / level.alpha
