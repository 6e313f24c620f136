"""What a reward is, the one way to ask it, and how it fails."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from promptloop.ledger import count
from promptloop.rewards.failed import RewardFailed
from promptloop.rewards.known import KNOWN


class Reward(Protocol):
    """Images [B, 3, H, W] in [0, 1] and the user's queries to [B]; higher is better, on its own raw scale.

    The queries are what the user asked, never a refined prompt. An attribute `differentiable` = True says
    that gradients flow to the images; `stochastic` = True that the same image and query may get another value
    (by chance, or from what else is in the batch), so that no value of it may be kept; `compares` = True that
    it is from what else is in the batch.
    """

    def __call__(self, images: Tensor, queries: Sequence[str]) -> Tensor: ...


def name_of(reward: Any) -> str:
    """What errors call it: as it calls itself, or as it is asked for by name, or its class."""
    made = f"{type(reward).__module__}:{type(reward).__qualname__}"
    known = (name for name, row in KNOWN.items() if row.made == made)
    return str(getattr(reward, "__name__", None) or next(known, type(reward).__name__))


def scored(reward: Reward, images: Tensor, queries: Sequence[str]) -> Tensor:
    """The rewards [B], float32, on the CPU. RewardFailed (a ValueError) naming the reward, the image and its
    query where a value is missing or not finite, or the reward raises; memory that ends is told as it is.
    """
    count(rewards=len(images) * getattr(reward, "calls", 1))
    return checked(reward, answered(reward, images, queries).detach().float().cpu(), queries)


def asked(reward: Reward, images: Tensor, queries: Sequence[str]) -> Tensor:
    """What the reward answers, unchecked; gradients flow to the images where it lets them."""
    count(rewards=len(images) * getattr(reward, "calls", 1))
    return torch.as_tensor(reward(images, queries))


def answered(reward: Reward, images: Tensor, queries: Sequence[str]) -> Tensor:
    """What the reward answers, unchecked; what it raises becomes RewardFailed, of the image it is about."""
    try:
        return torch.as_tensor(reward(images, queries))
    except Exception as error:
        if isinstance(error, RewardFailed) or of_memory(error):
            raise
        raise blamed(error, reward, images, queries) from error


def checked(reward: Reward, values: Tensor, queries: Sequence[str]) -> Tensor:
    """The values; ValueError unless they are one finite number for each query."""
    if values.shape != (len(queries),):
        first = f"; the first is of {queries[0]!r}" if len(queries) else ""
        raise ValueError(
            f"reward {name_of(reward)} gave shape {tuple(values.shape)} for {len(queries)} images; one "
            f"each{first}"
        )
    broken = (~values.isfinite()).nonzero()
    if len(broken):
        k = int(broken[0, 0])
        raise RewardFailed(name_of(reward), k, queries[k], f"is {values[k].item()}; it is not replaced by 0")
    return values


def of_memory(error: BaseException) -> bool:
    """Whether memory ended, which is told elsewhere, with what to lower."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "memory" in str(error)


def blamed(error: Exception, reward: Reward, images: Tensor, queries: Sequence[str]) -> ValueError:
    """The error with the image that brings it about, found by asking for each by itself.

    A connection is not tried image by image: it failed for all.
    """
    why = f"raised {type(error).__name__}: {error}"
    if len(images) != len(queries):
        return ValueError(f"reward {name_of(reward)} {why}")
    alone = len(queries) > 1 and not isinstance(error, OSError) and not getattr(reward, "compares", False)
    for k in range(len(queries) if alone else 0):
        try:
            reward(images[k : k + 1], queries[k : k + 1])
        except Exception as own:
            if isinstance(own, RewardFailed):
                return own.at(k)
            return RewardFailed(name_of(reward), k, queries[k], f"raised {type(own).__name__}: {own}")
    if len(queries) == 1:
        return RewardFailed(name_of(reward), 0, queries[0], why)
    first = f" ({queries[0]!r} and {len(queries) - 1} more)" if len(queries) else ""
    return ValueError(f"reward {name_of(reward)} of {len(queries)} images{first} {why}")
