"""The number formats that weights may be kept in, by name."""

from __future__ import annotations

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def dtype_named(dtype: torch.dtype | str) -> torch.dtype:
    """The dtype itself, or the one with that name; ValueError for another, which torch may not compute in."""
    found = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if found is None or found not in DTYPES.values():
        raise ValueError(f"dtype is {dtype!r}; give {', '.join(DTYPES)}, or torch's of that name")
    return found
