"""Stable Diffusion XL (base, Turbo, Lightning): a larger UNet, two CLIP text encoders, the picture's size."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor

from promptloop.denoisers.cond import Cond
from promptloop.denoisers.unet import UNetDenoiser


@final
class SDXL(UNetDenoiser):
    """A StableDiffusionXLPipeline without its refiner.

    Every picture is told to be uncropped and of the network's own size, as the pipeline does by default.
    The invisible watermark that the pipeline may add is not added.
    """

    def _encode(self, prompts: list[str]) -> Cond:
        """Fields "text" [B, length, width] and "pooled" [B, width]."""
        text, _, pooled, _ = self.pipe.encode_prompt(
            prompts, device=self.device, do_classifier_free_guidance=False
        )
        return Cond({"text": text, "pooled": pooled})

    def without(self) -> Cond:
        """Zeros where the pipeline's `force_zeros_for_empty_prompt` says so, as for the published base."""
        empty = super().without()
        if not self.pipe.config.force_zeros_for_empty_prompt:
            return empty
        return Cond({name: torch.zeros_like(value) for name, value in empty.fields.items()})

    def _predicted(self, fed: Tensor, t: Tensor, cond: Cond) -> Tensor:
        pooled = cond.fields["pooled"]
        scale = self.pipe.vae_scale_factor
        side = (fed.shape[-2] * scale, fed.shape[-1] * scale)
        told = torch.tensor([*side, 0, 0, *side], dtype=fed.dtype, device=fed.device).expand(len(fed), -1)
        more = {"text_embeds": pooled, "time_ids": told}
        return self.network(fed, t, cond.fields["text"], added_cond_kwargs=more, return_dict=False)[0]

    def decode(self, x: Tensor, size: int | None = None) -> Tensor:
        """As every decoder; in float32 where the autoencoder overflows in half precision (`force_upcast`)."""
        vae = self.pipe.vae
        if vae.dtype != torch.float16 or not vae.config.force_upcast:
            return super().decode(x, size)
        vae.to(torch.float32)
        images = super().decode(x, size)
        if not images.requires_grad:  # else its float32 weights are still wanted
            vae.to(torch.float16)  # as after the pipeline's own call
        return images

    def _unscaled(self, x: Tensor) -> Tensor:
        settings: Any = self.pipe.vae.config
        mean, std = settings.get("latents_mean"), settings.get("latents_std")
        if mean is None or std is None:
            return super()._unscaled(x)
        mean, std = (torch.tensor(v, dtype=x.dtype, device=x.device).view(1, -1, 1, 1) for v in (mean, std))
        return super()._unscaled(x) * std + mean
