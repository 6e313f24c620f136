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
    flow: bool | None = None  # whether it was trained on a flow's levels; None: it takes any
    _dtype: tuple[torch.dtype, torch.dtype] | None = None  # of the first weight, and what was said then

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

    def guided(self, x: Tensor, level: Level, without: Tensor, within: Tensor, scale: float) -> Tensor:
        """Classifier-free guidance on the estimates [B, ...] without and with the prompt, at latents `x`.

        The weights sum to 1, so epsilons, v's or velocities would give the same. Families whose pipeline
        combines them in another way override this.
        """
        return without + scale * (within - without)

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

    def read_at_most(self, length: int) -> None:
        """From now on `text_limit` is that of a pipeline called with `max_sequence_length=length`."""
        raise ValueError(f"{type(self).__name__} reads as many tokens as it reads; leave the length out")

    def readers(self) -> list[tuple[Any, int]]:
        """Who wrote the field "text" of `embed`: (tokenizer, tokens), one after the other along its length.

        ValueError where a place in it is not a token of the prompt. A tokenizer None has read nothing.
        """
        raise ValueError(
            f"{type(self).__name__} does not tell which numbers of its embedding belong to which word of the "
            "prompt, so words cannot be weighed; use SD, SDXL, SD3, FLUX.1 or PixArt-Sigma"
        )

    def as_read(self, text: str) -> str:
        """The text as its readers are given it."""
        return text

    @property
    def scheduler(self) -> Any | None:
        """The diffusers scheduler the backbone came with, or None."""
        return None

    @property
    def scheduler_options(self) -> dict[str, Any]:
        """What the scheduler's set_timesteps is given besides the number of steps, or a function of it."""
        return {}

    @property
    def modules(self) -> list[nn.Module]:
        """Everything with weights that it calls."""
        return [self.network]

    @property
    def device(self) -> torch.device:
        """Where the network lives."""
        return next(self.network.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What the network computes in. Its weights may be stored in less (float8, four bits)."""
        first = next(self.network.parameters()).dtype
        if self._dtype is None or self._dtype[0] != first:  # diffusers' networks know, but walk all modules
            self._dtype = (first, getattr(self.network, "dtype", first))
        return self._dtype[1]

    def smaller(self, batch: int) -> list[str]:
        """What would need less memory than `batch` samples at once do now, with the present settings."""
        dtype = str(self.dtype).removeprefix("torch.")
        ways = [f"max_batch (now {batch})"] if batch > 1 else []
        if dtype == "float32":
            ways.append("dtype (now float32: bfloat16 takes half)")
        return [*ways, f"the size (one latent is {' x '.join(map(str, self.latent_shape))})"]

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
