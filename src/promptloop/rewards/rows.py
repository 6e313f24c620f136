"""Rewards that look at one picture at a time, and what they say when one of them cannot be scored."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch import Tensor

from promptloop.names import first_line
from promptloop.rewards.failed import RewardFailed


def bitmaps(images: Tensor) -> list[Image.Image]:
    """8-bit pictures of images [B, 3, H, W] in [0, 1], rounded; ValueError for another shape."""
    if images.dim() != 4 or images.shape[1] != 3:
        raise ValueError(f"images have shape {tuple(images.shape)}; rewards read [B, 3, H, W] in [0, 1]")
    pixels = (images.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)
    return [Image.fromarray(picture) for picture in pixels.permute(0, 2, 3, 1).cpu().numpy()]


def failed(reward: str, index: int, query: str, error: Exception) -> Exception:
    """The error to raise where a reward fails: it names the reward, the image and what was asked for.

    A ConnectionError stays one. Nothing becomes 0.
    """
    if isinstance(error, ConnectionError):
        return ConnectionError(f"reward {reward} of image {index} ({query!r}) failed: {first_line(error)}")
    return RewardFailed(reward, index, query, f"failed: {first_line(error)}")


def one_by_one(reward: str, score: Callable[[int], float], queries: Sequence[str]) -> Tensor:
    """[B], float32: `score` of each row number. What it raises comes back as `failed`."""
    values = []
    for k, query in enumerate(queries):
        try:
            values.append(float(score(k)))
        except Exception as error:
            raise failed(reward, k, query, error) from error
    return torch.tensor(values, dtype=torch.float32)
