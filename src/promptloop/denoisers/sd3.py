"""Stable Diffusion 3 and 3.5: a flow-matching transformer, two CLIP text encoders and, where loaded, T5."""

from __future__ import annotations

from typing import Any, final

from torch import Tensor

from promptloop.denoisers.cond import Cond
from promptloop.denoisers.flow import FlowDenoiser
from promptloop.denoisers.latent import text_room, text_tokens

T5_LENGTH = 256  # tokens the pipeline reads (or fills with zeros where T5 is absent) unless told otherwise


@final
class SD3(FlowDenoiser):
    """A StableDiffusion3Pipeline, with or without its third text encoder (T5).

    T5 reads 256 tokens as in the pipeline, fewer where its tokenizer's `model_max_length` says so.
    """

    longest_shift = 1.16  # this pipeline's own

    def __init__(self, pipe: Any, **settings: Any) -> None:
        self.patch = pipe.transformer.config.patch_size
        super().__init__(pipe, pipe.transformer, **settings)
        third = pipe.tokenizer_3
        self.t5_length = T5_LENGTH if third is None else min(T5_LENGTH, third.model_max_length)

    def read_at_most(self, length: int) -> None:
        self.t5_length = length

    def _encode(self, prompts: list[str]) -> Cond:
        """Fields "text" [B, length, width] and "pooled" [B, width]."""
        text, _, pooled, _ = self.pipe.encode_prompt(
            prompts, None, None, device=self.device, do_classifier_free_guidance=False,
            max_sequence_length=self.t5_length)  # fmt: skip
        return Cond({"text": text, "pooled": pooled})

    def _velocity(self, fed: Tensor, t: Tensor, cond: Cond) -> Tensor:
        text, pooled = cond.fields["text"].to(fed.dtype), cond.fields["pooled"].to(fed.dtype)
        return self.network(fed, text, pooled, t, return_dict=False)[0]

    def readers(self) -> list[tuple[Any, int]]:
        """CLIP (both have the same tokens), then T5, or zeros in its place."""
        pipe = self.pipe
        return [(pipe.tokenizer, pipe.tokenizer_max_length), (pipe.tokenizer_3, self.t5_length)]

    @property
    def hands_sigmas(self) -> bool:
        return False

    @property
    def text_limit(self) -> int:
        """Tokens of a prompt that its longest reader takes in: T5 where it is loaded, else CLIP."""
        if self.pipe.tokenizer_3 is not None:
            return text_room(self.pipe.tokenizer_3, self.t5_length)
        return text_room(self.pipe.tokenizer, self.pipe.tokenizer_max_length)

    def count_tokens(self, text: str) -> int:
        """Tokens of `text` as counted by the longest reader (T5 where it is loaded, else CLIP)."""
        return text_tokens(self.pipe.tokenizer_3 or self.pipe.tokenizer, text)
