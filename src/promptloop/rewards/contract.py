"""What a reward is, and the one way to ask it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from promptloop.ledger import count


class Reward(Protocol):
    """Images [B, 3, H, W] in [0, 1] and the user's queries to [B]; higher is better, on its own raw scale.

    The queries are what the user asked, never a refined prompt. An attribute `differentiable` = True says
    that gradients flow to the images.
    """

    def __call__(self, images: Tensor, queries: Sequence[str]) -> Tensor: ...


def scored(reward: Reward, images: Tensor, queries: Sequence[str]) -> Tensor:
    """The rewards [B], float32, on the CPU. ValueError naming the image whose reward is missing or not
    finite.
    """
    return checked(reward, asked(reward, images, queries).detach().float().cpu(), queries)


def asked(reward: Reward, images: Tensor, queries: Sequence[str]) -> Tensor:
    """What the reward answers, unchecked; gradients flow to the images where it lets them."""
    count(rewards=len(images))
    return torch.as_tensor(reward(images, queries))


def checked(reward: Reward, values: Tensor, queries: Sequence[str]) -> Tensor:
    """The values; ValueError unless they are one finite number for each query."""
    name = getattr(reward, "__name__", type(reward).__name__)
    if values.shape != (len(queries),):
        raise ValueError(
            f"reward {name} gave shape {tuple(values.shape)} for {len(queries)} images; one each"
        )
    broken = (~values.isfinite()).nonzero()
    if len(broken):
        k = int(broken[0, 0])
        raise ValueError(
            f"reward {name} of image {k} ({queries[k]!r}) is {values[k]}; it is not replaced by 0"
        )
    return values
