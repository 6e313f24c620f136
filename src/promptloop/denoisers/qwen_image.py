"""Qwen-Image: a flow-matching transformer on packed latents that reads a vision-language model's text."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor

from promptloop.denoisers.cond import Cond
from promptloop.denoisers.flow import FlowDenoiser, packed, unpacked
from promptloop.denoisers.latent import text_tokens
from promptloop.schedules import Level

TEXT_LENGTH = 512  # tokens the pipeline reads unless told otherwise, the end of its template included


@final
class QwenImage(FlowDenoiser):
    """A QwenImagePipeline. CFG is its `true_cfg_scale`, with its norm kept (`guided`).

    ValueError for a guidance-distilled network, which nobody has published.
    """

    def __init__(self, pipe: Any, **settings: Any) -> None:
        if pipe.transformer.config.guidance_embeds:
            raise ValueError("this QwenImagePipeline wants a guidance scale as input, which is not supported")
        super().__init__(pipe, pipe.transformer, **settings)
        self.template_length = text_tokens(pipe.tokenizer, self._asked(""))

    def _encode(self, prompts: list[str]) -> Cond:
        """Fields "text" [B, length, width] and "mask" [B, length], as long as the longest prompt."""
        text, mask = self.pipe.encode_prompt(prompts, device=self.device, max_sequence_length=TEXT_LENGTH)
        if mask is None:  # all texts are equally long
            mask = torch.ones(text.shape[:2], dtype=torch.long, device=text.device)
        return Cond({"text": text, "mask": mask})

    def _velocity(self, fed: Tensor, t: Tensor, cond: Cond) -> Tensor:
        height, width = fed.shape[-2:]
        mask = cond.fields["mask"]
        tokens = self.network(
            hidden_states=packed(fed),
            timestep=t.to(fed.dtype) / 1000,
            encoder_hidden_states=cond.fields["text"].to(fed.dtype),
            encoder_hidden_states_mask=None if bool(mask.all()) else mask,
            img_shapes=[[(1, height // 2, width // 2)]] * len(fed),
            return_dict=False,
        )[0]
        return unpacked(tokens, height, width)

    def guided(self, x: Tensor, level: Level, without: Tensor, within: Tensor, scale: float) -> Tensor:
        """Guidance of velocities, each token's brought back to the norm it has with the prompt alone."""
        share = level.sigma / (level.alpha + level.sigma)
        fed = x / (level.alpha + level.sigma)
        velocity = (fed - super().guided(x, level, without, within, scale)) / share
        kept = packed((fed - within) / share).norm(dim=-1, keepdim=True)
        tokens = packed(velocity)
        return fed - share * unpacked(tokens * (kept / tokens.norm(dim=-1, keepdim=True)), *x.shape[-2:])

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(channels, height, width): a token of the network is four latents."""
        channels: int = self.pipe.transformer.config.in_channels // 4
        return (channels, *self._side(self.pipe.default_sample_size))

    def _unscaled(self, x: Tensor) -> Tensor:
        settings: Any = self.pipe.vae.config
        mean, std = (
            torch.tensor(value, dtype=x.dtype, device=x.device).view(1, -1, 1, 1)
            for value in (settings.latents_mean, settings.latents_std)
        )
        return x * std + mean

    def _pixels(self, latents: Tensor) -> Tensor:
        """Its autoencoder is a video's: one frame goes in and out."""
        return super()._pixels(latents.unsqueeze(2)).squeeze(2)

    @property
    def text_limit(self) -> int:
        """Tokens of a prompt that are read beside the end of the chat template."""
        return TEXT_LENGTH - (self.template_length - self.pipe.prompt_template_encode_start_idx)

    def count_tokens(self, text: str) -> int:
        """Tokens that `text` adds to the chat template."""
        return text_tokens(self.pipe.tokenizer, self._asked(text)) - self.template_length

    def _asked(self, text: str) -> str:
        """The prompt as the pipeline puts it to the language model."""
        return str(self.pipe.prompt_template_encode.format(text))
