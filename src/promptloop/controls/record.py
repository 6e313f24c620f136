"""Record: the path a sample took, with its log-probabilities, for policy gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch

from promptloop.state import Control, State


@final
@dataclass(frozen=True)
class Record(Control):
    """Keeps, per sample, what `rescore` needs; its place in the list of controls makes no difference.

    memory["path"] [B, k + 1, ...]: the latents, the starting noise first.
    memory["path_log_prob"] [B, k]: log-prob of each step (mean over dimensions), nan for deterministic ones.
    memory["path_prompts"]: for each sample the k prompts its steps were made with.
    """

    def condition(self, state: State) -> State:
        if state.level != state.run.levels[state.step]:
            raise ValueError("Record follows the run's levels in order; this state left them")
        if state.step > 0:
            return state
        empty = torch.zeros(len(state), 0, device=state.x.device)
        nothing: tuple[tuple[str, ...], ...] = ((),) * len(state)
        return state.remember(path=state.x.detach()[:, None], path_log_prob=empty, path_prompts=nothing)

    def select(self, state: State) -> State:
        assert state.transition is not None
        if state.transition.deterministic:
            scored = torch.full((len(state),), torch.nan, device=state.x.device)
        else:
            scored = state.transition.log_prob(state.x).detach()
        said = zip(state.memory["path_prompts"], state.embedded, strict=True)
        return state.remember(
            path=torch.cat([state.memory["path"], state.x.detach()[:, None]], dim=1),
            path_log_prob=torch.cat([state.memory["path_log_prob"], scored[:, None]], dim=1),
            path_prompts=tuple((*before, now) for before, now in said),
        )
