"""A reward for tests: how bright the image's upper half is."""

import os
import random
import signal
import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

DIMMED = 0.5  # no reward


def brightness(images: Tensor, queries: Sequence[str]) -> Tensor:
    return images[:, :, : images.shape[2] // 2].mean((1, 2, 3))


def broken(images: Tensor, queries: Sequence[str]) -> Tensor:
    values = brightness(images, queries)
    values[-1] = float("nan")
    return values


def drawing(images: Tensor, queries: Sequence[str]) -> Tensor:
    """Brightness, and what the global generators draw."""
    drawn = random.random() + float(np.random.rand())
    return brightness(images, queries) + torch.rand(len(images)) + drawn


class Tiring:
    """Brightness in the first four calls (the start's check, the queries alone, two updates), then 0."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, images: Tensor, queries: Sequence[str]) -> Tensor:
        self.calls += 1
        return brightness(images, queries) * (self.calls <= 4)


class Knocking:
    """Brightness; in the call that KNOCK says, counted from 0, this process gets the signal that it names
    ("7 SIGTERM"), or the one that launched it ("7 SIGTERM parent") does.
    """

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, images: Tensor, queries: Sequence[str]) -> Tensor:
        call, name, *whom = os.environ["KNOCK"].split()
        if self.calls == int(call) and os.environ.get("RANK", "0") == "0":
            os.kill(os.getppid() if whom else os.getpid(), signal.Signals[name])
            time.sleep(5.0 if whom else 0.0)  # what the launcher passes on comes while this update runs
        self.calls += 1
        return brightness(images, queries)
