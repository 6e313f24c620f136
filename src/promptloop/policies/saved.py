"""What a saved policy says of itself beside its weights, in the generation_config of its folder."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.utils import GENERATION_CONFIG_NAME

from promptloop.complete import some
from promptloop.denoisers.fits import apart
from promptloop.names import LORA_CONFIG
from promptloop.policies.quantize import Quantize, quantized

IMAGE_SIZE, QUANTIZE = "image_size", "quantize"  # our names in it


def of_lora(folder: str | Path) -> GenerationConfig | None:
    """What is said of the LoRA in a folder; None where nothing is. ValueError for a folder without LoRA."""
    if not (Path(folder) / "adapter_model.safetensors").is_file():
        raise ValueError(f"{folder} has no adapter_model.safetensors; other formats are not read")
    there = (Path(folder) / GENERATION_CONFIG_NAME).is_file()
    return GenerationConfig.from_pretrained(str(folder)) if there else None


def whole(network: Any, folder: str | Path) -> None:
    """ValueError unless the LoRA on `network` got all its tensors from the folder, and the folder has no
    others: peft itself leaves what is lacking at its start, which is a LoRA that does nothing. Tensors are
    known by their values, for peft may give them other names.
    """
    from peft import get_peft_model_state_dict
    from peft.utils import load_peft_weights

    held = load_peft_weights(str(folder), device="cpu")
    held = {name: value for name, value in held.items() if "lora_" in name}  # new words' rows may lie beside
    there = get_peft_model_state_dict(network, save_embedding_layers=False)
    surplus, lost = apart(held, {name: value for name, value in there.items() if "lora_" in name})
    if lost:
        raise ValueError(f"the LoRA {folder} lacks {len(lost)} of the network's {len(there)} tensors "
                         f"({some(sorted(lost))}); copy or download it again")  # fmt: skip
    if surplus:
        raise ValueError(f"the LoRA {folder} has {len(surplus)} tensors that find no place "
                         f"({some(sorted(surplus))}); it is for another model")  # fmt: skip


def as_trained(
    quantize: Quantize | None,
    said: GenerationConfig | None,
    dtype: torch.dtype,
    device: str | torch.device,
) -> tuple[Quantize, dict[str, Any]]:
    """How the weights are kept, as asked or (None) as those that the LoRA was trained over, and what
    `from_pretrained` is told for it.
    """
    if quantize is not None or said is None:
        return quantize or "none", quantized(quantize or "none", dtype, device)
    kept: Quantize = said.to_dict().get(QUANTIZE) or "none"
    try:
        return kept, quantized(kept, dtype, device)
    except ValueError as error:
        raise ValueError(f"the LoRA was trained over weights in four bits: {error} (or take the whole ones: "
                         "load_policy(..., quantize='none'))") from error  # fmt: skip


def in_order(folder: Path) -> None:
    """Sorts the names of layers in a LoRA's settings, which peft keeps in a set: the same file every time."""
    file = folder / LORA_CONFIG
    found = json.loads(file.read_text(encoding="utf-8"))
    for name in ("target_modules", "exclude_modules", "modules_to_save"):
        if isinstance(found.get(name), list):
            found[name] = sorted(found[name])
    file.write_text(json.dumps(found, indent=2, sort_keys=True), encoding="utf-8")


def write(
    folder: Path, says: GenerationConfig, length: int, image_size: int | None, quantize: Quantize
) -> None:
    """How long the drafts may be, how large the pictures, and how the weights are kept, beside `says`."""
    says = copy.deepcopy(says)
    says.max_new_tokens = length
    for name, value in {IMAGE_SIZE: image_size, QUANTIZE: None if quantize == "none" else quantize}.items():
        if value is not None:
            setattr(says, name, value)
    says.save_pretrained(folder)
