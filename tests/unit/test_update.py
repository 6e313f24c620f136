"""One update of the training loop, on an objective of one number."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from promptloop.objectives.contract import Batch, Objective, Share
from promptloop.train import Training, train


@dataclass(frozen=True, eq=False)
class Falling(Objective):
    """The loss is sqrt(w - update): its slope at update 1, where w is 1, is infinite."""

    network: nn.Linear

    def check(self, share: Share) -> None:
        pass

    def collect(self, update: int, share: Share) -> Batch:
        return Batch((update,))

    def loss(self, part: int) -> tuple[Tensor, dict[str, Tensor]]:
        return (self.network.weight - part).sqrt().sum(), {}


def test_a_gradient_that_is_not_finite_stops_before_it_is_used(tmp_path: Path) -> None:
    """Fails if only the loss is looked at: clipping makes every weight nan, and the next checkpoint too."""
    network = nn.Linear(1, 1, bias=False)
    torch.nn.init.ones_(network.weight)
    its = Training(updates=3, lr=1e-30, warmup=1, save_every=1)
    with pytest.raises(ValueError, match="gradient of update 2 is not finite"):
        train(Falling(network), network, its, tmp_path)
    assert network.weight.item() == 1
