"""Stable Diffusion 1.x and 2.x: a UNet on variance-preserving latents, one CLIP text encoder."""

from __future__ import annotations

import math
from typing import Any, final

import torch
from torch import Tensor

from promptloop.denoisers.cond import Cond
from promptloop.denoisers.latent import LatentDenoiser, text_room, text_tokens
from promptloop.schedules import Level

PREDICTIONS = ("epsilon", "v_prediction", "sample")


@final
class SD(LatentDenoiser):
    """A StableDiffusionPipeline. What its UNet predicts is the scheduler's `prediction_type`.

    ValueError for a prediction type not in `PREDICTIONS`, or a UNet that wants a guidance scale as input.
    """

    def __init__(self, pipe: Any) -> None:
        super().__init__(pipe, pipe.unet)
        self.prediction = kind = pipe.scheduler.config.get("prediction_type", "epsilon")
        if kind not in PREDICTIONS:
            raise ValueError(f"the scheduler's prediction_type is {kind!r}; known: {', '.join(PREDICTIONS)}")
        if pipe.unet.config.time_cond_proj_dim is not None:
            raise ValueError("this UNet wants a guidance scale as input (time_cond_proj_dim), which SD lacks")

    def _encode(self, prompts: list[str]) -> Cond:
        """Field "text" [B, length, width]."""
        text, _ = self.pipe.encode_prompt(prompts, self.device, 1, False)
        return Cond({"text": text})

    def clean(self, x: Tensor, level: Level, cond: Cond) -> Tensor:
        """Clean estimate [B, C, h, w], float32. ValueError at pure noise for a network that predicts noise.

        v = alpha noise - sigma clean (Salimans and Ho 2022, appendix D) where alpha^2 + sigma^2 = 1.
        """
        scale = math.hypot(level.alpha, level.sigma)
        dtype = next(self.network.parameters()).dtype
        fed = x / scale
        t = torch.full((len(x),), level.t, device=x.device)
        text = cond.fields["text"].to(dtype)
        out = self.network(fed.to(dtype), t, text, return_dict=False)[0].float()
        if self.prediction == "sample":
            return out
        if self.prediction == "v_prediction":
            return (level.alpha * fed - level.sigma * out) / scale
        if level.alpha == 0:
            raise ValueError(f"{level} is pure noise; a network that predicts noise has no estimate there")
        return (x - level.sigma * out) / level.alpha

    @property
    def text_limit(self) -> int:
        """Tokens of a prompt that CLIP reads (75 for the published weights)."""
        return text_room(self.pipe.tokenizer, self.pipe.tokenizer.model_max_length)

    def count_tokens(self, text: str) -> int:
        """CLIP tokens of `text`."""
        return text_tokens(self.pipe.tokenizer, text)
