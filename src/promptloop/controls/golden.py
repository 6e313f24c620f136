"""Golden noise: a network replaces the starting noise; and the noise that it is trained to make."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor

from promptloop.controls.guidance import CFG
from promptloop.sample import Control, Run, State, advance, answers, begin, embed
from promptloop.schedules import asked_for
from promptloop.solvers import DDIM, Euler

Network = Callable[[Tensor, Tensor], Tensor]  # noise [B, ...], embedded prompts [B, ...] -> noise


@final
@dataclass(frozen=True)
class GoldenNoise(Control):
    """Golden noise (NPNet, Zhou et al., arXiv 2411.09502): a network makes the starting noise of the prompt.

    noise + strength (network(noise, text) - noise), where text is what the denoiser's text encoder says of
    the prompt in force before the first step (its field "text"). network: `npnet_weights.load(PATH)`, or any
    function of the two. It is asked for one sample at a time, so that none depends on its batch. List it
    after controls that make more noises of a sample (BestOf): those are replaced, too. What it makes is not
    exactly unit noise. strength=0 is the identity. Costs one small forward pass a sample. ValueError where
    the denoiser's prompts have no field "text", or the network is for another size.
    """

    network: Network
    strength: float = 1.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.strength):
            raise ValueError(
                f"strength is {self.strength}; give a finite number, 1 for the network's own noise"
            )

    def start(self, state: State) -> State:
        if self.strength == 0:
            return state
        state = embed(state)
        text = state.cond.fields.get("text") if state.cond is not None else None
        if text is None:
            name = type(state.run.denoiser).__name__
            raise ValueError(
                f"golden noise reads the embedded prompt, and {name} has none of the name 'text'"
            )
        scale = state.run.solver.noise_scale(state.run.levels)
        noise = state.x / scale
        made = torch.cat([self.network(noise[k : k + 1], text[k : k + 1]) for k in range(len(noise))])
        return replace(state, x=scale * (noise + self.strength * (made - noise)))


@torch.no_grad()
def renoised(
    denoiser: Any,
    prompts: Sequence[str],
    *,
    seeds: Sequence[int],
    steps: int | None = None,
    levels: Any = None,
    scale: float = 5.5,
    back: float = 1.0,
    noise: Tensor | None = None,
) -> Tensor:
    """Unit noise [B, ...] that was led one step down with guidance `scale`, and back up with guidance `back`.

    The target that a golden-noise network is trained on (Zhou et al., section 3). With x at the first level
    (a, b), y at the second (a', b'), and the estimates c of x by `scale` and c' of y by `back`, both steps
    DDIM's: result = x + (a' b / b' - a)(c - c'). Both guidances alike give x back as steps grow. Costs 2
    evaluations a sample, twice that with guidance. ValueError for one step, which leaves no noise.
    """
    grid = tuple(asked_for(denoiser, DDIM(), steps, levels))
    if grid[1].sigma == 0:
        raise ValueError("one step leaves no noise to go back from; give steps of 2 or more")
    down, up = (Run(denoiser, grid, DDIM(), (CFG(given),)) for given in (scale, back))
    start = begin(down, prompts, seeds, noise)
    state = advance(down.controls[0].start(start), grid[1])
    state = up.controls[0].start(replace(state, run=up))
    back_up = Euler()(answers(state), state, grid[0])  # DDIM's own step, finite also up to pure noise
    return back_up.mean / DDIM().noise_scale(grid)
