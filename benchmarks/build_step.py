"""Processor time of a training step of the embedded backbones: float32 against bfloat16 products.

    OMP_NUM_THREADS=1 python benchmarks/build_step.py [--steps 10]

"autocast": convolutions and matrix products in bfloat16. "attention in float32": that, but for attention,
whose backward pass in bfloat16 is slow on a CPU. Forward and backward pass of a batch of 32, without the
optimiser; medians. Other processes on the machine lengthen processor time too: compare within one run.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline
from torch import Tensor
from torch.overrides import TorchFunctionMode

from promptloop.world import weights
from promptloop.world.backbones import BATCH, KINDS

TEXT = "two red circles left of a blue star"


class Float32Attention(TorchFunctionMode):
    """Attention in float32, whatever it is given."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        named = {key: wide(value) for key, value in (kwargs or {}).items()}
        with torch.autocast("cpu", enabled=False):
            return func(*map(wide, args), **named)


def wide(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


@contextmanager
def mixed() -> Iterator[None]:
    with Float32Attention(), torch.autocast("cpu", torch.bfloat16):
        yield


WAYS: dict[str, Any] = {
    "float32": nullcontext,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast, attention in float32": mixed,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--steps", type=int, default=10)
    steps = parser.parse_args().steps
    torch.set_num_threads(1)
    for kind, (_, loss) in KINDS.items():
        pipe: Any = DiffusionPipeline.from_pretrained(weights(kind), dtype=torch.float32)
        network = getattr(pipe, "unet", None) or pipe.transformer
        for name in ("text_encoder", "text_encoder_2", "text_encoder_3"):
            if getattr(pipe, name, None) is not None:
                getattr(pipe, name).requires_grad_(False).eval()
        network.train()
        for name, way in WAYS.items():
            spent = []
            for k in range(steps + 3):  # kernels are made in the first
                draw = torch.Generator().manual_seed(k)
                x, noise = (torch.randn(BATCH, 4, 16, 16, generator=draw) for _ in range(2))
                began = time.process_time()
                with way():
                    found = loss(pipe, x, [TEXT] * BATCH, noise, torch.rand(BATCH, generator=draw))
                found.backward()
                network.zero_grad(set_to_none=True)
                spent.append(time.process_time() - began)
            print(f"{kind}, {name}: {median(spent[3:]):.2f} s", flush=True)


if __name__ == "__main__":
    main()
