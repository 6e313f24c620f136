"""Released weights: read without pickle's code, loaded only where every name and shape fits."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from promptloop.names import first_line


def tensors_in(file: Path) -> dict[str, Tensor]:
    """Every tensor in a .safetensors file or one of torch.save's by its dotted name, from under "state_dict"
    where it has that; ValueError where it holds anything else.
    """
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        state = torch.load(file, map_location="cpu", weights_only=True)
        if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
            state = state["state_dict"]  # beside it a trainer keeps its step, optimizer and the like
        return dict(dotted(state))
    except (UnpicklingError, TypeError) as error:
        raise ValueError(f"{file} cannot be read as weights: it holds more than tensors") from error
    except (OSError, RuntimeError, SafetensorError, EOFError) as error:
        raise ValueError(f"{file} cannot be read as weights: {first_line(error)}") from error


def dotted(state: Any, prefix: str = "") -> list[tuple[str, Tensor]]:
    """Mappings in mappings, flat. TypeError where a leaf is no tensor."""
    if isinstance(state, Tensor) and prefix:
        return [(prefix, state.detach())]
    if not isinstance(state, Mapping):
        raise TypeError(prefix)
    return [row for name, part in state.items() for row in dotted(part, f"{prefix}.{name}".strip("."))]


def fill(made: nn.Module, tensors: Mapping[str, Tensor], source: str, name: str) -> None:
    """Loads the tensors, cast to what `made` is; ValueError where some are missing, surplus or misshapen."""
    known = made.state_dict()
    odd = (n for n in known.keys() & tensors.keys() if known[n].shape != tensors[n].shape)
    for what, names in (
        ("lacks", sorted(known.keys() - tensors.keys())),
        ("has left over", sorted(tensors.keys() - known.keys())),
        ("has another shape of", sorted(odd)),
    ):
        if names:
            raise ValueError(f"{source} {what} {len(names)} tensors of {name}, the first {names[0]!r}")
    made.load_state_dict(dict(tensors))


def blocks(tensors: Mapping[str, Tensor], pattern: str) -> int:
    """One more than the highest number that `pattern` finds in the names."""
    numbers = [int(found[1]) for name in tensors if (found := re.fullmatch(pattern, name))]
    if not numbers:
        raise KeyError(pattern)
    return 1 + max(numbers)
