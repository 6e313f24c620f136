"""NegativePrompt: a policy writes what the picture shall not show, and guidance leads away from that.

NegOpt: Ogezi and Shi, "Optimizing negative prompts for enhanced aesthetics and fidelity in text-to-image
generation", arXiv 2403.07605. There a model is asked once; here also inside the trajectory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from promptloop.controls.ask import ask
from promptloop.controls.guidance import CFG, CONDS, READ, WRITTEN, negatives
from promptloop.controls.plan import even_steps, place
from promptloop.controls.strength import check_window
from promptloop.policies.contract import Policy
from promptloop.sample import Control, State

DRAFTS = "negative_drafts"


@final
@dataclass(frozen=True)
class NegativePrompt(Control):
    """The policy writes the negative prompt of CFG, for each sample, once or at several steps.

    It is asked before the first step, where there is no estimate, and with more `refinements` again inside
    `window` (two fractions of the trajectory), where it sees the clean estimate of the last executed step.
    The request says `negative`, the prompt in it is the negative in force, and what is answered is what the
    run's CFG leads away from in the steps that follow; where the policy keeps ("keep", or an answer that is
    refused), that stays. The first is that of CFG(negative=...), "" where there is none.

    The drafts are in memory["negative_drafts"], one tuple per sample. It goes with PromptLoop, whose policy
    may be the same. refinements=0, and a policy that repeats the negative in force, are bitwise without it.
    ValueError, before the first step, where the run has no CFG, several, or one with a scale of 1.
    """

    policy: Policy
    refinements: int = 1
    window: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        check_window(self.window)
        if self.refinements < 0:
            raise ValueError(f"refinements is {self.refinements}; give a number of prompts to write, from 0")

    def start(self, state: State) -> State:
        if WRITTEN in state.memory:
            raise ValueError("two NegativePrompts in one run would overwrite each other; keep one")
        guidance, said = self._guidance(state), negatives(state)
        self._steps(state)
        nothing: tuple[tuple[()], ...] = ((),) * len(state)
        kept = {READ: said, CONDS: guidance.embedded(state, said)}  # from the start, for states to be joined
        return state.remember(**{WRITTEN: nothing, DRAFTS: nothing}, **kept)

    def condition(self, state: State) -> State:
        if (here := place(state)) not in self._steps(state):
            return state
        guidance, said = self._guidance(state), negatives(state)
        now = [(guidance.negative or "") if text is None else text for text in said]
        rows = list(range(len(state)))
        drafts = ask(self.policy, state.say(now), rows, negative=True)
        written, kept = list(state.memory[WRITTEN]), list(state.memory[DRAFTS])
        for i, draft in enumerate(drafts):
            kept[i] = (*kept[i], draft)
            if draft.text != now[i]:
                written[i] = (*(entry for entry in written[i] if entry[0] < here), (here, draft.text))
        state = state.remember(**{WRITTEN: tuple(written), DRAFTS: tuple(kept)})
        said = negatives(state)
        if said == state.memory[READ]:
            return state
        return state.remember(**{READ: said, CONDS: guidance.embedded(state, said)})

    def _steps(self, state: State) -> list[int]:
        return even_steps(self.refinements, len(state.run.levels) - 1, self.window)

    def _guidance(self, state: State) -> CFG:
        """The run's CFG; ValueError where there is none that a negative prompt would act through."""
        found = [control for control in state.run.controls if isinstance(control, CFG)]
        if len(found) != 1 or found[0].scale == 1:
            has = f"one with scale {found[0].scale}" if len(found) == 1 else f"{len(found)} of them"
            raise ValueError(
                f"a negative prompt acts through one CFG with a scale other than 1, and the run has {has}; "
                "list CFG(5.0) among the controls, on the command line --guidance 5"
            )
        return found[0]
