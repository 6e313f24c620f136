"""Guidance by gradients: a score increment g, and how it reaches the estimate or the step's mean.

At x = alpha clean + sigma noise the score is -noise / sigma, so that score + g is, at the same x,
    clean + sigma^2 / alpha g,    noise - sigma g,    v or velocity - (sigma / alpha) scale g
with scale = hypot(alpha, sigma) for v and alpha + sigma for a velocity; a Gaussian step's mean moves by
std^2 g. Only the first and the last are needed here: what a network predicts becomes the clean estimate in
its denoiser and nowhere else.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from promptloop.controls.strength import Strength, check_strength, check_window, strength, within
from promptloop.ledger import count
from promptloop.rewards.contract import Reward, asked, checked
from promptloop.sample import Control, Draw, State, Transition, answers, decoded
from promptloop.schedules import Level
from promptloop.solvers import Denoise

Form = Literal["estimate", "mean"]  # what a score increment moves: the estimate, or the mean of the step
Through = Literal["network", "noise"]  # how x reaches the estimate: through it all, or with the noise held


def toward(clean: Tensor, level: Level, increment: Tensor) -> Tensor:
    """The clean estimate [B, ...] whose score at `level` is larger by `increment` [B, ...]; alpha > 0."""
    return clean + level.sigma**2 / level.alpha * increment


def ascent(
    reward: Reward, state: State, clean: Tensor, *, at_once: int | None = None
) -> tuple[Tensor, Tensor]:
    """Rewards [B] of the decoded estimates for the queries, and each one's own gradient in `clean` [B, ...].

    `at_once` samples are decoded together, which bounds the memory and changes no gradient. ValueError,
    naming the sample, for a reward or gradient that is not finite or does not depend on the image.
    """
    queries = [state.queries[i % len(state)] for i in range(len(clean))]
    values, slopes = [], []
    for rows in torch.arange(len(clean)).split(at_once or len(clean)):
        with torch.enable_grad():
            point = clean[rows.to(clean.device)].detach().requires_grad_()
            images = decoded(state.run.denoiser, point)
            value = asked(reward, images, [queries[i] for i in rows.tolist()])
            if not value.requires_grad:
                raise ValueError(f"{_name(reward)} says it is differentiable, but no gradient reaches it")
            (slope,) = torch.autograd.grad(value.float().sum(), point)  # the sum: a mean would divide by B
        values.append(value.detach().float())
        slopes.append(slope.float())
    told, slope = checked(reward, torch.cat(values), queries), torch.cat(slopes)
    broken = (~slope.flatten(1).isfinite().all(1)).nonzero()
    if len(broken):
        k = int(broken[0, 0])
        raise ValueError(
            f"the gradient of {_name(reward)} at sample {k} ({queries[k]!r}) is not finite; it is not "
            "replaced by 0"
        )
    return told, slope


def check_differentiable(reward: Any, instead: str = "particles need its values only") -> None:
    """ValueError for a reward that does not say that gradients flow to the images."""
    if getattr(reward, "differentiable", False) is not True:
        raise ValueError(
            f"{_name(reward)} is not differentiable (its `differentiable` is not True), and this control "
            f"follows its gradient; {instead}"
        )


def _name(reward: Any) -> str:
    return f"reward {getattr(reward, '__name__', type(reward).__name__)}"


def pulled(
    denoise: Denoise,
    x: Tensor,
    level: Level,
    cond: Any,
    slope: Callable[[Tensor], Tensor],
    *,
    through: Through,
    twice: bool = False,
) -> tuple[Tensor, Tensor]:
    """The estimate at x, and slope(estimate), a gradient there, pulled back to x; both [B, ...].

    With `twice` the denoiser is run again for its backward pass, so that its activations and those of the
    slope (decoder, reward) are never held together. The pulled gradient is held fixed in any later backward
    pass.
    """
    if through == "noise":
        clean = denoise(x, level, cond)
        return clean, slope(clean.detach()) / level.alpha
    outside = torch.is_grad_enabled()
    point = x if outside and x.requires_grad else x.detach().requires_grad_()
    if twice:
        with torch.no_grad():
            upward = slope(denoise(x, level, cond))
    with torch.enable_grad():
        clean = denoise(point, level, cond)
    upward = upward if twice else slope(clean.detach())
    count(backwards=len(x))
    (back,) = torch.autograd.grad(clean, point, upward.to(clean.dtype), retain_graph=outside)
    return (clean if outside else clean.detach()), back.detach()


def opposites(state: State, x: Tensor, samples: int, purpose: str) -> Tensor:
    """Unit noises [samples, *x.shape], the second half the first's opposites; row i is of sample i's seed."""
    rows = [
        torch.randn((samples // 2, *x.shape[1:]), generator=state.generator(i % len(state), purpose))
        for i in range(len(x))
    ]
    half = torch.stack(rows, dim=1).to(x.device)
    return torch.cat([half, -half])


def check_pairs(samples: int) -> None:
    """ValueError for a number of `opposites` that is odd or too small."""
    if samples < 2 or samples % 2:
        raise ValueError(f"samples is {samples}; they come in opposite pairs: give 2, 4, 6, ...")


# --- what a control adds to the score


class Steered(Control, ABC):
    """A control that adds a score increment, at each step of its window.

    form "estimate": the solver steps from the moved estimate. form "mean": the step's mean moves by std^2
    times the increment, for stochastic solvers; the transition stays the reference, and log p - log q is
    reported, so that weighted particles make the guide exact. At pure noise (alpha = 0) nothing is added.
    """

    scale: Strength
    form: Form
    window: tuple[float, float]

    @abstractmethod
    def increment(
        self, denoise: Denoise, state: State, x: Tensor, level: Level, cond: Any
    ) -> tuple[Tensor, Tensor]:
        """The estimate at x, and what is added to the score there, both [B, ...]; `scale` included."""

    def start(self, state: State) -> State:
        strength("scale", self.scale, state)
        return state

    def guide(self, denoise: Denoise, state: State) -> Denoise:
        if self.form != "estimate" or self._off(state):
            return denoise

        def steered(x: Tensor, level: Level, cond: Any) -> Tensor:
            if level.alpha == 0:  # pure noise says nothing of the image, and sigma^2 / alpha is infinite
                return denoise(x, level, cond)
            clean, increment = self.increment(denoise, state, x, level, cond)
            return toward(clean, level, increment)

        return steered

    def propose(self, draw: Draw, state: State) -> Draw:
        if self.form != "mean" or self._off(state) or state.level.alpha == 0:
            return draw

        def steered(state: State, transition: Transition) -> tuple[Tensor, Tensor]:
            if not bool((transition.std > 0).any()):
                return draw(state, transition)
            _, g = self.increment(answers(state), state, state.x, state.level, state.cond)
            x, log_weight = draw(state, replace(transition, mean=transition.mean + transition.std**2 * g))
            each = transition.std**2 * g**2 / 2 - (x - transition.mean) * g
            return x, log_weight + each.flatten(1).sum(1)

        return steered

    def _check(self) -> None:
        """ValueError for settings that no run could have."""
        check_strength("scale", self.scale)
        check_window(self.window)
        if self.form not in ("estimate", "mean"):
            raise ValueError(f"form is {self.form!r}; choose 'estimate' or 'mean'")

    def _off(self, state: State) -> bool:
        return not within(self.window, state) or strength("scale", self.scale, state) == 0
