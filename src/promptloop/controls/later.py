"""Drafts on their way: asked for now, in force some steps later, written meanwhile or at once."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch

from promptloop.controls.ask import Question
from promptloop.policies.contract import Draft
from promptloop.sample import State

WRITER = ThreadPoolExecutor(1, "policy")  # one at a time: a tokenizer serves one thread


@final
@dataclass(frozen=True, eq=False)
class Answer:
    """What a policy that may still be writing answers to a question."""

    question: Question
    future: Future[list[Draft]]

    @cached_property
    def drafts(self) -> list[Draft]:
        """Waits for the policy. The tokens are counted here: the denoiser's tokenizer is this thread's."""
        return self.question.checked(self.future.result())


@final
@dataclass(frozen=True, eq=False)
class Later:
    """One draft of an answer, in force when `due` steps are done."""

    due: int
    answer: Answer
    row: int

    @property
    def draft(self) -> Draft:
        return self.answer.drafts[self.row]


def sent(state: State, rows: Sequence[int], question: Question, due: int, background: bool) -> State:
    """The state with drafts for the samples `rows` on their way, as memory["pending"]."""
    if background:
        answer = Answer(question, WRITER.submit(_aside, question, state.x.device))
    else:
        done: Future[list[Draft]] = Future()
        done.set_result(question.write())
        answer = Answer(question, done)
    pending = list(state.memory["pending"])
    for k, i in enumerate(rows):
        pending[i] = (*pending[i], Later(due, answer, k))
    return state.remember(pending=tuple(pending))


def _aside(question: Question, device: torch.device) -> list[Draft]:
    """The policy's drafts, on CUDA from a stream of their own (requests and drafts lie on the CPU)."""
    if device.type != "cuda":
        return question.write()
    with torch.cuda.stream(torch.cuda.Stream(device)):
        return question.write()


def arrived(state: State) -> State:
    """The state with the drafts in force that are due, taken off memory["pending"]."""
    prompts, written, left = list(state.prompts), list(state.memory["drafts"]), []
    for i, waiting in enumerate(state.memory["pending"]):
        due = [one.draft for one in waiting if one.due <= state.step]
        prompts[i] = due[-1].text if due else prompts[i]
        written[i] = (*written[i], *due)
        left.append(waiting[len(due) :])
    return state.say(prompts).remember(drafts=tuple(written), pending=tuple(left))


def newest(state: State) -> list[str]:
    """The prompt last written for each sample, in force or on its way (which is waited for)."""
    waiting = zip(state.memory["pending"], state.prompts, strict=True)
    return [row[-1].draft.text if row else prompt for row, prompt in waiting]
