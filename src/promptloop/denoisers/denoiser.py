"""The one face every text-to-image backbone shows to the loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from promptloop.denoisers.cond import Cond
from promptloop.schedules import Level, from_scheduler


class Denoiser(ABC):
    """A backbone seen as embed / clean / decode. Latents are float32 [B, ...] outside the network.

    What the network predicts (epsilon, v, velocity) becomes the clean estimate here and nowhere else.
    """

    network: nn.Module  # what weight objectives train

    @property
    @abstractmethod
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one sample's latent, without the batch axis."""

    @abstractmethod
    def embed(self, prompts: Sequence[str]) -> Cond:
        """One row of conditioning per prompt."""

    def without(self) -> Cond:
        """The conditioning of no prompt at all, one row: what guidance leads away from."""
        return self.embed([""])

    @abstractmethod
    def clean(self, x: Tensor, level: Level, cond: Cond) -> Tensor:
        """E[clean | x] as the network sees it, float32, shape of x [B, ...].

        x is at `level` (x = alpha clean + sigma noise) on any scale: a network trained on variance-preserving
        latents is fed x / sqrt(alpha^2 + sigma^2), so vp and karras levels both work.
        """

    @abstractmethod
    def decode(self, x: Tensor, size: int | None = None) -> Tensor:
        """Clean latents to images [B, 3, H, W] in [0, 1], float32, resized to size x size, antialiased."""

    @property
    @abstractmethod
    def text_limit(self) -> int:
        """How many tokens of a prompt the text encoder reads."""

    @abstractmethod
    def count_tokens(self, text: str) -> int:
        """Tokens of `text` as the text encoder counts them, without start and end marks."""

    @property
    def scheduler(self) -> Any | None:
        """The diffusers scheduler the backbone came with, or None."""
        return None

    @property
    def scheduler_options(self) -> dict[str, float]:
        """What the scheduler's set_timesteps is given besides the number of steps."""
        return {}

    @property
    def modules(self) -> list[nn.Module]:
        """Everything with weights that it calls."""
        return [self.network]

    @property
    def device(self) -> torch.device:
        """Where the network lives."""
        return next(self.network.parameters()).device

    def levels(self, steps: int) -> list[Level]:
        """The backbone's own noise levels, steps + 1 of them (override where there is no scheduler)."""
        if self.scheduler is None:
            raise ValueError(f"{type(self).__name__} has no scheduler; give levels=, e.g. vp({steps})")
        levels = from_scheduler(self.scheduler, steps, **self.scheduler_options)
        if type(self.scheduler).__name__ == "PNDMScheduler":  # it visits one level twice, for itself
            levels = [*dict.fromkeys(levels[:-1]), levels[-1]]
        return levels

    def noise(self, seeds: Sequence[int]) -> Tensor:
        """Unit noise [B, ...]; row i depends on seeds[i] only and equals diffusers' with CPU generators."""
        rows = [
            torch.randn((1, *self.latent_shape), generator=torch.Generator("cpu").manual_seed(int(seed)))
            for seed in seeds
        ]
        return torch.cat(rows).to(self.device)
