"""PixArt-Sigma: a transformer on variance-preserving latents that reads T5 through cross-attention."""

from __future__ import annotations

from typing import Any, final

from torch import Tensor

from promptloop.denoisers.cond import Cond
from promptloop.denoisers.latent import quiet, text_room, text_tokens
from promptloop.denoisers.vp import VPDenoiser

T5_LENGTH = 300  # tokens the pipeline reads unless told otherwise


@final
class PixArtSigma(VPDenoiser):
    """A PixArtSigmaPipeline.

    T5 reads 300 tokens as in the pipeline, fewer where its tokenizer's `model_max_length` says so. Prompts
    are cleaned as the pipeline does it by default: lower case, and web text tidied where beautifulsoup4 and
    ftfy are installed.
    """

    def __init__(self, pipe: Any, **settings: Any) -> None:
        self.patch = pipe.transformer.config.patch_size
        super().__init__(pipe, pipe.transformer, **settings)
        self.t5_length = min(T5_LENGTH, pipe.tokenizer.model_max_length)

    def _encode(self, prompts: list[str]) -> Cond:
        """Fields "text" [B, length, width] and "mask" [B, length]."""
        text, mask, _, _ = self.pipe.encode_prompt(
            prompts, False, device=self.device, clean_caption=True, max_sequence_length=self.t5_length
        )
        return Cond({"text": text, "mask": mask})

    def _predicted(self, fed: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """The network's first half of channels; the other, where there is one, is a variance nobody reads."""
        predicted = self.network(
            fed,
            encoder_hidden_states=cond.fields["text"],
            encoder_attention_mask=cond.fields["mask"],
            timestep=t,
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            return_dict=False,
        )[0]
        return predicted[:, : fed.shape[1]]

    def readers(self) -> list[tuple[Any, int]]:
        """T5."""
        return [(self.pipe.tokenizer, self.t5_length)]

    def as_read(self, text: str) -> str:
        """The text cleaned: in lower case, web text tidied."""
        with quiet("diffusers"):
            (cleaned,) = self.pipe._text_preprocessing(text, clean_caption=True)
        return str(cleaned)

    @property
    def text_limit(self) -> int:
        """Tokens of a prompt that T5 reads."""
        return text_room(self.pipe.tokenizer, self.t5_length)

    def count_tokens(self, text: str) -> int:
        """T5 tokens of `text`, cleaned."""
        return text_tokens(self.pipe.tokenizer, self.as_read(text))
