"""FLUX.1 dev and schnell: a flow-matching transformer on packed latents, pooled CLIP, and T5."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, final

import torch
from torch import Tensor

from promptloop.denoisers.cond import Cond
from promptloop.denoisers.flow import FlowDenoiser, packed, unpacked
from promptloop.denoisers.latent import text_room, text_tokens

T5_LENGTH = 512  # tokens the pipeline reads unless told otherwise
SCHNELL_T5_LENGTH = 256  # what schnell was distilled with; its model card hands this to the pipeline


@final
class Flux(FlowDenoiser):
    """A FluxPipeline.

    dev is told a guidance scale, which is distilled into it: `embedded_guidance`, 3.5 as in the pipeline.
    schnell (a network without `guidance_embeds`) is told none. Classifier-free guidance on top, with or
    without a negative prompt, is the control CFG: the pipeline's `true_cfg_scale`.

    T5 reads 512 tokens as in the pipeline, 256 for schnell (the pipeline's `max_sequence_length=256`), fewer
    where its tokenizer's `model_max_length` says so. Padding counts: the network reads all of them.
    """

    usual_guidance = 3.5

    def __init__(self, pipe: Any, **settings: Any) -> None:
        super().__init__(pipe, pipe.transformer, **settings)
        longest = T5_LENGTH if self.embedded_guidance is not None else SCHNELL_T5_LENGTH
        self.t5_length = min(longest, pipe.tokenizer_2.model_max_length)

    def _encode(self, prompts: list[str]) -> Cond:
        """Fields "text" [B, length, width] from T5 and "pooled" [B, width] from CLIP."""
        text, pooled, _ = self.pipe.encode_prompt(
            prompts, device=self.device, max_sequence_length=self.t5_length
        )
        return Cond({"text": text, "pooled": pooled})

    def _velocity(self, fed: Tensor, t: Tensor, cond: Cond) -> Tensor:
        height, width = fed.shape[-2:]
        text, pooled = cond.fields["text"].to(fed.dtype), cond.fields["pooled"].to(fed.dtype)
        scale = self.embedded_guidance
        tokens = self.network(
            hidden_states=packed(fed),
            timestep=t.to(fed.dtype) / 1000,
            guidance=None if scale is None else torch.full_like(t, scale),
            pooled_projections=pooled,
            encoder_hidden_states=text,
            txt_ids=_places(text.shape[1], 0, 0, fed.device, fed.dtype),
            img_ids=_places(0, height // 2, width // 2, fed.device, fed.dtype),
            return_dict=False,
        )[0]
        return unpacked(tokens, height, width)

    def readers(self) -> list[tuple[Any, int]]:
        """T5; what CLIP says is one row for the whole prompt."""
        return [(self.pipe.tokenizer_2, self.t5_length)]

    @property
    def hands_sigmas(self) -> bool:
        """Not to a scheduler that has flow sigmas of its own (UniPC, DPM-Solver)."""
        return not self.scheduler.config.get("use_flow_sigmas", False)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(channels, height, width): a token of the network is four latents."""
        channels: int = self.pipe.transformer.config.in_channels // 4
        return (channels, *self._side(self.pipe.default_sample_size))

    @property
    def text_limit(self) -> int:
        """Tokens of a prompt that T5 reads."""
        return text_room(self.pipe.tokenizer_2, self.t5_length)

    def count_tokens(self, text: str) -> int:
        """T5 tokens of `text`."""
        return text_tokens(self.pipe.tokenizer_2, text)


@lru_cache(maxsize=16)
def _places(texts: int, height: int, width: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Where each token stands, (0, row, column): [texts or height * width, 3]; a text stands at 0."""
    if texts:
        return torch.zeros(texts, 3, device=device, dtype=dtype)
    row, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([torch.zeros_like(row), row, column], -1).flatten(0, 1).to(device, dtype)
