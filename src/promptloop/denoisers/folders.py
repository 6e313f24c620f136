"""From a folder or a hub id to a diffusers pipeline; a failure is one sentence."""

from __future__ import annotations

from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from safetensors import SafetensorError

from promptloop.complete import complete
from promptloop.names import HUB_ID, first_line
from promptloop.world import BACKBONES, weights

NEEDED = {
    "unet",
    "transformer",
    "vae",
    "scheduler",
    "tokenizer",
    "text_encoder",
    "tokenizer_2",
    "text_encoder_2",
}
FAILURES = (OSError, SafetensorError, ValueError, TypeError, KeyError, AttributeError, RuntimeError)


def source(path: str | Path) -> str:
    """`path` where it is a diffusers folder or can be a hub id, an embedded backbone's folder for its name;
    ValueError otherwise.
    """
    if not str(path).strip():
        raise ValueError("the backbone's path is empty; give a diffusers folder or a hub id")
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
    """model_index.json of the pipeline; ValueError where there is none, or it is broken."""
    try:
        said: Any = DiffusionPipeline.load_config(source)
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"{source} is neither a folder here nor a diffusers pipeline the hub gave us: "
                         f"{first_line(error)}") from error  # fmt: skip
    if not isinstance(said, dict) or "_class_name" not in said:
        raise ValueError(f"the model_index.json of {source} names no pipeline (_class_name)")
    return said


def pipeline(source: str, index: dict[str, Any], dtype: torch.dtype) -> Any:
    """The pipeline with its weights, from safetensors only. Parts that its index leaves out stay None.

    ValueError where a part or one of its tensors is not there: nothing is made up.
    """
    parts = {name: part for name, part in index.items() if isinstance(part, list)}
    absent: dict[str, Any] = {name: None for name, part in parts.items() if part[:1] in ([None], [])}
    needed = NEEDED & {*signature(getattr(diffusers, index["_class_name"])).parameters}
    if lacking := needed - (parts.keys() - absent.keys()):
        raise ValueError(f"the model_index.json of {source} leaves out {', '.join(sorted(lacking))}, which "
                         f"{index['_class_name']} needs")  # fmt: skip
    if "safety_checker" in index:
        absent |= {"safety_checker": None}
    try:
        folder = Path(source)
        if not folder.is_dir():
            folder = Path(DiffusionPipeline.download(source, use_safetensors=True, **absent))
        there = {name: part for name, part in parts.items() if name not in absent}
        for name in there:
            if not (folder / name).is_dir():
                raise ValueError(f"its part {name} is not there")
        made = {name: _network(folder / name, part, dtype) for name, part in there.items()}
        made = {name: network for name, network in made.items() if network is not None}
        return DiffusionPipeline.from_pretrained(source, dtype=dtype, use_safetensors=True, **made, **absent)
    except FAILURES as error:
        raise ValueError(f"{source} cannot be loaded: {first_line(error)}") from error


def _network(folder: Path, part: list[str], dtype: torch.dtype) -> Any:
    """The network that `part` of the index, (library, class), stands for, read in whole; None for a part
    that is no network of diffusers or transformers.
    """
    library, name = part
    kind = getattr(import_module(library), name) if library in ("diffusers", "transformers") else None
    if not (isinstance(kind, type) and issubclass(kind, torch.nn.Module)):
        return None
    told = {"dtype" if library == "transformers" else "torch_dtype": dtype}
    reads: Any = kind
    network, report = reads.from_pretrained(
        str(folder), use_safetensors=True, output_loading_info=True, **told
    )
    complete(folder, report)
    return network
