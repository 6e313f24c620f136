"""The plain training loop of the embedded models."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from promptloop.world.fit import fit


def loss_of(network: nn.Module, step: int) -> torch.Tensor:
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
    return (network(x) - x.sum(1, keepdim=True)).square().mean()


def trained(folder, steps: int, stop_at: int | None = None) -> nn.Module:
    torch.manual_seed(0)
    network = nn.Linear(3, 1)

    def loss_at(step: int) -> torch.Tensor:
        if step == stop_at:
            raise KeyboardInterrupt
        return loss_of(network, step)

    fit(network, loss_at, steps=steps, seed=0, lr=0.05, folder=folder, warmup=5, save_every=10, log_every=10)
    return network


def test_a_stopped_run_goes_on_exactly(tmp_path):
    """Breaks if the averaged weights (or the optimiser) are left out of the checkpoint."""
    whole = trained(tmp_path / "whole", 40)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "parts", 40, stop_at=27)
    again = trained(tmp_path / "parts", 40)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))


def test_it_learns_and_logs(tmp_path):
    """Breaks if the averaged weights are not put into the network at the end, or the step is not taken."""
    network = trained(tmp_path, 400)
    assert loss_of(network, 10_000).item() < 0.05
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert log[-1]["step"] == 400 and log[-1]["loss"] < log[0]["loss"]


def test_a_run_with_other_settings_is_refused(tmp_path):
    """Breaks if the checkpoint's settings are not compared."""
    trained(tmp_path, 20)
    with pytest.raises(ValueError, match="steps 20 .now 30."):
        trained(tmp_path, 30)


def test_the_log_is_cut_at_the_step_that_is_resumed(tmp_path):
    """Breaks if lines written after the last checkpoint stay, so that they are there twice."""

    def checked(stop_at: int | None) -> None:
        torch.manual_seed(0)
        network = nn.Linear(3, 1)

        def loss_at(step: int) -> torch.Tensor:
            if step == stop_at:
                raise KeyboardInterrupt
            return loss_of(network, step)

        fit(network, loss_at, steps=40, seed=0, lr=0.05, folder=tmp_path, save_every=20, log_every=10)

    with pytest.raises(KeyboardInterrupt):
        checked(stop_at=35)
    checked(stop_at=None)
    steps = [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert steps == [10, 20, 30, 40]
