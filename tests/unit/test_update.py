"""One update of the training loop, on an objective of one number."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from promptloop import checkpoint
from promptloop.objectives.contract import Batch, Objective, Share
from promptloop.resuming import add_line
from promptloop.train import Line, Training, train


@dataclass(frozen=True, eq=False)
class Of(Objective):
    """The loss is a function of the one weight and the update's number."""

    network: nn.Linear
    of: Callable[[Tensor, int], Tensor]

    def check(self, share: Share) -> None:
        pass

    def collect(self, update: int, share: Share) -> Batch:
        return Batch((update,))

    def loss(self, part: int) -> tuple[Tensor, dict[str, Tensor]]:
        return self.of(self.network.weight, part).sum(), {}


@dataclass(frozen=True, eq=False)
class Counting(Objective):
    """Its loss has the sum of all updates there have been, which it keeps itself."""

    network: nn.Linear
    sums: Tensor

    def check(self, share: Share) -> None:
        self.sums.add_(100)  # what a resumed run's check does to it must not go on

    def collect(self, update: int, share: Share) -> Batch:
        self.sums.add_(update)
        return Batch((update,))

    def loss(self, part: int) -> tuple[Tensor, dict[str, Tensor]]:
        return (self.network.weight * self.sums).sum(), {}

    def memory(self) -> dict[str, Tensor]:
        return {"sums": self.sums.clone()}

    def remember(self, kept: Mapping[str, Tensor]) -> None:
        self.sums.copy_(kept["sums"])


def falling(weight: Tensor, update: int) -> Tensor:
    """Its slope at update 1, where the weight is 1, is infinite."""
    return (weight - update).sqrt()


def square(weight: Tensor, update: int) -> Tensor:
    return weight.square()


def one_weight() -> nn.Linear:
    network = nn.Linear(1, 1, bias=False)
    torch.nn.init.ones_(network.weight)
    return network


def test_an_objective_goes_on_from_its_memory(tmp_path: Path) -> None:
    """Fails when the memory is left out of the checkpoint, or is put back before the start's check."""
    its, whole = Training(updates=4, warmup=1, save_every=1), Counting(one_weight(), torch.zeros(1))
    for run in ("whole", "parts"):
        (tmp_path / run).mkdir()
    train(whole, whole.network, its, tmp_path / "whole")
    first, later = (Counting(one_weight(), torch.zeros(1)) for _ in range(2))
    train(first, first.network, its, tmp_path / "parts", stop_at=2)
    train(later, later.network, its, tmp_path / "parts")
    assert torch.equal(later.sums, whole.sums) and torch.equal(later.network.weight, whole.network.weight)
    with pytest.raises(ValueError, match="holds sums, which Of has not"):
        train(Of(later.network, square), later.network, Training(updates=5), tmp_path / "parts")


def test_a_gradient_that_is_not_finite_stops_before_it_is_used(tmp_path: Path) -> None:
    """Fails if only the loss is looked at: clipping makes every weight nan, and the next checkpoint too."""
    network = one_weight()
    its = Training(updates=3, lr=1e-30, warmup=1, save_every=9)
    with pytest.raises(ValueError, match="gradient of update 2 is not finite; nothing was changed"):
        train(Of(network, falling), network, its, tmp_path)
    assert network.weight.item() == 1
    assert checkpoint.steps(tmp_path) == [1]


def test_an_error_in_a_later_step_of_an_update_says_that_the_earlier_stand(tmp_path: Path) -> None:
    """Fails when it says that nothing was changed, or when weights in the midst of an update are saved."""
    network = one_weight()
    its = Training(updates=3, epochs=2, lr=4.0, warmup=1, save_every=9)  # the first step takes w below 0
    with pytest.raises(ValueError, match="loss of update 1 is nan; the earlier steps of this update stand"):
        train(Of(network, falling), network, its, tmp_path)
    assert network.weight.item() < 0 and checkpoint.steps(tmp_path) == []


def test_an_error_in_a_hook_leaves_a_checkpoint_of_its_update_and_the_run_goes_on(tmp_path: Path) -> None:
    """Fails when the update before a sheet that cannot be written is lost, or its line in the log."""
    whole, parts = one_weight(), one_weight()
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    its = Training(updates=4, lr=1e-3, warmup=1, save_every=9)

    def fails(update: int, batch: Batch, line: Line) -> Line:
        if update == 2:
            raise ValueError("the sheet cannot be written")
        return {}

    train(Of(whole, square), whole, its, tmp_path / "whole")
    with pytest.raises(ValueError, match="the sheet"):
        train(Of(parts, square), parts, its, tmp_path / "parts", after=[lambda *_: {"extra": 1.0}, fails])
    assert checkpoint.steps(tmp_path / "parts") == [2]
    last = json.loads((tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["update"] == 2 and last["extra"] == 1
    again = one_weight()
    assert train(Of(again, square), again, its, tmp_path / "parts") == 4
    assert torch.equal(again.weight, whole.weight)


def test_a_log_keeps_small_numbers(tmp_path: Path) -> None:
    """Fails when numbers are rounded to decimals: a learning rate of 2e-7 would be 0."""
    add_line(tmp_path / "log", {"update": 3, "lr": 2.345678912e-7, "tokens": 12345678.0, "kl": -0.1234567})
    assert json.loads((tmp_path / "log").read_text()) == {
        "update": 3, "lr": 2.34568e-7, "tokens": 12345678, "kl": -0.123457
    }  # fmt: skip


@pytest.mark.parametrize("name", ["weight_decay", "decay_to", "lr", "average", "max_grad_norm"])
def test_a_setting_that_is_no_number_is_refused(name: str) -> None:
    """Fails when it is asked whether the value is too small, which nan never is."""
    with pytest.raises(ValueError, match=f"{name} is nan|{name} nan"):
        Training(**{name: math.nan})
