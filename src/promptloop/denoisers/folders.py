"""From a folder or a hub id to a diffusers pipeline, with a LoRA where asked; a failure is one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_file

from promptloop.names import HUB_ID, LORA_CONFIG, LORA_PREFIX
from promptloop.world import BACKBONES, weights


def source(path: str | Path) -> str:
    """`path` where it is a diffusers folder or can be a hub id, an embedded backbone's folder for its name;
    ValueError otherwise.
    """
    local = Path(path).expanduser()
    if str(path) in BACKBONES and not local.exists():
        return str(weights(str(path)))
    if local.is_file():
        raise ValueError(f"{path} is a file; give the diffusers folder with model_index.json, or a hub id")
    if local.is_dir():
        if not (local / "model_index.json").is_file():
            raise ValueError(f"{path} has no model_index.json, so it is not a diffusers pipeline folder")
        return str(local)
    if not HUB_ID.fullmatch(str(path)):
        raise ValueError(f'{path} does not exist; give a diffusers folder, {", ".join(BACKBONES)} '
                         'or a hub id such as "owner/name"')  # fmt: skip
    return str(path)


def index(source: str) -> dict[str, Any]:
    """model_index.json of the pipeline; ValueError where a hub id leads to none."""
    try:
        return DiffusionPipeline.load_config(source)
    except (OSError, ValueError) as error:
        raise ValueError(f"{source} is neither a folder here nor a diffusers pipeline the hub gave us: "
                         f"{_sentence(error)}") from error  # fmt: skip


def pipeline(source: str, index: dict[str, Any], dtype: torch.dtype) -> Any:
    """The pipeline with its weights, from safetensors only. Parts that its index leaves out stay None."""
    absent = {name: None for name, part in index.items() if isinstance(part, list) and part[0] is None}
    if "safety_checker" in index:
        absent |= {"safety_checker": None}
    try:
        return DiffusionPipeline.from_pretrained(source, dtype=dtype, use_safetensors=True, **absent)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{source} cannot be loaded: {_sentence(error)}") from error


def add_lora(pipe: Any, path: str | Path) -> None:
    """Load a LoRA (diffusers or peft layout) into the pipeline. ValueError: it is absent or does not fit."""
    file = _lora_file(path)
    settings = file.with_name(LORA_CONFIG)
    before = _lora_sizes(pipe)
    try:
        if settings.is_file():
            _denoising_network(pipe).load_lora_adapter(
                {key.removeprefix(LORA_PREFIX): value for key, value in load_file(file).items()},
                prefix=None, metadata=json.loads(settings.read_text()))  # fmt: skip
        else:
            pipe.load_lora_weights(str(file.parent), weight_name=file.name, use_safetensors=True)
    except (ValueError, RuntimeError, KeyError, TypeError) as error:
        raise ValueError(f"lora {path} does not fit {type(pipe).__name__}: {_sentence(error)}") from error
    if _lora_sizes(pipe) == before:
        raise ValueError(f"lora {path} names no weights of {type(pipe).__name__}; it is for another backbone")


def _lora_file(path: str | Path) -> Path:
    local = Path(path).expanduser()
    if not local.exists():
        if not HUB_ID.fullmatch(str(path)):
            raise ValueError(f"lora {path} does not exist; give a folder, a .safetensors file or a hub id")
        try:
            wanted = ["*.safetensors", LORA_CONFIG]
            local = Path(snapshot_download(str(path), allow_patterns=wanted, ignore_patterns="*/*"))
        except (OSError, ValueError) as error:
            raise ValueError(f"lora {path} is neither here nor on the hub: {_sentence(error)}") from error
    files = [local] if local.is_file() else sorted(local.glob("*.safetensors"))
    if len(files) != 1 or files[0].suffix != ".safetensors":
        found = ", ".join(file.name for file in files) or "none"
        raise ValueError(f"lora {path} must be one .safetensors file (or a folder with one); found: {found}")
    return files[0]


def _denoising_network(pipe: Any) -> Any:
    return pipe.components.get("unet") or pipe.components["transformer"]


def _lora_sizes(pipe: Any) -> dict[str, int]:
    """How many LoRA tensors each part holds."""
    parts = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    return {name: sum("lora_" in key for key, _ in part.named_parameters()) for name, part in parts.items()}


def _sentence(error: Exception) -> str:
    """The first line of an error, without its traceback."""
    return str(error).strip().partition("\n")[0]
