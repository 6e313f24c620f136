"""promptloop: prompts that are rewritten while the image forms.

A policy (a multimodal LLM) sees the denoised estimate at a few steps of the sampling loop, together with the
user's query and the prompt in force, and writes the prompt for the steps that follow. The denoiser is frozen.

The names below are imported on first use, so that ``import promptloop`` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_NAMES = {
    "generate": "promptloop.recipes.generate:generate",
    "replay": "promptloop.recipes.replay:replay",
    "load": "promptloop.denoisers:load",
    "from_pipeline": "promptloop.denoisers:from_pipeline",
    "attach": "promptloop.controls.attach:attach",
    "Control": "promptloop.sample:Control",
    "State": "promptloop.sample:State",
    "Transition": "promptloop.sample:Transition",
    "Record": "promptloop.controls.record:Record",
    "trajectory": "promptloop.sample:trajectory",
    "rescore": "promptloop.sample:rescore",
    "Level": "promptloop.schedules:Level",
    "CFG": "promptloop.controls.guidance:CFG",
    "PromptLoop": "promptloop.controls.prompt:PromptLoop",
    "Rewrite": "promptloop.controls.prompt:Rewrite",
    "Scheduled": "promptloop.controls.prompt:Scheduled",
    "Mllm": "promptloop.policies.mllm:Mllm",
    "Endpoint": "promptloop.policies.endpoint:Endpoint",
    "load_policy": "promptloop.recipes.parts:load_policy",
}

__all__ = [
    "__version__",
    "attach",
    "CFG",
    "Control",
    "Endpoint",
    "from_pipeline",
    "generate",
    "Level",
    "load",
    "load_policy",
    "Mllm",
    "PromptLoop",
    "Record",
    "replay",
    "rescore",
    "Rewrite",
    "Scheduled",
    "State",
    "trajectory",
    "Transition",
]

if TYPE_CHECKING:
    from promptloop.controls.attach import attach
    from promptloop.controls.guidance import CFG
    from promptloop.controls.prompt import PromptLoop, Rewrite, Scheduled
    from promptloop.controls.record import Record
    from promptloop.denoisers import from_pipeline, load
    from promptloop.policies.endpoint import Endpoint
    from promptloop.policies.mllm import Mllm
    from promptloop.recipes.generate import generate
    from promptloop.recipes.parts import load_policy
    from promptloop.recipes.replay import replay
    from promptloop.sample import Control, State, Transition, rescore, trajectory
    from promptloop.schedules import Level


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'promptloop' has no attribute {name!r}")
    module, _, attribute = _NAMES[name].partition(":")
    value = getattr(import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_NAMES])
