"""Less memory: weights that wait in main memory, a decoder in parts, and what to lower when it ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, final

import torch

Offload = Literal["none", "model", "sequential"]
OFFLOADS: tuple[Offload, ...] = ("none", "model", "sequential")
SAID = ("out of memory", "can't allocate memory", "not enough memory", "Invalid buffer size",
        "CUBLAS_STATUS_ALLOC_FAILED")  # by CUDA, the CPU, Windows, MPS (twice) and cuBLAS  # fmt: skip


@final
class OutOfMemory(torch.OutOfMemoryError):
    """Out of memory, in one sentence that says what to lower. The backend's own error is its cause."""


@contextmanager
def told(doing: str, ways: Callable[[], Sequence[str]]) -> Iterator[None]:
    """An out-of-memory error of any backend becomes OutOfMemory: while `doing` what, and the `ways` out."""
    try:
        yield
    except OutOfMemory:
        raise
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(f"out of memory while {doing}; lower {', '.join(ways())}") from error


def lowering(denoiser: Any, batch: int) -> Callable[[], list[str]]:
    """The denoiser's ways out for `batch` samples at once, asked for when they are needed."""
    return lambda: denoiser.smaller(batch)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a backend says so; only CUDA has a class for it."""
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or (isinstance(error, RuntimeError) and any(text in str(error) for text in SAID))


def check(offload: str, device: str | torch.device) -> None:
    """ValueError for an unknown offload, or one on a device that computes in main memory."""
    if offload not in OFFLOADS:
        raise ValueError(f"offload is {offload!r}; choose one of {', '.join(OFFLOADS)}")
    if offload != "none" and torch.device(device).type == "cpu":
        raise ValueError(
            f"offload {offload!r} lets weights wait in main memory, and on the device {str(device)!r} they "
            "are there already; leave it out, or give a GPU as the device"
        )


def place(pipe: Any, device: str | torch.device, offload: Offload) -> Any:
    """The pipeline on its device, its parts there only while they compute where `offload` says so."""
    if offload == "model":
        pipe.enable_model_cpu_offload(device=device)
    elif offload == "sequential":
        pipe.enable_sequential_cpu_offload(device=device)
    else:
        pipe.to(device)
    return pipe


def offload_of(pipe: Any, network: Any) -> Literal[Offload, "group"]:
    """How the weights of a pipeline wait, whoever asked for it. "group" is diffusers' group offload."""
    hooks = [hook for part in network.modules() if (hook := getattr(part, "_diffusers_hook", None))]
    if any(hook.get_hook("group_offloading") for hook in hooks):
        return "group"
    if not hasattr(network, "_hf_hook"):  # accelerate's mark
        return "none"
    return "model" if getattr(pipe, "_all_hooks", None) else "sequential"


def release(pipe: Any) -> None:
    """With offload "model" every part goes back to main memory; the next one that computes comes alone.

    diffusers does it at the end of a call. Its chain of parts lets each push out the one before it, which a
    text encoder or decoder that is wanted again in the middle of a run has not.
    """
    for hook in getattr(pipe, "_all_hooks", None) or ():
        hook.offload()


def decode_in_parts(pipe: Any, *, tiling: bool, slicing: bool) -> None:
    """Switches the autoencoder to overlapping tiles, or to one image at a time."""
    for wanted, name in ((tiling, "tiling"), (slicing, "slicing")):
        if wanted:
            kind = type(pipe.vae).__name__
            if not hasattr(pipe.vae, f"use_{name}"):
                raise ValueError(f"the autoencoder of this backbone ({kind}) has no {name}; leave it out")
            getattr(pipe.vae, f"enable_{name}")()


def ways_out(pipe: Any, network: Any, device: torch.device) -> list[str]:
    """What of a pipeline's present settings could be lowered for memory, besides batch, dtype and size."""
    ways, offload = [], offload_of(pipe, network)
    if device.type != "cpu" and offload in ("none", "model"):
        further = OFFLOADS[OFFLOADS.index(offload) + 1]
        ways.append(f"what lies on {device} by offload (now {offload!r}: try {further!r})")
    for name in ("tiling", "slicing"):
        if vars(pipe.vae).get(f"use_{name}") is False:
            ways.append(f"the decoder's share by {name} (now off)")
    return ways
