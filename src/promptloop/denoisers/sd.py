"""Stable Diffusion 1.x and 2.x: a UNet on variance-preserving latents, one CLIP text encoder."""

from __future__ import annotations

from typing import final

from torch import Tensor

from promptloop.denoisers.cond import Cond
from promptloop.denoisers.unet import UNetDenoiser


@final
class SD(UNetDenoiser):
    """A StableDiffusionPipeline."""

    def _encode(self, prompts: list[str]) -> Cond:
        """Field "text" [B, length, width]."""
        text, _ = self.pipe.encode_prompt(prompts, self.device, 1, False)
        return Cond({"text": text})

    def _predicted(self, fed: Tensor, t: Tensor, cond: Cond) -> Tensor:
        return self.network(fed, t, cond.fields["text"], return_dict=False)[0]
