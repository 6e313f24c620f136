"""The arithmetic floor: how long a computation would take if the device did nothing but its matrix products.

Operations are counted where they happen (torch's FlopCounterMode: matrix products, convolutions, attention;
a multiplication and an addition are two), and divided by the rate of one large matrix product measured on
the same device in the same dtype. Decoding one token reads all weights for a few rows, so it is bound by
memory instead: beside it stands the time to read the weights once at the measured rate of a large copy.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count


def attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def attention_backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value)


ON_CPU = {  # attention on a CPU, which torch's table leaves out
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward,
}
SIDES = {"cpu": 1024, "cuda": 8192}  # of the matrices: large enough that the rate no longer grows


def operations(run: Callable[[], Any]) -> int:
    """Floating point operations of `run`, its backward passes included."""
    with FlopCounterMode(display=False, custom_mapping=ON_CPU) as counter:
        run()
    return counter.get_total_flops()


def by_network(run: Callable[[], Any]) -> dict[str, int]:
    """The same by the class of the outermost network that does them."""
    with FlopCounterMode(display=False, custom_mapping=ON_CPU) as counter:
        run()
    counts = counter.get_flop_counts()
    return {name: sum(of.values()) for name, of in counts.items() if "." not in name and name != "Global"}


def wait(device: torch.device) -> None:
    """Until the device has done everything that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def best(run: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """The least seconds of `repeats` runs after one that is not timed."""
    run()
    found = []
    for _ in range(repeats):
        wait(device)
        began = time.perf_counter()
        run()
        wait(device)
        found.append(time.perf_counter() - began)
    return min(found)


@final
@dataclass(frozen=True)
class Rates:
    """What the device does in a second: matrix operations in one dtype, and bytes read and written."""

    matrix: float
    memory: float

    @staticmethod
    def of(device: torch.device, dtype: torch.dtype, repeats: int = 10) -> Rates:
        """Measured: a product of two square matrices, and a copy of 64 MB (1 GB on a GPU)."""
        side, wide = SIDES.get(device.type, SIDES["cpu"]), 2**30 if device.type == "cuda" else 2**26
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        source = torch.zeros(wide, dtype=torch.uint8, device=device)
        copy = torch.empty_like(source)
        with torch.no_grad():
            matrix = 2 * side**3 / best(lambda: a @ b, device, repeats)
            return Rates(matrix, 2 * wide / best(lambda: copy.copy_(source), device, repeats))


@final
@dataclass(frozen=True)
class Phase:
    """A part of the work: its operations, the bytes of weights it reads at least once, and its seconds."""

    name: str
    operations: int
    weights: int
    seconds: float

    def floors(self, rates: Rates) -> tuple[float, float]:
        """Seconds for the arithmetic alone, and for reading the weights once."""
        return self.operations / rates.matrix, self.weights / rates.memory

    def row(self, rates: Rates) -> dict[str, Any]:
        """As JSON; "over floor" is how many times longer it takes than the larger of the two floors."""
        arithmetic, reading = self.floors(rates)
        return {
            "phase": self.name, "operations": self.operations, "weight bytes": self.weights,
            "seconds": self.seconds, "arithmetic floor": arithmetic, "reading floor": reading,
            "over floor": self.seconds / max(arithmetic, reading),
        }  # fmt: skip


def measured(
    name: str, run: Callable[[], Any], network: torch.nn.Module | None, device: torch.device, repeats: int = 3
) -> Phase:
    """`run` counted once and timed, with the weights of `network`."""
    held = [] if network is None else [p.numel() * p.element_size() for p in network.parameters()]
    return Phase(name, operations(run), sum(held), best(run, device, repeats))
