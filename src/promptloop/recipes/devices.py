"""Where to compute, by name."""

from __future__ import annotations

import os

import torch

from promptloop.names import first_line


def device_named(name: str) -> torch.device:
    """ "auto" is CUDA or MPS where there is one, else the CPU; of several processes each takes its own CUDA
    device. ValueError for a device that is not here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        if name == "cuda" and "LOCAL_RANK" in os.environ:  # else all begin on the first one
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} cannot be used here: {first_line(error)}") from error
    return torch.device(name)
