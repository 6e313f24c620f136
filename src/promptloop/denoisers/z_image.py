"""Z-Image and Z-Image-Turbo: one transformer over text and image tokens, a chat model as text encoder."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor

from promptloop.denoisers.cond import Cond
from promptloop.denoisers.flow import FlowDenoiser
from promptloop.denoisers.latent import text_tokens

TEXT_LENGTH = 512  # tokens the pipeline reads unless told otherwise, the chat template's included
SIDE = 1024  # pixels of its images


@final
class ZImage(FlowDenoiser):
    """A ZImagePipeline.

    CFG(scale) is the pipeline's `guidance_scale` plus one: it adds scale (prompt - negative) to the prompt's
    prediction, everybody else to the negative one's.
    """

    def __init__(self, pipe: Any, **settings: Any) -> None:
        super().__init__(pipe, pipe.transformer, **settings)
        self.template_length = text_tokens(pipe.tokenizer, self._asked(""))
        self.text_length = TEXT_LENGTH

    def read_at_most(self, length: int) -> None:
        self.text_length = length

    def _encode(self, prompts: list[str]) -> Cond:
        """Fields "text" [B, length, width] and "mask" [B, length], as long as the longest prompt."""
        texts, _ = self.pipe.encode_prompt(
            prompts, device=self.device, do_classifier_free_guidance=False,
            max_sequence_length=self.text_length)  # fmt: skip
        mask = [torch.ones(len(text), dtype=torch.long, device=text.device) for text in texts]
        pad = torch.nn.utils.rnn.pad_sequence
        return Cond({"text": pad([*texts], batch_first=True), "mask": pad(mask, batch_first=True)})

    def _velocity(self, fed: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """The network takes lists of images and of texts of any length, and time from 0 (noise) to 1."""
        lengths = cond.fields["mask"].sum(1).tolist()
        texts = [text[:n] for text, n in zip(cond.fields["text"].to(fed.dtype), lengths, strict=True)]
        images = [*fed.unsqueeze(2).unbind()]
        said = self.network(images, (1000 - t) / 1000, texts, return_dict=False)[0]
        return -torch.stack(said).squeeze(2)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(channels, height, width); the network itself knows no size."""
        channels: int = self.pipe.transformer.config.in_channels
        return (channels, *self._side(SIDE // self.pipe.vae_scale_factor))

    @property
    def text_limit(self) -> int:
        """Tokens of a prompt that are read beside the chat template."""
        return self.text_length - self.template_length

    def count_tokens(self, text: str) -> int:
        """Tokens that `text` adds to the chat template."""
        return text_tokens(self.pipe.tokenizer, self._asked(text)) - self.template_length

    def _asked(self, text: str) -> str:
        """The prompt as the pipeline puts it to the chat model."""
        asked = [{"role": "user", "content": text}]
        return str(self.pipe.tokenizer.apply_chat_template(
            asked, tokenize=False, add_generation_prompt=True, enable_thinking=True))  # fmt: skip
