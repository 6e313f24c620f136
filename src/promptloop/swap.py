"""Other values in the place of weights, for good or for a while."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def in_place(parameters: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Puts `weights` into `parameters` inside a `with` block; the old values come back bit for bit."""
    kept = {name: p.detach().clone() for name, p in parameters.items()}
    put(parameters, weights)
    try:
        yield
    finally:
        put(parameters, kept)


@contextmanager
def exchanged(parameters: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Both have each other's values inside a `with` block, bit for bit; one tensor more at a time is held."""
    exchange(parameters, weights)
    try:
        yield
    finally:
        exchange(parameters, weights)


@torch.no_grad()
def exchange(parameters: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    for name, p in parameters.items():
        kept = p.detach().clone()
        p.copy_(weights[name])
        weights[name].copy_(kept)


@torch.no_grad()
def put(parameters: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    """Copies `weights` into `parameters`; ValueError where their names differ."""
    if parameters.keys() != weights.keys():
        odd = sorted(parameters.keys() ^ weights.keys())[0]
        raise ValueError(f"the weights do not fit what is trained: {odd!r} is on one side only")
    for name, p in parameters.items():
        p.copy_(weights[name])
