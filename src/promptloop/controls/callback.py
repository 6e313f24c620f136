"""What happens inside one call of a user's pipeline, from the first draft to the last step.

What the policy sees, the clean estimate, is computed from what the pipeline gives `scheduler.step`: its
prediction, with guidance and whatever else it combines, and the latents before the step.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, final

import torch
from torch import Tensor

from promptloop.controls.prompt import PromptLoop
from promptloop.history import estimate
from promptloop.sample import Run, State, Transition
from promptloop.schedules import visited


@final
class Callback:
    """One call of the pipeline: its state, which moves with the steps."""

    state: State

    def __init__(
        self, control: PromptLoop, tensors: tuple[str, ...], pipe: Any, options: dict[str, Any]
    ) -> None:
        """Takes the user's own callback out of `options`."""
        self.control, self.tensors = control, tensors
        from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback

        users = options.pop("callback_on_step_end", None)
        asked = options.pop("callback_on_step_end_tensor_inputs", None) or ["latents"]
        self.users: Callable[..., Any] | None = users
        self.asked = asked
        if isinstance(users, PipelineCallback | MultiPipelineCallbacks):  # these say themselves
            self.asked = users.tensor_inputs
        self.reading = reading(pipe, options)
        self.output: tuple[Tensor, Tensor] | None = None
        self.timed = False

    def begin(self, run: Run, queries: Sequence[str], seeds: Sequence[int]) -> None:
        """The drafts before the first step. No latents exist yet: x has no elements."""
        rows, texts = torch.tensor(seeds, dtype=torch.long), tuple(queries)
        state = State(run, 0, run.levels[0], torch.zeros(len(texts), 0), rows, texts, texts)
        self.state = self.control.condition(self.control.start(state))

    def told(self, output: Tensor, latents: Tensor) -> None:
        """Keeps what the scheduler's step is given."""
        self.output = (output, latents)

    def step_end(self, pipe: Any, step: int, t: Any, reached: dict[str, Any]) -> dict[str, Any]:
        """The pipeline's callback_on_step_end: the user's own first, then the prompts of the next step."""
        answer: dict[str, Any] = {}
        if self.users is not None:
            answer = self.users(pipe, step, t, {name: reached[name] for name in self.asked})
            if not isinstance(answer, dict):
                found = type(answer).__name__
                raise ValueError(f"your callback_on_step_end returned a {found}; return its callback_kwargs")
        reached = reached | answer
        plan = self.state.memory["plan"]
        if step + 1 == plan.shape[1] or not bool(plan[:, step + 1].any()):
            return answer
        said = self.state.prompts
        with same_precision(pipe.vae):
            self.state = self.control.condition(self._at(pipe.scheduler, step, reached["latents"]))
        rows = [i for i, (old, new) in enumerate(zip(said, self.state.prompts, strict=True)) if old != new]
        return answer | self._embedded(pipe, rows, reached) if rows else answer

    def _at(self, scheduler: Any, step: int, latents: Tensor) -> State:
        """The state after `step`, with the estimate that the step was made from."""
        run = self.state.run
        if not self.timed:  # the levels of this size of picture
            levels = tuple(visited(scheduler))
            if len(levels) != len(run.levels):
                found, planned = len(levels) - 1, len(run.levels) - 1
                raise ValueError(f"the pipeline makes {found} steps where {planned} were planned for")
            run, self.timed = replace(run, levels=levels), True
        assert self.output is not None
        output, before = self.output
        clean = estimate(scheduler, before, run.levels[step], output)
        x = latents.float()
        return replace(self.state, run=run, step=step + 1, level=run.levels[step + 1], x=x,
                       transition=Transition(x, torch.tensor(0.0), clean))  # fmt: skip

    def _embedded(self, pipe: Any, rows: list[int], reached: dict[str, Any]) -> dict[str, Any]:
        """The pipeline's text tensors with the prompts of `rows` (with guidance, in their later half)."""
        prompts = [self.state.prompts[i] for i in rows]
        texts = list(dict.fromkeys(prompts))
        read = pipe.encode_prompt(
            prompt=[*texts], device=pipe._execution_device, do_classifier_free_guidance=False, **self.reading
        )  # a copy: Z-Image's pipeline writes into the list
        result: dict[str, Any] = {}
        for name, text in zip(self.tensors, read[::2], strict=True):  # each is followed by its negative
            before = reached[name]
            made = [*before] if isinstance(before, list) else before.clone()  # Z-Image has a list of texts
            for i, prompt in zip(rows, prompts, strict=True):
                place = len(before) - len(self.state) + i
                made[place] = text[texts.index(prompt)].to(before[place])
            result[name] = made
        return result


def reading(pipe: Any, options: dict[str, Any]) -> dict[str, Any]:
    """What the pipeline tells its encode_prompt in a call with these options, as far as that takes it."""
    attention = options.get("cross_attention_kwargs") or options.get("joint_attention_kwargs") or {}
    told = {"clip_skip": options.get("clip_skip"), "lora_scale": attention.get("scale")}
    told |= {"num_images_per_prompt": 1, "prompt_2": None, "prompt_3": None}
    usual = inspect.signature(type(pipe).__call__).parameters
    if "max_sequence_length" in usual:
        told["max_sequence_length"] = options.get("max_sequence_length", usual["max_sequence_length"].default)
    takes = inspect.signature(pipe.encode_prompt).parameters
    return {name: value for name, value in told.items() if name in takes}


@contextmanager
def watched(scheduler: Any, tell: Callable[[Tensor, Tensor], None]) -> Iterator[None]:
    """Inside, `tell` gets the output and the latents that `scheduler.step` is called with."""
    own, step = vars(scheduler).get("step"), scheduler.step

    @functools.wraps(step)  # pipelines look at its signature
    def watched(model_output: Any, timestep: Any, sample: Any, *more: Any, **options: Any) -> Any:
        tell(model_output, sample)
        return step(model_output, timestep, sample, *more, **options)

    scheduler.step = watched
    try:
        yield
    finally:
        if own is None:
            del scheduler.step
        else:
            scheduler.step = own


@contextmanager
def same_precision(vae: Any) -> Iterator[None]:
    """Afterwards the autoencoder has the precision it had: SDXL's is raised to decode an estimate."""
    before = vae.dtype
    try:
        yield
    finally:
        if vae.dtype != before:
            vae.to(before)
