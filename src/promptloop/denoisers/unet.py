"""What Stable Diffusion's UNets share."""

from __future__ import annotations

from typing import Any

from promptloop.denoisers.latent import text_room, text_tokens
from promptloop.denoisers.vp import VPDenoiser


class UNetDenoiser(VPDenoiser):
    """A pipeline around a UNet that reads CLIP. ValueError for one that wants a guidance scale as input."""

    def __init__(self, pipe: Any, **settings: Any) -> None:
        super().__init__(pipe, pipe.unet, **settings)
        if pipe.unet.config.time_cond_proj_dim is not None:
            raise ValueError(
                "this UNet wants a guidance scale as input (time_cond_proj_dim), which is not supported"
            )

    def readers(self) -> list[tuple[Any, int]]:
        """CLIP; SDXL's second one has the same tokens in the same places."""
        return [(self.pipe.tokenizer, self.pipe.tokenizer.model_max_length)]

    @property
    def text_limit(self) -> int:
        """Tokens of a prompt that CLIP reads (75 for the published weights)."""
        return text_room(self.pipe.tokenizer, self.pipe.tokenizer.model_max_length)

    def count_tokens(self, text: str) -> int:
        """CLIP tokens of `text`."""
        return text_tokens(self.pipe.tokenizer, text)
