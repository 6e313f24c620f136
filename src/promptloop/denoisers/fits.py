"""Whether a LoRA has gone into a pipeline in whole: every tensor of its file, and no other."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

TEXT = re.compile(r"^(text_encoder|lora_te)")
ALPHA = re.compile(r"(^|[._])alpha$")  # the one number of a layer that is no weight
DORA = re.compile(r"dora_scale|lora_magnitude_vector")


def whole(
    pipe: Any, parts: Mapping[str, Any], name: str, path: str, held: Mapping[str, Any], raw: Sequence[str]
) -> None:
    """ValueError unless the LoRA `name` holds what the file does, tensor by tensor, text encoders' included.

    `held` are the tensors as diffusers reads them, `raw` the names in the file. Tensors are known by their
    values, for every layout has other names.
    """
    kind = type(pipe).__name__
    placed = {part: {key: value for key, value in network.named_parameters() if _of(key, name)}
              for part, network in parts.items()}  # fmt: skip
    if not any(placed.values()):
        raise ValueError(f"lora {path} names no weights of {kind}; it is for another backbone")
    texts = [key for key in [*held, *raw] if TEXT.match(key)]
    if texts and not any(there for part, there in placed.items() if part.startswith("text_encoder")):
        raise ValueError(f"lora {path} has weights for a text encoder ({texts[0]}, ...), which "
                         f"diffusers cannot load into {kind}; give a LoRA of the network alone")  # fmt: skip
    if (dora := [key for key in raw if DORA.search(key)]) and not any(map(DORA.search, held)):
        raise ValueError(f"lora {path} is a DoRA ({dora[0]}), whose magnitudes diffusers leaves out")
    there = {f"{part}.{key}": value for part, found in placed.items() for key, value in found.items()}
    wanted = {
        key: value for key, value in held.items() if isinstance(value, Tensor) and not ALPHA.search(key)
    }
    lost, made_up = apart(wanted, there)
    if lost:
        raise ValueError(f"lora {path} fits {kind} in part only: {len(lost)} of its {len(wanted)} tensors "
                         f"found no place ({lost[0]}); it is for another backbone, or damaged")  # fmt: skip
    if made_up:
        raise ValueError(f"lora {path} lacks {len(made_up)} of the {len(there)} tensors of its layers "
                         f"({made_up[0]}); every lora_A needs its lora_B")  # fmt: skip


def _of(key: str, name: str) -> bool:
    """Whether a parameter called so belongs to the LoRA `name`."""
    return ".lora_" in f".{key}" and name in key.split(".")


def apart(wanted: Mapping[str, Tensor], there: Mapping[str, Tensor]) -> tuple[list[str], list[str]]:
    """The names of `wanted` that are not there, and of what is there that nobody wanted."""
    prints = {key: _print(value) for key, value in there.items()}
    left, lost = Counter(prints.values()), []
    for key, value in wanted.items():
        found = next((p for p in _rounded(value) if left[p] > 0), None)
        if found is None:
            lost.append(key)
        else:
            left[found] -= 1
    return lost, [key for key, value in prints.items() if left[value] > 0]


def _rounded(value: Tensor) -> Iterable[str]:
    """What a tensor may have become in a network of 32 or 16 bits."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        yield _print(value.to(dtype))


def _print(value: Tensor) -> str:
    """A tensor's values in 16 bits, as one short text; "nothing" where it never got any."""
    if value.is_meta:
        return "nothing"
    row = value.detach().cpu().to(torch.bfloat16).contiguous().flatten().view(torch.uint8)
    return hashlib.blake2b(row.numpy().tobytes(), digest_size=16).hexdigest()
