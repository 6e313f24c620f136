"""What flow-matching denoisers share: levels with alpha + sigma = 1, a velocity, and their shift.

Latents stay [B, C, h, w] outside the network also where it reads a sequence of 2 x 2 patches (FLUX,
Qwen-Image). Packing is a reshape, so every solver takes the same step either way; unpacked, the noise is
drawn as diffusers draws it, and whatever looks at latents (a decoder, a control) finds the same picture in
each family.
"""

from __future__ import annotations

from abc import abstractmethod
from inspect import signature
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from promptloop.denoisers.cond import Cond
from promptloop.denoisers.latent import LatentDenoiser
from promptloop.schedules import Level


class FlowDenoiser(LatentDenoiser):
    """A pipeline whose network knows x = (1 - sigma) clean + sigma noise and predicts noise - clean.

    Levels on another scale are rescaled to a flow's by alpha + sigma.
    """

    flow = True
    patch: int = 2  # side of the squares of latents that are one token
    longest_shift = 1.15  # max_shift where the scheduler does not say

    @abstractmethod
    def _velocity(self, fed: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """What the network says of latents [B, C, h, w] at times t [B] in 0 ... 1000, all in its dtype."""

    def clean(self, x: Tensor, level: Level, cond: Cond) -> Tensor:
        """Clean estimate [B, C, h, w], float32, from the velocity noise - clean."""
        scale = level.alpha + level.sigma
        dtype = self.dtype
        fed = x / scale
        t = torch.full((len(x),), level.t, device=x.device)
        velocity = self._velocity(fed.to(dtype), t, cond)
        return fed - (level.sigma / scale) * velocity.float()

    @property
    def hands_sigmas(self) -> bool:
        """Whether the pipeline hands the scheduler the sigmas to walk."""
        return True

    @property
    def scheduler_options(self) -> dict[str, Any]:
        """What its pipeline tells the scheduler, where that can be told: sigmas in equal steps, not shifted;
        with dynamic shifting `mu`, linear in the number of image tokens (Esser et al. 2024, 5.3.2).
        """
        settings, takes = self.scheduler.config, signature(self.scheduler.set_timesteps).parameters
        options: dict[str, Any] = {}
        if self.hands_sigmas and "sigmas" in takes:
            options["sigmas"] = even_sigmas
        if settings.get("use_dynamic_shifting", False) and "mu" in takes:
            _, height, width = self.latent_shape
            tokens = (height // self.patch) * (width // self.patch)
            few, many = settings.get("base_image_seq_len", 256), settings.get("max_image_seq_len", 4096)
            low, high = settings.get("base_shift", 0.5), settings.get("max_shift", self.longest_shift)
            slope = (high - low) / (many - few)
            options["mu"] = tokens * slope + (low - slope * few)
        return options

    def _unscaled(self, x: Tensor) -> Tensor:
        return super()._unscaled(x) + self.pipe.vae.config.shift_factor  # SD 1 and 2 have none


def even_sigmas(steps: int) -> np.ndarray:
    """1, ..., 2/steps, 1/steps: what newer flow pipelines hand to their scheduler."""
    return np.linspace(1.0, 1 / steps, steps)


def packed(x: Tensor) -> Tensor:
    """[B, C, h, w] as a sequence [B, h/2 * w/2, 4 C] of squares of 2 x 2."""
    return F.pixel_unshuffle(x, 2).flatten(2).transpose(1, 2)


def unpacked(tokens: Tensor, height: int, width: int) -> Tensor:
    """The inverse of `packed`: [B, C, height, width]."""
    return F.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, (height // 2, width // 2)), 2)
