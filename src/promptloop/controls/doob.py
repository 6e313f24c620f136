"""DOIT: the Doob correction for a black-box reward, from simulated next steps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor

from promptloop.controls.increments import Steered, check_pairs, opposites
from promptloop.controls.plan import place
from promptloop.controls.strength import Strength, strength
from promptloop.ledger import count
from promptloop.rewards.contract import Reward, scored
from promptloop.sample import State, decoded
from promptloop.schedules import Level
from promptloop.solvers import Denoise


@final
@dataclass(frozen=True)
class DOIT(Steered):
    """Doob-oriented inference-time transformation (arXiv 2602.16198): scale times an estimate of grad log h.

    At each step `samples` next points are drawn from the DDIM(eta) step, in opposite pairs; their estimates,
    with the noise estimate of the step, are decoded and scored, and the noises are averaged with the weights
    softmax(reward / tau): standardise=True divides by the spread of a sample's rewards first, so that shift
    and scale of the reward do not matter. The average is pulled back through the step's mean: the reward is
    a black box, the denoiser is not, one evaluation with its backward pass.

    Its standard error is about 1 / (std sqrt(samples)): small eta or few samples are noisy. eta = 0 has no
    simulated steps and is refused; the last step to a noiseless image is left alone. With standardise=False
    and tau = 1 / lambda the target is p(x0) exp(lambda reward) at scale 1; estimates made with the old noise
    overshoot it at high noise (docs/methods/doit.md).
    """

    reward: Reward
    scale: Strength = 0.5
    tau: float = 0.5
    samples: int = 16
    eta: float = 1.0
    standardise: bool = True
    window: tuple[float, float] = (0.0, 1.0)
    form: Literal["estimate"] = "estimate"  # the mean form would need a second evaluation for nothing
    at_once: int | None = None

    def __post_init__(self) -> None:
        self._check()
        check_pairs(self.samples)
        if not 0 < self.eta <= 1:
            raise ValueError(f"eta is {self.eta}; next steps are drawn with it: give a number in (0, 1]")
        if not self.tau > 0:
            raise ValueError(f"tau is {self.tau}; give a number above 0")

    def start(self, state: State) -> State:
        return super().start(state).remember(**{"doit seeds": state.seeds})  # copies keep them: rescore

    def increment(
        self, denoise: Denoise, state: State, x: Tensor, level: Level, cond: Any
    ) -> tuple[Tensor, Tensor]:
        after = state.run.levels[place(state) + 1]
        kept = level.alpha * after.sigma / (after.alpha * level.sigma)
        std = self.eta * after.sigma * math.sqrt(max(1 - kept**2, 0.0))
        outside = torch.is_grad_enabled()
        with torch.enable_grad():
            point = x.detach().requires_grad_()
            clean = denoise(point, level, cond)
            noise = (point - level.alpha * clean) / level.sigma
            mean = after.alpha * clean + math.sqrt(max(after.sigma**2 - std**2, 0.0)) * noise
        if std == 0:
            return (clean if outside else clean.detach()), torch.zeros_like(x)
        drawn = opposites(state, x, self.samples, "doit")
        ends = (mean.detach() + std * drawn - after.sigma * noise.detach()) / after.alpha
        weights = self._weights(state, ends).view(len(drawn), -1, *[1] * (x.ndim - 1))
        count(backwards=len(x))
        (g,) = torch.autograd.grad(mean, point, (weights * drawn).sum(0) / std, retain_graph=outside)
        return (clean if outside else clean.detach()), strength("scale", self.scale, state) * g.detach()

    @torch.no_grad()
    def _weights(self, state: State, ends: Tensor) -> Tensor:
        """[samples, B], summing to 1 for each sample of the batch."""
        flat = ends.flatten(0, 1)
        values = []
        for rows in torch.arange(len(flat)).split(self.at_once or len(flat)):
            images = decoded(state.run.denoiser, flat[rows.to(flat.device)])
            queries = [state.queries[int(i) % ends.shape[1] % len(state)] for i in rows]
            values.append(scored(self.reward, images, queries))
        told = torch.cat(values).reshape(ends.shape[:2]).to(ends)
        if self.standardise:
            told = (told - told.mean(0)) / told.std(0).clamp(min=1e-12)
        return (told / self.tau).softmax(0)
