"""WeightedTokens: words of a prompt that weigh more or less, and in a part of the trajectory only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor

from promptloop.controls.marked import at_step, parsed
from promptloop.controls.plan import place
from promptloop.denoisers.tokens import weighed
from promptloop.schedules import Level
from promptloop.solvers import Denoise
from promptloop.state import EMBEDDED, Control, State

TOLD, CONDS = f"{EMBEDDED} marked", f"{EMBEDDED} marked conds"
Told = tuple[str, tuple[float, ...]]  # a text and the weight of each of its characters


@final
@dataclass(frozen=True)
class WeightedTokens(Control):
    """Marks in prompts, "a (red:1.3) [dog:cat:0.4]", act on the embeddings of their words, step by step.

    The syntax is that of `controls.marked`: weights multiply the text encoder's answer at the words' tokens,
    ranges say in which part of the trajectory words are there at all (0 is pure noise); outside it the prompt
    is embedded without them. The prompts in force are read: the user's query, or what a policy wrote, as PAE
    does (arXiv 2404.04095). With `prompt` that one is read instead, for all samples, and the query stays what
    rewards are asked for; without, rewards are asked for the query as it reads in the last step.

    Prompts without marks, and marks that weigh 1 all the time, are bitwise the plain ones. Each text that
    comes into force is embedded once more. List it after CFG and after PromptGuidance. ValueError, before
    the first step (for what a policy writes later: when it comes into force), for marks that cannot be read,
    and for weights where an embedding has no places for words.
    """

    prompt: str | None = None

    def __post_init__(self) -> None:
        if self.prompt is not None:
            parsed(self.prompt)

    def start(self, state: State) -> State:
        if TOLD in state.memory:
            raise ValueError("two WeightedTokens in one run would overwrite each other; keep one")
        if any(piece.weight != 1 for text in self._prompts(state) for piece in parsed(text)):
            state.run.denoiser.readers()
        steps = len(state.run.levels) - 1
        if self.prompt is None:
            asked = tuple(at_step(parsed(query), steps - 1, steps)[0] for query in state.queries)
            state = replace(state, queries=asked)
        return self._remembered(state)

    def condition(self, state: State) -> State:
        return state if state.memory[TOLD] == self._told(state) else self._remembered(state)

    def guide(self, denoise: Denoise, state: State) -> Denoise:
        told = self._told(state)
        if all(one == (said, (1.0,) * len(said)) for one, said in zip(told, state.prompts, strict=True)):
            return denoise
        known = state.memory.get(TOLD) == told  # else rescore: another step, or another denoiser
        mine = state.memory[CONDS] if known else _embedded(state, told)

        def marked(x: Tensor, level: Level, cond: Any) -> Tensor:
            if not _same(cond, state.cond):
                raise ValueError("WeightedTokens has to be listed after CFG and PromptGuidance, which give "
                                 "the denoiser other prompts beside the one in force")  # fmt: skip
            return denoise(x, level, mine)

        return marked

    def _prompts(self, state: State) -> Sequence[str]:
        return state.prompts if self.prompt is None else (self.prompt,) * len(state)

    def _told(self, state: State) -> tuple[Told, ...]:
        """What the denoiser is told in the state's step."""
        step, steps = place(state), len(state.run.levels) - 1
        return tuple(at_step(parsed(text), min(step, steps - 1), steps) for text in self._prompts(state))

    def _remembered(self, state: State) -> State:
        told = self._told(state)
        return state.remember(**{TOLD: told, CONDS: _embedded(state, told)})


def _embedded(state: State, told: Sequence[Told]) -> Any:
    """One row of conditioning per sample, each distinct text embedded once."""
    each = list(dict.fromkeys(told))
    made = weighed(state.run.denoiser, [text for text, _ in each], [weights for _, weights in each])
    return made[[each.index(one) for one in told]]


def _same(one: Any, other: Any) -> bool:
    if one is other or other is None:
        return True
    pairs = [(value, other.fields[name]) for name, value in one.fields.items()]
    return all(a.shape == b.shape and torch.equal(a, b) for a, b in pairs)
