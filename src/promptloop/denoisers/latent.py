"""What all denoisers over a diffusers pipeline share: latents, decoder, counting tokens."""

from __future__ import annotations

import logging
import warnings
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from promptloop.denoisers.cond import Cond
from promptloop.denoisers.denoiser import Denoiser


class LatentDenoiser(Denoiser):
    """A diffusers text-to-image pipeline with an autoencoder. Its parts are used, not copied.

    pipe: the pipeline; its LoRAs, device and dtype are used as they are. Its safety checker is not run.
    """

    def __init__(self, pipe: Any, network: nn.Module) -> None:
        self.pipe = pipe
        self.network = network

    def embed(self, prompts: Sequence[str]) -> Cond:
        """By the pipeline's encoders; a warning names each prompt that none of them reads to its end."""
        for prompt in prompts:
            if (tokens := self.count_tokens(prompt)) > self.text_limit:
                read = f"the text encoder reads {self.text_limit} of the {tokens} tokens of {prompt!r}"
                warnings.warn(read, stacklevel=2)
        with quiet("diffusers", "transformers"):  # they say the same of all prompts at once, padding included
            return self._encode(list(prompts))

    @abstractmethod
    def _encode(self, prompts: list[str]) -> Cond:
        """The prompts as the network reads them."""

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(channels, height, width) of one latent at the network's own resolution."""
        settings: Any = self.network.config
        size = settings.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return (settings.in_channels, height, width)

    @property
    def modules(self) -> list[nn.Module]:
        """The pipeline's networks."""
        return [part for part in self.pipe.components.values() if isinstance(part, nn.Module)]

    @property
    def scheduler(self) -> Any:
        """The pipeline's scheduler."""
        return self.pipe.scheduler

    def decode(self, x: Tensor, size: int | None = None) -> Tensor:
        """Clean latents [B, C, h, w] to images [B, 3, H, W] in [0, 1], float32; differentiable.

        size: resize to size x size with antialiasing, as policies want it; None keeps the decoder's size.
        """
        vae = self.pipe.vae
        latents = self._unscaled(x).to(vae.dtype)
        images = self.pipe.image_processor.denormalize(vae.decode(latents, return_dict=False)[0].float())
        if size is None or images.shape[-2:] == (size, size):
            return images
        return F.interpolate(images, (size, size), mode="bilinear", antialias=True, align_corners=False)

    def _unscaled(self, x: Tensor) -> Tensor:
        """From the network's latents to the autoencoder's."""
        return x / self.pipe.vae.config.scaling_factor


def text_room(tokenizer: Any, length: int) -> int:
    """Tokens left for the text in a sequence of `length`, its start and end marks taken off."""
    return length - tokenizer.num_special_tokens_to_add()


def text_tokens(tokenizer: Any, text: str) -> int:
    """Tokens of `text`, without start and end marks and without truncation."""
    return len(tokenizer(text, add_special_tokens=False, truncation=False, verbose=False).input_ids)


@contextmanager
def quiet(*libraries: str) -> Iterator[None]:
    """Inside, the libraries log errors only."""
    loggers = [logging.getLogger(library) for library in libraries]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
