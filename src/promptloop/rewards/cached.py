"""A reward that is asked once for each image and query."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor

from promptloop.rewards.contract import RewardFailed, checked, name_of


@final
class Cached:
    """`reward`, with the values of the last `size` distinct (image, query) kept: the image's numbers, its
    shape and type and the query decide, not which tensor or file they came in. ValueError for a reward that
    says it is stochastic.

    `size` values of about 200 bytes; the one unused for longest goes first. Images that ask for gradients go
    through, uncached. A value that is not finite is not kept. What is left of a batch goes to the reward as a
    smaller batch, whose values may differ in the last digits. `found` and `asked` count images.
    """

    stochastic = False

    def __init__(self, reward: Any, size: int = 4096) -> None:
        if getattr(reward, "stochastic", False):
            raise ValueError(
                f"reward {name_of(reward)} may give the same image another value, so none is kept; leave the "
                "cache away"
            )
        if size < 1:
            raise ValueError(f"size is {size}; give how many values to keep, from 1")
        self.reward, self.size, self.__name__ = reward, size, name_of(reward)
        self.found = self.asked = 0
        self._kept: OrderedDict[bytes, float] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def differentiable(self) -> bool:
        return bool(getattr(self.reward, "differentiable", False))

    def __call__(self, images: Tensor, queries: Sequence[str]) -> Tensor:
        if images.requires_grad or len(images) != len(queries):
            return torch.as_tensor(self.reward(images, queries))
        keys = [key(image, query) for image, query in zip(images, queries, strict=True)]
        with self._lock:
            values = {k: self._kept[k] for k in keys if k in self._kept}
        rows = [row for row, k in enumerate(keys) if k not in values and k not in keys[:row]]
        if rows:
            values |= {
                keys[row]: value for row, value in zip(rows, self._new(images, queries, rows), strict=True)
            }
        with self._lock:
            self.asked, self.found = self.asked + len(rows), self.found + len(keys) - len(rows)
            for k in keys:
                if values[k] - values[k] == 0:  # finite
                    self._kept[k] = values[k]
                    self._kept.move_to_end(k)
            while len(self._kept) > self.size:
                self._kept.popitem(last=False)
        return torch.tensor([values[k] for k in keys], dtype=torch.float32)

    def _new(self, images: Tensor, queries: Sequence[str], rows: list[int]) -> list[float]:
        left = [queries[row] for row in rows]
        try:
            found = torch.as_tensor(self.reward(images[rows], left)).detach().float().cpu()
        except RewardFailed as error:
            raise error.at(rows[error.index]) from error
        return (found if found.shape == (len(rows),) else checked(self, found, left)).tolist()


def key(image: Tensor, query: str) -> bytes:
    """What stands for this image and query."""
    pixels = image.detach().contiguous().cpu()
    said = hashlib.sha256(f"{pixels.dtype} {tuple(pixels.shape)}\n".encode())
    said.update(pixels.view(torch.uint8).numpy().tobytes())
    said.update(query.encode("utf-8", errors="surrogatepass"))
    return said.digest()
