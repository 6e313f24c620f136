"""A reward's images some at a time, so that memory does not grow with the batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def in_batches(
    score: Callable[[Tensor, list[str]], Tensor], images: Tensor, queries: Sequence[str], size: int
) -> Tensor:
    """[B] from `score` of at most `size` images and their queries at once; ValueError where they are not one
    each.
    """
    if len(images) != len(queries):
        raise ValueError(f"{len(queries)} queries for {len(images)} images; give one each")
    parts = [slice(k, k + size) for k in range(0, len(images), size)]
    return torch.cat([score(images[part], list(queries[part])) for part in parts])
