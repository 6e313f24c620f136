"""The processes of one run: which share of a batch is whose, and sums over all of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor, nn

from promptloop.objectives.contract import Share

if TYPE_CHECKING:
    from promptloop.sharding import Sharded


@final
@dataclass(frozen=True, eq=False)
class Processes:
    """Through accelerate; None: this process alone. `sharded`: the trained network is divided among them."""

    accelerator: Any = None
    sharded: Sharded | None = None

    @staticmethod
    def launched(device: torch.device) -> Processes:
        """As `accelerate launch` or `torchrun` started them; this process alone otherwise."""
        if int(os.environ.get("WORLD_SIZE", "1")) < 2:
            return Processes()
        from accelerate import Accelerator

        return Processes(Accelerator(cpu=device.type == "cpu"))

    def dividing(self, network: nn.Module) -> Processes:
        """The same, with `network` divided among them."""
        from promptloop.sharding import Sharded

        return replace(self, sharded=Sharded(network, self.share.of))

    def whole(self) -> AbstractContextManager[None]:
        """Inside, every process has the whole trained network and may call it."""
        return nullcontext() if self.sharded is None else self.sharded.whole()

    def weights(self) -> dict[str, Tensor] | None:
        """The divided network's weights, whole, for saving (all must ask); None where it has them itself."""
        return None if self.sharded is None else self.sharded.weights()

    @property
    def share(self) -> Share:
        a = self.accelerator
        return Share() if a is None else Share(a.process_index, a.num_processes)

    @property
    def main(self) -> bool:
        """Whether this one writes the files."""
        return self.share.rank == 0

    @staticmethod
    def alone(what: str) -> Processes:
        """This process alone; ValueError where several were launched."""
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ValueError(f"{what} runs in one process so far; start it without torchrun and the like")
        return Processes()

    def wait(self) -> None:
        """Until all are here."""
        if self.accelerator is not None:
            self.accelerator.wait_for_everyone()

    def total(self, value: Tensor) -> Tensor:
        """The sum over all processes."""
        return value if self.share.of == 1 else self.accelerator.reduce(value, "sum")

    def totals(self, values: dict[str, float]) -> dict[str, float]:
        """Each value's sum over all processes, which must have the same names."""
        if self.share.of == 1:
            return values
        flat = torch.tensor(list(values.values()), dtype=torch.float64, device=self.accelerator.device)
        return dict(zip(values, self.total(flat).tolist(), strict=True))

    def means(self, values: dict[str, float]) -> dict[str, float]:
        """Each value's mean over all processes; of a name that ends in "/max" the largest."""
        found = {name: total / self.share.of for name, total in self.totals(values).items()}
        return found | self._largest({name: x for name, x in values.items() if name.endswith("/max")})

    def _largest(self, values: dict[str, float]) -> dict[str, float]:
        if self.share.of == 1 or not values:
            return values
        flat = torch.tensor(list(values.values()), device=self.accelerator.device)
        rows = self.accelerator.gather(flat).view(self.share.of, -1)
        return dict(zip(values, rows.amax(0).tolist(), strict=True))

    def sum_gradients(self, parameters: Sequence[nn.Parameter], touched: Callable[[], Tensor]) -> None:
        """Adds up the gradients of all processes: their losses are parts of one batch's.

        Inside `whole`. A weight that has a gradient in none of them keeps None, on which the optimiser rests,
        as one process would. `touched()` is a number that every trained weight moves; only `sharded` asks.
        """
        if self.share.of == 1:
            return
        own = parameters if self.sharded is None else self.sharded.gathered()
        flags = torch.tensor([float(p.grad is not None) for p in own], device=self.accelerator.device)
        told = self.total(flags).tolist()
        if self.sharded is not None:
            self.sharded.reduce(touched(), parameters)
        else:
            self._summed(parameters)
        for p, processes in zip(parameters, told, strict=True):
            if not processes:
                p.grad = None

    def _summed(self, parameters: Sequence[nn.Parameter]) -> None:
        rows = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
        flat = self.total(torch.cat([row.flatten() for row in rows]))
        for p, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            p.grad = part.view_as(p).clone()
