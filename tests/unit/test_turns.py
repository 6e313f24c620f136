"""Policy and denoiser take turns on the device: in which order they move, and that nothing else changes."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_reward import brightness
from torch import nn

from promptloop.objectives.contract import Batch, Share
from promptloop.objectives.prompts import PromptGRPO
from promptloop.processes import Processes
from promptloop.recipes.embedded import mini
from promptloop.recipes.grpo import objective_of
from promptloop.turns import DENOISER, POLICY, Turns

HERE = torch.device("cpu:0")  # the device; the place to wait is "cpu", which torch tells apart by name
SIZES = {"queries": 1, "group": 2, "denoising_steps": 3, "refinements": 2, "noise": "fresh", "window": (0, 1),
         "plan": "even"}  # fmt: skip


class Watched(nn.Module):
    """A network that writes down where it is sent."""

    def __init__(self, name: str, inside: nn.Module, log: list[tuple[str, bool]]) -> None:
        super().__init__()
        self.name, self.inside, self.log = name, inside, log

    def to(self, device: torch.device, *args: Any, **settings: Any) -> "Watched":
        self.log.append((self.name, device == HERE))
        return super().to(device, *args, **settings)


def objective(models: Sequence[str], waiting: Sequence[str], log: list[tuple[str, bool]]) -> PromptGRPO:
    settings = mini(backbone=models[1], policy=models[3], guidance=1.0, max_new_tokens=6, **SIZES)
    made = objective_of(settings, brightness, torch.device("cpu"), Processes())
    modules = {
        POLICY: [Watched(POLICY, made.policy.network, log)],
        DENOISER: [Watched(DENOISER, module, log) for module in made.denoiser.modules[:1]],
    }
    return replace(made, turns=Turns(modules, waiting, HERE))


def numbers(made: PromptGRPO) -> tuple[Batch, list[torch.Tensor]]:
    batch = made.collect(0, Share())
    for part in batch.parts:
        made.loss(part)[0].backward()
    return batch, [p.grad for p in made.policy.network.parameters() if p.grad is not None]


@pytest.mark.parametrize("waiting", [(POLICY,), (DENOISER,), (POLICY, DENOISER)], ids=str)
def test_who_waits_is_moved_out_first_and_nothing_else_changes(
    models: list[str], waiting: tuple[str, ...]
) -> None:
    """Fails when the one comes in before the other is out, a refinement is written in the wrong turn, the
    update finds the policy away, or a number depends on it.
    """
    log: list[tuple[str, bool]] = []
    made, plain = objective(models, waiting, log), objective(models, (), [])
    batch, grads = numbers(made)
    turns = [POLICY, DENOISER, POLICY, DENOISER, POLICY, DENOISER, POLICY]  # denoise, write twice, update
    wanted: list[tuple[str, bool]] = []
    for side in turns:
        other = DENOISER if side == POLICY else POLICY
        wanted += [(other, False)] if other in waiting else []
        wanted += [(side, True)] if side in waiting else []
    assert log == wanted
    there, told = numbers(plain)
    assert torch.equal(batch.shown.images, there.shown.images) and torch.equal(
        batch.shown.rewards, there.shown.rewards
    )
    assert len(grads) > 4 and all(torch.equal(a, b) for a, b in zip(grads, told, strict=True))


def test_a_turn_is_given_back_where_something_fails() -> None:
    log: list[tuple[str, bool]] = []
    turns = Turns({POLICY: [Watched(POLICY, nn.Linear(1, 1), log)]}, (POLICY,), HERE)
    with pytest.raises(RuntimeError, match="full"), turns(DENOISER):
        assert log == [(POLICY, True), (POLICY, False)]
        raise RuntimeError("full")
    assert turns.turn == POLICY and log[-1] == (POLICY, True)
