"""A denoiser that computes equal rows once: groups of samples are one trajectory up to some draft."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from promptloop.denoisers.cond import Cond
from promptloop.denoisers.denoiser import Denoiser
from promptloop.schedules import Level


@final
@dataclass(frozen=True, eq=False)
class Once(Denoiser):
    """`denoiser`, given each distinct row of latent and conditioning once; the answer is laid out again.

    A row's answer is what it is in a smaller batch: the same up to the rounding of the backend's kernels.
    """

    denoiser: Denoiser

    def clean(self, x: Tensor, level: Level, cond: Cond) -> Tensor:
        first, place = distinct(x, *cond.fields.values())
        if len(first) == len(x):
            return self.denoiser.clean(x, level, cond)
        return self.denoiser.clean(x[first], level, cond[first])[place]

    def decode(self, x: Tensor, size: int | None = None) -> Tensor:
        first, place = distinct(x)
        return self.denoiser.decode(x[first], size)[place]

    # --- the rest is the denoiser's

    def guided(self, x: Tensor, level: Level, without: Tensor, within: Tensor, scale: float) -> Tensor:
        return self.denoiser.guided(x, level, without, within, scale)

    @property
    def network(self) -> nn.Module:  # type: ignore[override]
        return self.denoiser.network

    @property
    def modules(self) -> list[nn.Module]:
        return self.denoiser.modules

    @property
    def latent_shape(self) -> tuple[int, ...]:
        return self.denoiser.latent_shape

    def embed(self, prompts: Sequence[str]) -> Cond:
        return self.denoiser.embed(prompts)

    def without(self) -> Cond:
        return self.denoiser.without()

    @property
    def text_limit(self) -> int:
        return self.denoiser.text_limit

    def readers(self) -> list[tuple[Any, int]]:
        return self.denoiser.readers()

    def as_read(self, text: str) -> str:
        return self.denoiser.as_read(text)

    def count_tokens(self, text: str) -> int:
        return self.denoiser.count_tokens(text)

    @property
    def scheduler(self) -> Any | None:
        return self.denoiser.scheduler

    @property
    def scheduler_options(self) -> dict[str, Any]:
        return self.denoiser.scheduler_options

    @property
    def device(self) -> torch.device:
        return self.denoiser.device

    def smaller(self, batch: int) -> list[str]:
        return self.denoiser.smaller(batch)

    def levels(self, steps: int) -> list[Level]:
        return self.denoiser.levels(steps)

    def noise(self, seeds: Sequence[int]) -> Tensor:
        return self.denoiser.noise(seeds)


def distinct(*tensors: Tensor) -> tuple[Tensor, Tensor]:
    """(first, place): where each distinct row stands first, and for every row which of these it equals.

    Rows are equal where they are so in all `tensors` [B, ...], bit for bit. Later tensors are looked at only
    where two rows of the first are equal.
    """
    keys: list[tuple[bytes, ...]] = [()] * len(tensors[0])
    for tensor in tensors:
        rows = tensor.detach().reshape(len(tensor), -1).contiguous().view(torch.uint8).cpu().numpy()
        keys = [(*key, row.tobytes()) for key, row in zip(keys, rows, strict=True)]
        if len(set(keys)) == len(keys):
            break
    found = {key: k for k, key in enumerate(dict.fromkeys(keys))}
    place = [found[key] for key in keys]
    first = [place.index(k) for k in range(len(found))]
    device = tensors[0].device
    return torch.tensor(first, device=device), torch.tensor(place, device=device)
