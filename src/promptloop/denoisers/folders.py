"""From a folder or a hub id to a diffusers pipeline; a failure is one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from safetensors import SafetensorError

from promptloop.names import HUB_ID, first_line
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
                         f"{first_line(error)}") from error  # fmt: skip


def pipeline(source: str, index: dict[str, Any], dtype: torch.dtype) -> Any:
    """The pipeline with its weights, from safetensors only. Parts that its index leaves out stay None."""
    absent = {name: None for name, part in index.items() if isinstance(part, list) and part[0] is None}
    if "safety_checker" in index:
        absent |= {"safety_checker": None}
    try:
        return DiffusionPipeline.from_pretrained(source, dtype=dtype, use_safetensors=True, **absent)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{source} cannot be loaded: {first_line(error)}") from error
