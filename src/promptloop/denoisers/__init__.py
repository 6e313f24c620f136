"""Backbones: a diffusers pipeline seen as embed / clean / decode. diffusers loads when a backbone does."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from promptloop.denoisers.cond import Cond
from promptloop.denoisers.denoiser import Denoiser
from promptloop.names import first_line
from promptloop.precision import dtype_named

if TYPE_CHECKING:
    from promptloop.denoisers.loras import Given
    from promptloop.denoisers.memory import Offload

__all__ = ["FAMILIES", "Cond", "Denoiser", "from_pipeline", "load"]

FAMILIES = {  # pipeline class, as named in model_index.json -> the denoiser that runs it
    "StableDiffusionPipeline": "promptloop.denoisers.sd:SD",
    "StableDiffusionXLPipeline": "promptloop.denoisers.sdxl:SDXL",
    "StableDiffusion3Pipeline": "promptloop.denoisers.sd3:SD3",
    "FluxPipeline": "promptloop.denoisers.flux:Flux",
    "PixArtSigmaPipeline": "promptloop.denoisers.pixart:PixArtSigma",
    "QwenImagePipeline": "promptloop.denoisers.qwen_image:QwenImage",
    "ZImagePipeline": "promptloop.denoisers.z_image:ZImage",
}


def load(
    path: str | Path,
    *,
    dtype: torch.dtype | str = torch.float32,
    device: str | torch.device = "cpu",
    lora: Given = None,
    size: int | None = None,
    embedded_guidance: float | None = None,
    offload: Offload = "none",
    tiling: bool = False,
    slicing: bool = False,
) -> Denoiser:
    """The denoiser in a diffusers folder, on the Hugging Face hub where `path` is an "owner/name" id, or an
    embedded one by its name ("mini-unet").

    A folder never needs the network; a hub id is downloaded (once). Only safetensors weights are read. All
    weights are frozen: training turns on what it trains. A pipeline's safety checker is not loaded.

    lora: a folder or .safetensors file in the diffusers or the peft layout, a hub id, or a file on the hub
        ("owner/name/file.safetensors", which alone is downloaded); a list of them, or a mapping from each to
        its weight. They stay separate sets of weights: `with denoiser.loras(name=0.5)`.
    size: side of the images in pixels; None is what the pipeline makes unless told otherwise.
    embedded_guidance: the scale that a guidance-distilled network (FLUX.1 dev) is told; None is its usual.
    offload: "model" brings each part to the device only while it computes, "sequential" each layer.
    tiling, slicing: the decoder works on overlapping tiles, on one image at a time.
    ValueError: no such folder, no pipeline in it, an unsupported family, weights that are not safetensors, a
        lora that does not fit, a size or guidance that the family cannot have, an offload on the CPU, an
        autoencoder that has no tiling or slicing.
    """
    from promptloop.denoisers import folders, loras, memory

    dtype = dtype_named(dtype)
    memory.check(offload, device)
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {str(device)!r} cannot be used here: {first_line(error)}") from error
    found = loras.files(lora)

    source = folders.source(path)
    index = folders.index(source)
    family = _family(str(index.get("_class_name")))
    pipe = folders.pipeline(source, index, dtype)
    loras.add(pipe, found)
    memory.decode_in_parts(pipe, tiling=tiling, slicing=slicing)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False).eval()
    pipe = memory.place(pipe, device, offload)
    return family(pipe, size=size, embedded_guidance=embedded_guidance)


def from_pipeline(pipe: Any, *, size: int | None = None, embedded_guidance: float | None = None) -> Denoiser:
    """The denoiser over an existing diffusers pipeline, used as it is: weights, device, LoRAs, scheduler.

    `size` and `embedded_guidance` are as in `load`.
    """
    return _family(type(pipe).__name__)(pipe, size=size, embedded_guidance=embedded_guidance)


def _family(name: str) -> Any:
    """The denoiser class for a pipeline class name; ValueError naming the supported ones."""
    if name not in FAMILIES:
        raise ValueError(f"{name} is not a supported pipeline; supported: {', '.join(FAMILIES)}")
    module, _, attribute = FAMILIES[name].partition(":")
    return getattr(import_module(module), attribute)
