"""What all denoisers over a diffusers pipeline share: latents, decoder, counting tokens."""

from __future__ import annotations

import logging
import warnings
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from promptloop.denoisers import loras, memory
from promptloop.denoisers.cond import Cond
from promptloop.denoisers.denoiser import Denoiser
from promptloop.schedules import suits


class LatentDenoiser(Denoiser):
    """A diffusers text-to-image pipeline with an autoencoder. Its parts are used, not copied.

    pipe: the pipeline; its LoRAs, device and dtype are used as they are. Its safety checker is not run.
    size: side of the images in pixels; None is the side that the pipeline makes unless told otherwise.
    embedded_guidance: the scale that a guidance-distilled network is told (None: the family's usual one).
        Others are told none, and ValueError where one is given.
    """

    usual_guidance: float | None = None  # what the pipeline tells a guidance-distilled network by default
    patch: int = 1  # side of the squares of latents that are one token

    def __init__(
        self,
        pipe: Any,
        network: nn.Module,
        *,
        size: int | None = None,
        embedded_guidance: float | None = None,
    ) -> None:
        suits(pipe.scheduler, self.flow, f"a {type(pipe).__name__}")
        self.pipe = pipe
        self.network = network
        settings: Any = network.config
        told = settings.get("guidance_embeds", False)
        if embedded_guidance is not None and not told:
            raise ValueError(
                f"embedded_guidance is {embedded_guidance}, but this {type(pipe).__name__} is not distilled "
                "on a guidance scale; use the control CFG(scale), on the command line --guidance"
            )
        if embedded_guidance is not None and not 0 <= embedded_guidance < float("inf"):
            raise ValueError(f"embedded_guidance is {embedded_guidance}; it must be a finite number from 0")
        scale = self.usual_guidance if embedded_guidance is None else embedded_guidance
        self.embedded_guidance = scale if told else None
        unit = pipe.vae_scale_factor * self.patch
        if size is not None and (not isinstance(size, int) or size < unit or size % unit):
            raise ValueError(f"size is {size!r}; {type(pipe).__name__} makes images of a multiple of {unit}")
        self.size = size

    def embed(self, prompts: Sequence[str]) -> Cond:
        """By the pipeline's encoders; a warning names each prompt that none of them reads to its end."""
        for prompt in prompts:
            if (tokens := self.count_tokens(prompt)) > self.text_limit:
                read = f"the text encoder reads {self.text_limit} of the {tokens} tokens of {prompt!r}"
                warnings.warn(read, stacklevel=2)
        memory.release(self.pipe)
        with quiet("diffusers", "transformers"):  # they say the same of all prompts at once, padding included
            return self._encode(list(prompts))

    @abstractmethod
    def _encode(self, prompts: list[str]) -> Cond:
        """The prompts as the network reads them."""

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(channels, height, width) of one latent: `size`, or the network's own resolution."""
        settings: Any = self.network.config
        return (settings.in_channels, *self._side(settings.sample_size))

    def _side(self, usual: int | Sequence[int]) -> tuple[int, int]:
        """Height and width of a latent: of `size` where it was given, else `usual`."""
        if self.size is not None:
            usual = self.size // self.pipe.vae_scale_factor
        height, width = (usual, usual) if isinstance(usual, int) else usual
        return height, width

    # --- LoRAs and memory

    @property
    def lora_weights(self) -> dict[str, float]:
        """Name -> weight in force of each LoRA; 0 where it is off."""
        return loras.weights(self.pipe)

    @contextmanager
    def loras(self, weights: Mapping[str, float] | None = None, /, **named: float) -> Iterator[None]:
        """Inside, these LoRAs act with these weights, in network and text encoders, and all others are off.

        `with denoiser.loras(): ...` is the backbone without LoRAs, bit for bit. Afterwards, and after an
        error, all is as before. ValueError for a name that is not there.
        """
        parts = [part for part in self.pipe.components.values() if isinstance(part, nn.Module)]
        with loras.switched(parts, {**(weights or {}), **named}):
            yield

    @property
    def device(self) -> torch.device:
        """Where the network computes, which with offload is not where its weights wait."""
        if memory.offload_of(self.pipe, self.network) == "none":
            return super().device
        return self.pipe._execution_device

    def smaller(self, batch: int) -> list[str]:
        height, width = (side * self.pipe.vae_scale_factor for side in self.latent_shape[-2:])
        more = memory.ways_out(self.pipe, self.network, self.device)
        return [*super().smaller(batch)[:-1], *more, f"the image size (now {width} x {height})"]

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
        pixels = self._pixels(self._unscaled(x).to(vae.dtype)).float()
        images = self.pipe.image_processor.denormalize(pixels)
        memory.release(self.pipe)
        if size is None or images.shape[-2:] == (size, size):
            return images
        return F.interpolate(images, (size, size), mode="bilinear", antialias=True, align_corners=False)

    def _pixels(self, latents: Tensor) -> Tensor:
        """The autoencoder's images [B, 3, H, W] in [-1, 1]."""
        return self.pipe.vae.decode(latents, return_dict=False)[0]

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
def quiet(*libraries: str, level: int = logging.ERROR) -> Iterator[None]:
    """Inside, the libraries log nothing below `level`."""
    loggers = [logging.getLogger(library) for library in libraries]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(level)
    try:
        yield
    finally:
        for logger, before in zip(loggers, levels, strict=True):
            logger.setLevel(before)
