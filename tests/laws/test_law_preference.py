"""Diffusion-DPO: ln 2 and dpo_beta / 4 at the reference, and a mean that moves to the winners."""

import math

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from promptloop.denoisers.cond import Cond
from promptloop.objectives.contract import Share
from promptloop.objectives.preference import DiffusionDPO, Pairs, diffusion_dpo, squared_error
from promptloop.schedules import Level, vp

LEVEL = Level(0.8, 0.6, 400.0)


class Shift(nn.Module):
    """The mean of `Bed`: 0, plus a real LoRA of rank 1 whose B is the one parameter, `m`. Switched off, it is
    the reference.
    """

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(1, 1, bias=False)
        inject_adapter_in_model(LoraConfig(r=1, lora_alpha=1, target_modules=["linear"]), self)
        self.requires_grad_(False)
        self.linear.weight.fill_(0.0)
        self.linear.lora_A["default"].weight.fill_(1.0)
        self.m = self.linear.lora_B["default"].weight.requires_grad_(True)

    def forward(self) -> Tensor:
        return self.linear(torch.ones(1))


class Bed:
    """E[clean | x] = m + alpha / (alpha^2 + sigma^2) (x - alpha m) of data N(m, 1)."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.network = Shift()

    def levels(self, steps: int) -> list[Level]:
        return vp(steps)

    def embed(self, prompts: list[str]) -> Cond:
        return Cond({"none": torch.zeros(len(prompts), 1)})

    def clean(self, x: Tensor, level: Level, cond: Cond) -> Tensor:
        m = self.network()
        a, s = level.alpha, level.sigma
        return m + a / (a * a + s * s) * (x - a * m)


def test_at_the_reference_the_loss_is_ln_2_and_its_gradient_beta_over_4() -> None:
    """Fails if dpo_beta / 2 is dpo_beta, or if winner and loser are swapped."""
    winner, loser = (torch.zeros(3, requires_grad=True) for _ in range(2))
    loss = diffusion_dpo(winner, loser, 40.0)
    assert torch.allclose(loss, torch.full((3,), math.log(2)))
    loss.sum().backward()
    assert torch.allclose(winner.grad, torch.full((3,), 10.0))
    assert torch.allclose(loser.grad, torch.full((3,), -10.0))


def test_epsilon_and_velocity_errors() -> None:
    """Equal to the errors of epsilon and of noise - clean written out. Fails if the weights are swapped."""
    bed, rng = Bed(), torch.Generator().manual_seed(0)
    bed.network.m.data.fill_(0.7)
    clean, noise = torch.randn(4, 5, generator=rng), torch.randn(4, 5, generator=rng)
    cond = bed.embed([""] * 4)
    x = LEVEL.alpha * clean + LEVEL.sigma * noise
    hat = bed.clean(x, LEVEL, cond)
    eps = (x - LEVEL.alpha * hat) / LEVEL.sigma
    found = squared_error(bed, clean, noise, LEVEL, cond, "epsilon")
    assert torch.allclose(found, (eps - noise).pow(2).mean(1), rtol=1e-5)
    flow = Level(0.3, 0.7, 700.0)
    x = flow.alpha * clean + flow.sigma * noise
    hat = bed.clean(x, flow, cond)
    velocity = (x - hat) / flow.sigma
    found = squared_error(bed, clean, noise, flow, cond, "velocity")
    assert torch.allclose(found, (velocity - (noise - clean)).pow(2).mean(1), rtol=1e-4)


@pytest.mark.parametrize("better", [1.0, -1.0])
def test_the_mean_moves_to_the_winners(better: float) -> None:
    """Winners lie one to the right (left) of losers, so m goes right (left). Fails if the sign is turned."""
    bed, rng = Bed(), torch.Generator().manual_seed(1)
    base = torch.randn(64, 3, generator=rng)
    pairs = Pairs(("",) * 64, base + better, base)
    objective = DiffusionDPO(bed, pairs, dpo_beta=20.0, batch=64, pairs_per_level=8, seed=3)
    objective.check(Share())
    optimizer = torch.optim.SGD(bed.network.parameters(), lr=0.05)
    losses = []
    for update in range(30):
        optimizer.zero_grad()
        batch = objective.collect(update, Share())
        made = [objective.loss(part) for part in batch.parts]
        total = sum(loss for loss, _ in made)
        total.backward()
        optimizer.step()
        losses.append(float(total.detach()))
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6)
    assert losses[-1] < losses[0] and float(bed.network.m) * better > 0.1
    assert sum(int(m["tokens"]) for _, m in made) == 64


def test_refused() -> None:
    pairs = Pairs(("a",), torch.zeros(1, 2), torch.zeros(1, 2))
    with pytest.raises(ValueError, match="dpo_beta is 0"):
        DiffusionDPO(Bed(), pairs, dpo_beta=0)
    with pytest.raises(ValueError, match="do not divide"):
        DiffusionDPO(Bed(), pairs, batch=10, pairs_per_level=4)
    with pytest.raises(ValueError, match="2 prompts, 1 winners"):
        Pairs(("a", "b"), torch.zeros(1, 2), torch.zeros(2, 2))
