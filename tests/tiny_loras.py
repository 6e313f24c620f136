"""Loud random LoRAs for the tiny pipelines, written as diffusers' training scripts and as peft write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

TARGETS = {"network": ["to_q", "to_v", "to_out.0"], "text": ["q_proj", "v_proj", "fc1"]}


def layers(part: Any, targets: list[str], seed: int, rank: int, alpha: int) -> tuple[dict[str, Any], Any]:
    """The tensors of a random LoRA of `part`, which is left as it was, and its settings."""
    tuned = get_peft_model(part, LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in tuned.named_parameters():
            if "lora_" in name:
                value.copy_(0.3 * torch.randn(value.shape, generator=generator))
    prefix = "base_model.model."
    tensors = {
        key.removeprefix(prefix): value.detach().clone().contiguous()
        for key, value in get_peft_model_state_dict(tuned).items()
    }
    settings = tuned.peft_config["default"]
    tuned.unload()
    return tensors, settings


def write(pipe: Any, folder: Path, layout: str, *, seed: int, rank: int = 2, alpha: int = 6,
          texts: tuple[str, ...] = ()) -> Path:  # fmt: skip
    """A LoRA on the pipeline's network and, in the diffusers layout, on the text encoders named."""
    part = "unet" if "unet" in pipe.components else "transformer"
    network = getattr(pipe, part)
    if layout == "peft":
        tensors, settings = layers(network, TARGETS["network"], seed, rank, alpha)
        from safetensors.torch import save_file

        settings.base_model_name_or_path = "base"
        folder.mkdir(parents=True, exist_ok=True)
        settings.save_pretrained(folder)
        named = {f"base_model.model.{key}": value for key, value in tensors.items()}
        save_file(named, folder / "adapter_model.safetensors")
        return folder
    options: dict[str, Any] = {}
    for name in (part, *texts):
        targets = TARGETS["network" if name == part else "text"]
        tensors, settings = layers(getattr(pipe, name), targets, seed, rank, alpha)
        options |= {f"{name}_lora_layers": tensors, f"{name}_lora_adapter_metadata": settings.to_dict()}
    pipe.save_lora_weights(folder, **options)
    return folder
