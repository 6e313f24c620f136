"""What a denoiser is conditioned on: embedded text, batch first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor


@final
@dataclass(frozen=True)
class Cond:
    """Named tensors with one row per sample. Indexing picks rows; only its denoiser reads the fields.

    A family whose texts differ in length keeps them at [B, length, ...] with a "mask" [B, length], 0 =
    padding.
    """

    fields: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        lengths = {name: len(value) for name, value in self.fields.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"a Cond needs fields, all with the same number of rows; got {lengths}")

    def __len__(self) -> int:
        return len(next(iter(self.fields.values())))

    def __getitem__(self, index: Any) -> Cond:
        """Rows by LongTensor, list, slice or bool mask; always batch first, so an int is refused."""
        if isinstance(index, int):
            raise ValueError(f"cond[{index}] would lose the batch axis; write cond[[{index}]]")
        return Cond({name: value[index] for name, value in self.fields.items()})

    def take(self, index: Tensor) -> Cond:
        """The rows `index` (LongTensor)."""
        return self[index]

    def join(self, others: Iterable[Cond]) -> Cond:
        """This one's rows, then the others'."""
        return Cond.cat([self, *others])

    @staticmethod
    def cat(conds: Sequence[Cond]) -> Cond:
        """All rows in order. Shorter texts are zero-padded at the end, which needs a field "mask"."""
        names = conds[0].fields.keys()
        if any(cond.fields.keys() != names for cond in conds):
            raise ValueError(f"conds with different fields: {[sorted(cond.fields) for cond in conds]}")
        masked = "mask" in names
        return Cond({name: _cat(name, [cond.fields[name] for cond in conds], masked) for name in names})


def _cat(name: str, values: list[Tensor], masked: bool) -> Tensor:
    if all(value.shape[1:] == values[0].shape[1:] for value in values):
        return torch.cat(values)
    if not masked:
        shapes = [tuple(value.shape) for value in values]
        raise ValueError(f'texts of different length in "{name}" {shapes} need a "mask" field in the Cond')
    longest = max(value.shape[1] for value in values)
    return torch.cat([_pad(value, longest) for value in values])


def _pad(value: Tensor, length: int) -> Tensor:
    missing = value.new_zeros(value.shape[0], length - value.shape[1], *value.shape[2:])
    return torch.cat([value, missing], dim=1)
