"""What is said of devices and processes that are not on the machine of the tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from promptloop.objectives.mismatch import Mismatch
from promptloop.processes import Processes
from promptloop.recipes.parts import device_named


class Mps(torch.Tensor):
    """A tensor of a device without float64: cpu() takes it from there."""

    def double(self) -> Any:
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype")

    def cpu(self) -> Any:
        return self.as_subclass(torch.Tensor)


def test_the_mismatch_of_a_device_without_float64() -> None:
    """Fails if the numbers are made float64 before they have left it."""
    told = Mismatch().measured([torch.tensor([0.05, -0.02]).as_subclass(Mps)])
    assert told["mismatch/max"] == pytest.approx(0.05) and told["mismatch/mean"] == pytest.approx(0.035)


def test_each_process_takes_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if anything is put onto "cuda" before the process has one: all would begin on the first."""
    done: list[Any] = []
    monkeypatch.setattr(torch.cuda, "set_device", done.append)
    monkeypatch.setattr(torch, "zeros", lambda *size, device: done.append(device))
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert device_named("cuda") == torch.device("cuda") and done == [3, "cuda"]
    done.clear()
    assert device_named("cpu") == torch.device("cpu") and done == ["cpu"]
    monkeypatch.delenv("LOCAL_RANK")
    done.clear()
    assert device_named("cuda") == torch.device("cuda") and done == ["cuda"]


@dataclass
class Three:
    """As accelerate's, the first of three processes; the others have one and two more."""

    process_index: int = 0
    num_processes: int = 3
    device: str = "cpu"

    def reduce(self, value: torch.Tensor, how: str) -> torch.Tensor:
        assert how == "sum"
        return self.gather(value).view(3, -1).sum(0)

    def gather(self, value: torch.Tensor) -> torch.Tensor:
        return torch.cat([value, value + 1, value + 2])


def test_a_largest_value_stays_the_largest() -> None:
    """Fails if the largest mismatch of each process is averaged: one bad process would hide among many."""
    told = Processes(Three()).means({"mismatch/mean": 0.0, "mismatch/max": 1.0, "reward": 5.0})
    assert told == {"mismatch/mean": 1.0, "mismatch/max": 3.0, "reward": 6.0}
    assert Processes().means({"mismatch/max": 1.0, "reward": 5.0}) == {"mismatch/max": 1.0, "reward": 5.0}
