"""Stable Diffusion 3 and 3.5: a flow-matching transformer, two CLIP text encoders and, where loaded, T5."""

from __future__ import annotations

from typing import Any, final

import torch
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import calculate_shift
from torch import Tensor

from promptloop.denoisers.cond import Cond
from promptloop.denoisers.latent import LatentDenoiser, text_room, text_tokens
from promptloop.schedules import Level

T5_LENGTH = 256  # tokens the pipeline reads (or fills with zeros where T5 is absent) unless told otherwise


@final
class SD3(LatentDenoiser):
    """A StableDiffusion3Pipeline, with or without its third text encoder (T5).

    T5 reads 256 tokens as in the pipeline, fewer where its tokenizer's `model_max_length` says so.
    """

    def __init__(self, pipe: Any) -> None:
        super().__init__(pipe, pipe.transformer)
        self.patch: int = pipe.transformer.config.patch_size
        third = pipe.tokenizer_3
        self.t5_length = T5_LENGTH if third is None else min(T5_LENGTH, third.model_max_length)

    def _encode(self, prompts: list[str]) -> Cond:
        """Fields "text" [B, length, width] and "pooled" [B, width]."""
        text, _, pooled, _ = self.pipe.encode_prompt(
            prompts, None, None, device=self.device, do_classifier_free_guidance=False,
            max_sequence_length=self.t5_length)  # fmt: skip
        return Cond({"text": text, "pooled": pooled})

    def clean(self, x: Tensor, level: Level, cond: Cond) -> Tensor:
        """Clean estimate [B, C, h, w], float32, from the velocity noise - clean.

        The network knows flow levels (alpha + sigma = 1); others are rescaled to one by alpha + sigma.
        """
        scale = level.alpha + level.sigma
        dtype = next(self.network.parameters()).dtype
        fed = x / scale
        t = torch.full((len(x),), level.t, device=x.device)
        text, pooled = cond.fields["text"].to(dtype), cond.fields["pooled"].to(dtype)
        velocity = self.network(fed.to(dtype), text, pooled, t, return_dict=False)[0]
        return fed - (level.sigma / scale) * velocity.float()

    @property
    def scheduler_options(self) -> dict[str, float]:
        """With dynamic shifting, `mu` for this number of image tokens (the pipeline's calculate_shift)."""
        settings = self.scheduler.config
        if not settings.get("use_dynamic_shifting", False):
            return {}
        _, height, width = self.latent_shape
        tokens = (height // self.patch) * (width // self.patch)
        return {
            "mu": calculate_shift(
                tokens,
                settings.get("base_image_seq_len", 256),
                settings.get("max_image_seq_len", 4096),
                settings.get("base_shift", 0.5),
                settings.get("max_shift", 1.16),
            )
        }

    def _unscaled(self, x: Tensor) -> Tensor:
        return super()._unscaled(x) + self.pipe.vae.config.shift_factor  # SD 1 and 2 have none

    @property
    def text_limit(self) -> int:
        """Tokens of a prompt that its longest reader takes in: T5 where it is loaded, else CLIP."""
        if self.pipe.tokenizer_3 is not None:
            return text_room(self.pipe.tokenizer_3, self.t5_length)
        return text_room(self.pipe.tokenizer, self.pipe.tokenizer_max_length)

    def count_tokens(self, text: str) -> int:
        """Tokens of `text` as counted by the longest reader (T5 where it is loaded, else CLIP)."""
        return text_tokens(self.pipe.tokenizer_3 or self.pipe.tokenizer, text)
