"""FSDP2: between phases every process keeps its share of the weights, gradients and optimiser's state.

Drafts differ in number and length between processes, so weights are gathered for a whole phase and not layer
by layer: no process has to wait for another's forward pass. Inside a phase each holds all weights and its own
gradients; what is saved at the peak is the optimiser's state.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


@final
class Sharded:
    """`network`, divided among all processes in place (torch's `fully_shard`), block by block.

    Its parameters become DTensors; make the optimiser afterwards. It can be called inside `whole` only.
    """

    def __init__(self, network: Any, processes: int) -> None:
        mesh = init_device_mesh(network.device.type, (processes,))
        inner = network.get_base_model() if hasattr(network, "get_base_model") else network
        names = set(getattr(inner, "_no_split_modules", None) or ())
        for part in [m for m in network.modules() if type(m).__name__ in names]:
            fully_shard(part, mesh=mesh)
        fully_shard(network, mesh=mesh)
        self.network, self.processes = network, processes
        self.parts = [m for m in network.modules() if isinstance(m, FSDPModule)]
        for part in self.parts:
            part.set_requires_gradient_sync(False)

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Inside, every process has all weights, and gradients add up in each alone until `reduce`."""
        self._keep(True)
        for part in self.parts:
            part.unshard()
        try:
            yield
        finally:
            self._keep(False)
            for part in self.parts:
                part.reshard()

    def gathered(self) -> list[nn.Parameter]:
        """Inside `whole`: what is trained, whole, with this process's own gradients; in the order of the
        divided parameters.
        """
        return [p for p in self.network.parameters() if p.requires_grad]

    def reduce(self, touched: Tensor, parameters: Sequence[nn.Parameter]) -> None:
        """Inside `whole`: adds the processes' gradients up. `touched` is a number that every weight moves.

        It starts one backward pass that all processes make together; what it adds is 0. torch leaves the
        mean, since gloo knows no other scale.
        """
        for part in self.parts:
            part.set_requires_gradient_sync(True)
        (0.0 * touched).backward()
        for part in self.parts:
            part.set_requires_gradient_sync(False)
        for p in parameters:
            if p.grad is not None:
                p.grad.mul_(self.processes)

    def weights(self) -> dict[str, Tensor]:
        """What there is to save, whole: a LoRA's weights alone, or all. Every process must ask."""
        lora = hasattr(self.network, "peft_config")
        return {n: full(t) for n, t in self.network.state_dict().items() if not lora or "lora_" in n}

    def _keep(self, gathered: bool) -> None:
        for part in self.parts:
            part.set_reshard_after_forward(not gathered)
            part.set_reshard_after_backward(not gathered)


def full(value: Tensor) -> Tensor:
    """The whole of a divided tensor (all processes must ask); others as they are."""
    return value.full_tensor().clone() if isinstance(value, DTensor) else value


@torch.no_grad()
def divided_as(value: Tensor, example: Tensor) -> Tensor:
    """`value`, which every process has whole, on the device of `example` and divided as it is."""
    value = value.to(example.device)
    if isinstance(example, DTensor) and not isinstance(value, DTensor):
        return distribute_tensor(value, example.device_mesh, example.placements)
    return value
