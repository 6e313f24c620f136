"""A diffusers scheduler in the middle of a run, as something that moves with the samples."""

from __future__ import annotations

import copy
import functools
import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any, final

import torch
from torch import Tensor

from promptloop.schedules import Level, is_flow


@final
class History:
    """A scheduler between two steps. Every tensor it keeps in x's shape [B, ...] moves with the samples."""

    def __init__(self, scheduler: Any, index: int, shape: tuple[int, ...]) -> None:
        self.scheduler, self.index, self.shape = scheduler, index, shape

    def advance(self, state: Any, clean: Tensor) -> Tensor:
        """x at the next level; changes this History (fork first)."""
        t = self.scheduler.timesteps[self.index]
        if float(t) != state.level.t or state.x.shape != self.shape:
            here, there = (float(t), tuple(self.shape)), (state.level.t, tuple(state.x.shape))
            raise ValueError(
                f"the scheduler stands at t and shape {here}, the state at {there}; "
                "a diffusers scheduler's steps cannot be skipped or redone"
            )
        if hasattr(self.scheduler, "scale_model_input"):
            self.scheduler.scale_model_input(state.x[:1], t)  # k-style ones insist on the call
        options = {}
        if _draws(self.scheduler.__class__):
            options["generator"] = [state.generator(i, "step") for i in range(len(state.x))]
        self.index += 1
        output = self._output(state, clean)
        return self.scheduler.step(output, t, state.x, return_dict=False, **options)[0].float()

    def _output(self, state: Any, clean: Tensor) -> Tensor:
        """The clean estimate in the scheduler's own parameterisation."""
        alpha, sigma, kind = state.level.alpha, state.level.sigma, parameterisation(self.scheduler)
        if kind == "sample":
            return clean
        noise = (state.x - alpha * clean) / sigma
        if kind == "flow_prediction":
            return noise - clean
        if kind == "v_prediction":
            return (alpha * noise - sigma * clean) / math.hypot(alpha, sigma)
        return noise

    def fork(self) -> History:
        """A copy that can be advanced without changing this one."""
        return self._rebuilt(self.shape, lambda rows: rows[0], [])

    def take(self, index: Tensor) -> History:
        """The samples `index` (LongTensor)."""
        return self._rebuilt((len(index), *self.shape[1:]), lambda rows: rows[0][index], [])

    def join(self, others: Iterable[History]) -> History:
        """These samples, then the others', which are at the same step."""
        rest = [*others]
        size = self.shape[0] + sum(other.shape[0] for other in rest)
        return self._rebuilt((size, *self.shape[1:]), torch.cat, rest)

    def _rebuilt(
        self, shape: tuple[int, ...], change: Callable[[list[Tensor]], Tensor], rest: list[History]
    ) -> History:
        """The same scheduler where every per-sample tensor is change([it, and its like in the rest])."""

        def rebuilt(values: list[Any]) -> Any:
            if isinstance(values[0], list):
                return [rebuilt([*entries]) for entries in zip(*values, strict=True)]
            per_sample = isinstance(values[0], Tensor) and values[0].shape == self.shape
            return change(values) if per_sample else values[0]

        scheduler = copy.copy(self.scheduler)
        for name, value in vars(self.scheduler).items():
            vars(scheduler)[name] = rebuilt([value, *(vars(other.scheduler)[name] for other in rest)])
        return History(scheduler, self.index, shape)


def parameterisation(scheduler: Any) -> str:
    """What `scheduler.step` is given: epsilon, sample, v_prediction or flow_prediction."""
    kind = str(scheduler.config.get("prediction_type", "epsilon"))
    if kind != "sample" and is_flow(scheduler):
        return "flow_prediction"
    if kind not in ("epsilon", "sample", "v_prediction", "flow_prediction"):
        raise ValueError(
            f"prediction_type {kind!r} of {type(scheduler).__name__} is not known; "
            "use epsilon, sample, v_prediction or flow_prediction"
        )
    return kind


def estimate(scheduler: Any, x: Tensor, level: Level, output: Tensor) -> Tensor:
    """The clean estimate [B, ...] in what `scheduler.step(output, t, x)` is given at `level`, float32.

    ValueError at pure noise where the output is noise: there is no estimate in it.
    """
    x, output, kind = x.float(), output.float(), parameterisation(scheduler)
    alpha, sigma = level.alpha, level.sigma
    if kind == "sample":
        return output
    if kind == "flow_prediction":
        return (x - sigma * output) / (alpha + sigma)
    if kind == "v_prediction":
        return (alpha * x - sigma * math.hypot(alpha, sigma) * output) / (alpha**2 + sigma**2)
    if alpha == 0:
        raise ValueError(f"{level} is pure noise; a network that predicts noise has no estimate there")
    return (x - sigma * output) / alpha


@functools.cache
def _draws(kind: type) -> bool:
    """Whether schedulers of this class take generators, and so may draw noise."""
    return "generator" in inspect.signature(kind.step).parameters  # type: ignore[attr-defined]
