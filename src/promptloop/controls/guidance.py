"""Guidance: controls that wrap the denoiser. A guide is a function from denoise to denoise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from promptloop.controls.plan import place
from promptloop.controls.strength import Strength, check_strength, check_window, strength, within
from promptloop.schedules import Level
from promptloop.solvers import Denoise
from promptloop.state import EMBEDDED, Control, State

QUERIES = f"{EMBEDDED} queries"
WRITTEN = "negatives"  # in memory: for each sample (place, negative prompt from there on), ...
READ, CONDS = f"{EMBEDDED} written negatives", f"{EMBEDDED} written negatives' conds"


@final
@dataclass(frozen=True)
class CFG(Control):
    """Classifier-free guidance (Ho & Salimans 2022): negative + scale (prompt - negative), in one batch.

    Combining clean estimates equals combining epsilons, v's or velocities, because the weights sum to 1;
    Qwen-Image alone combines them in another way (`Denoiser.guided`).
    scale = 1 is the plain denoiser, without the second evaluation. negative None is no prompt at all, which
    for some backbones (SDXL) is not the empty one. Outside `window`, two fractions of the trajectory, there
    is no guidance (Kynkaanniemi et al., arXiv 2404.07724): a step is inside that begins there.
    A control `NegativePrompt` in the same run writes the negative of each sample.
    """

    scale: float
    negative: str | None = None
    window: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        check_window(self.window)
        if not math.isfinite(self.scale):
            raise ValueError(f"the guidance scale is {self.scale}; give a finite number (1 is without)")
        if not isinstance(self.negative, str | None):
            raise ValueError(f"the negative prompt is {self.negative!r}; give one text for all, or None")
        if self.scale == 1 and self.negative:
            raise ValueError(f"the negative prompt {self.negative!r} does nothing at a guidance scale of 1; "
                             "give another scale, or leave it out")  # fmt: skip

    def start(self, state: State) -> State:
        if self.scale == 1:
            return state
        guides = [c for c in state.run.controls if isinstance(c, CFG) and c.scale != 1 and overlap(self, c)]
        if len(guides) > 1:
            raise ValueError(f"{guides[0]} and {guides[1]} would guide the same steps; list one of them, or "
                             "give them windows apart")  # fmt: skip
        return state.remember(**{self._key: self._embedded(state)})

    def guide(self, denoise: Denoise, state: State) -> Denoise:
        if self.scale == 1 or not within(self.window, state):
            return denoise
        negative = self._written(state)
        if negative is None:
            negative = state.memory.get(self._key)
        if negative is None:  # rescore: another denoiser, or a run that had no guidance
            negative = self._embedded(state)

        def guided(x: Tensor, level: Level, cond: Any) -> Tensor:
            without, within = denoise(torch.cat([x, x]), level, negative.join([cond])).chunk(2)
            guided_by: Any = state.run.denoiser
            return guided_by.guided(x, level, without, within, self.scale)

        return guided

    def _embedded(self, state: State) -> Any:
        denoiser = state.run.denoiser
        row = denoiser.without() if self.negative is None else denoiser.embed([self.negative])
        return row[[0] * len(state)]

    def _written(self, state: State) -> Any:
        """The embeddings of what NegativePrompt has written, its own where nothing is; None: nowhere is."""
        said = negatives(state)
        if not any(text is not None for text in said):
            return None
        if state.memory.get(READ) == said:
            return state.memory[CONDS]
        return self.embedded(state, said)

    def embedded(self, state: State, said: Sequence[str | None]) -> Any:
        """One row of conditioning per sample: of the text, or of its own negative (None)."""
        new = [text for text in dict.fromkeys(said) if text is not None]
        own = state.memory.get(self._key)
        rows = (self._embedded(state) if own is None else own)[[0]]
        rows = rows.join([state.run.denoiser.embed(new)]) if new else rows
        return rows[[0 if text is None else 1 + new.index(text) for text in said]]

    @property
    def _key(self) -> str:
        return f"{EMBEDDED} negative {self.negative!r}"


def overlap(one: CFG, other: CFG) -> bool:
    """Whether a step may lie in the windows of both, which begin inside and end outside."""
    return max(one.window[0], other.window[0]) < min(one.window[1], other.window[1])


@final
@dataclass(frozen=True)
class PromptGuidance(Control):
    """From the user's query to the prompt in force, and beyond: query + w (prompt - query).

    w = 0 is the sample of the query alone and w = 1 that of the prompt, each with one branch and bitwise;
    more than 1 goes on in the direction in which a policy has moved the prompt. Where no sample's prompt
    differs from its query nothing is run twice. w: a number, one for each step, or a function of progress
    in [0, 1). List it after CFG: both branches then have the same.
    """

    w: Strength

    def __post_init__(self) -> None:
        check_strength("w", self.w)

    def start(self, state: State) -> State:
        strength("w", self.w, state)
        return state.remember(**{QUERIES: queries_embedded(state)})

    def guide(self, denoise: Denoise, state: State) -> Denoise:
        w = strength("w", self.w, state)
        moved = [prompt != query for prompt, query in zip(state.prompts, state.queries, strict=True)]
        if w == 1 or not any(moved):
            return denoise
        queries = state.memory.get(QUERIES)
        if queries is None:  # rescore: another denoiser, or a run that had no such guidance
            queries = queries_embedded(state)

        def guided(x: Tensor, level: Level, cond: Any) -> Tensor:
            if len(x) != len(state):
                raise ValueError("PromptGuidance has to be listed after CFG, which doubles the batch")
            asked = denoise(x, level, queries)
            if w == 0:
                return asked
            said = denoise(x, level, cond)
            rows = torch.tensor(moved, device=x.device).view(-1, *[1] * (x.ndim - 1))
            return torch.where(rows, asked + w * (said - asked), said)

        return guided


def negatives(state: State) -> tuple[str | None, ...]:
    """The negative prompt written for each sample that is in force at the state's step; None: none is."""
    if WRITTEN not in state.memory:
        return (None,) * len(state)
    here = place(state)
    due = [[text for step, text in row if step <= here] for row in state.memory[WRITTEN]]
    return tuple(row[-1] if row else None for row in due)


def queries_embedded(state: State) -> Any:
    """The queries' embeddings, each distinct one made once, one row per sample."""
    each = list(dict.fromkeys(state.queries))
    return state.run.denoiser.embed(each)[[each.index(query) for query in state.queries]]
